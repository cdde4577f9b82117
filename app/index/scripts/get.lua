-- One agent: the fields asked for, and whether it may count as alive.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 offline_after_ms, empty: as published
--          3 the epoch that the caller trusts
--          4 agent id   5… field names
-- Result   {'epoch', the epoch in force or ''} when it is not the caller's; {'none'} for an agent without a hash; else
--          {'ok', seen in ms, fresh (0, 1), status, value or false, …}
--!include common settings horizon

local epoch = redis.call('GET', prefix .. ':epoch')
if epoch ~= ARGV[3] then return {'epoch', epoch or ''} end
local agent_id = ARGV[4]
local fields = redis.pcall('HMGET', agent_key(agent_id), 'status', unpack(ARGV, 5))
if fields.err or not fields[1] then return {'none'} end
local seen = redis.call('ZSCORE', seen_key, agent_id)
local alive = freshness(offline_after(ARGV[2]))(seen)
seen = seen or redis.call('ZSCORE', silent_key, agent_id) or redis.call('ZSCORE', offline_key, agent_id) or '0'
return {'ok', seen, alive and 1 or 0, unpack(fields)}
