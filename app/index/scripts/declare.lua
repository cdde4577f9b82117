-- Declares agents that were taken out as silent offline, and says so in the log: one slice.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 slice
-- Result   number of agents declared offline; as many as the slice: there may be more
--!include common

local found = redis.call('ZRANGE', silent_key, 0, tonumber(ARGV[2]) - 1, 'WITHSCORES')
for i = 1, #found, 2 do
    local agent_id, key = found[i], agent_key(found[i])
    local last_id = redis.call('HGET', key, 'last_id')
    redis.call('ZREM', silent_key, agent_id)
    if last_id then
        redis.call('HSET', key, 'status', 'offline')
        redis.call('ZADD', offline_key, found[i + 1], agent_id)
        append_transition(agent_id, 'offline', 'silent', last_id)
    end
end
return #found / 2
