-- How the log and the fleet stand, for those who take heartbeats in.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 recent_ms   3 most cloned agents to list
-- Result   {entries the index group has yet to apply, agents heard of, id of an agent that was lately seen
--           from two machines, …}
--!include common

local unapplied = redis.call('XLEN', stream)
local groups = unapplied > 0 and redis.call('XINFO', 'GROUPS', stream) or {}
for _, group in ipairs(groups) do
    local info = {}
    for i = 1, #group, 2 do info[group[i]] = group[i + 1] end
    -- Redis does not know the lag of a group that was set back; then all of the stream counts.
    if info.name == 'index' and info.lag then unapplied = info.lag + info.pending end
end
local cloned = redis.call('ZRANGE', prefix .. ':cloned', now - tonumber(ARGV[2]), '+inf', 'BYSCORE',
    'LIMIT', 0, ARGV[3])
return {unapplied, redis.call('ZCARD', seen_key), unpack(cloned)}
