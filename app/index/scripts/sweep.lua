-- Takes silent agents out of the sets that searches read: one slice. Their status stays; declare.lua changes it.
-- Re-checks each against what is in the index now, so a heartbeat applied before always wins.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 offline_after_ms, empty: as published   3 slice
-- Result   number of agents taken out; as many as the slice: there may be more
--!include common settings ladder place feed totals state horizon

local slice = tonumber(ARGV[3])
local oldest, newest = alive_window(offline_after(ARGV[2]))

local function take_out(found)
    for i = 1, #found, 2 do
        local agent_id = found[i]
        local state = read_state(agent_id)
        if state then
            -- Without its fingerprint even an unchanged heartbeat puts the agent back in its place.
            redis.call('HSET', agent_key(agent_id), 'fingerprint', '')
            if state.indexed ~= '' then
                local indexed = scoped(state.indexed, state.status, state.cordoned, true)
                change_state('capacity', agent_id, state, {indexed = indexed})
            end
            redis.call('ZADD', silent_key, found[i + 1], agent_id)
        end
        redis.call('ZREM', seen_key, agent_id)
    end
    return #found / 2
end

local taken = take_out(redis.call('ZRANGE', seen_key, '-inf', string.format('(%.0f', oldest),
    'BYSCORE', 'LIMIT', 0, slice, 'WITHSCORES'))
if newest ~= math.huge and taken < slice then
    taken = taken + take_out(redis.call('ZRANGE', seen_key, string.format('(%.0f', newest), '+inf',
        'BYSCORE', 'LIMIT', 0, slice - taken, 'WITHSCORES'))
end
write_totals()
return taken
