-- Drops agents that have been offline for long from the index: one slice. The record keeps them.
-- A cordoned one stays: coming back, it must not be placed on before anybody looked at the record.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 forget_after_ms   3 slice
-- Result   number of agents dropped; as many as the slice: there may be more
--!include common ladder place feed totals state

local found = redis.call('ZRANGE', offline_key, '-inf', string.format('(%.0f', now - tonumber(ARGV[2])),
    'BYSCORE', 'LIMIT', 0, tonumber(ARGV[3]))
for _, agent_id in ipairs(found) do
    local state = read_state(agent_id)
    redis.call('ZREM', offline_key, agent_id)
    if state and not state.cordoned then
        move(agent_id, state.indexed, '')
        recount(state, nil)
        redis.call('DEL', agent_key(agent_id))
    end
end
return #found
