-- Drops agents that have been offline for long from the index: one slice. The record keeps them.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 forget_after_ms   3 slice
-- Result   number of agents dropped; as many as the slice: there may be more
--!include common

local found = redis.call('ZRANGE', offline_key, '-inf', string.format('(%.0f', now - tonumber(ARGV[2])),
    'BYSCORE', 'LIMIT', 0, tonumber(ARGV[3]))
for _, agent_id in ipairs(found) do
    redis.call('DEL', agent_key(agent_id))
    redis.call('ZREM', offline_key, agent_id)
end
return #found
