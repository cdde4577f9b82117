-- Drops agents that have been offline for long from the index: one slice. The record keeps them.
-- A cordoned one stays: coming back, it must not be placed on before anybody looked at the record.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 forget_after_ms   3 slice
--          4 how many to pass over: those that the slices before have left where they are
-- Result   {agents dropped, agents that stay}; together as many as the slice: there may be more
--!include common ladder place feed totals state

local found = redis.call('ZRANGE', offline_key, '-inf', string.format('(%.0f', now - tonumber(ARGV[2])),
    'BYSCORE', 'LIMIT', ARGV[4], ARGV[3])
local dropped = 0
for _, agent_id in ipairs(found) do
    local state = read_state(agent_id)
    if not (state and state.cordoned) then
        redis.call('ZREM', offline_key, agent_id)
        dropped = dropped + 1
    end
    if state and not state.cordoned then
        move(agent_id, state.indexed, '')
        recount(agent_id, state, nil)
        redis.call('DEL', agent_key(agent_id))
    end
end
write_totals()
return {dropped, #found - dropped}
