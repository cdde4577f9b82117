-- A receiver of heartbeats says that it is there. When none was for a while, agents could not report: nobody
-- is declared offline before they had the time to. The same when the clock was set since the last one did.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 receiver   3 gap_ms   4 offline_after_ms
-- Result   1 when receiving had been away, else 0
--!include common

local receivers_key = prefix .. ':receivers'
local last = redis.call('ZRANGE', receivers_key, 0, 0, 'REV', 'WITHSCORES')
local away = last[2] and math.abs(now - tonumber(last[2])) > tonumber(ARGV[3])
if away then redis.call('SET', prefix .. ':grace', string.format('%.0f', now + tonumber(ARGV[4]))) end
redis.call('ZADD', receivers_key, now, ARGV[2])
redis.call('ZREMRANGEBYSCORE', receivers_key, '-inf', string.format('(%.0f', now - 86400000))
-- A clock that was set back leaves signs of life in the future.
redis.call('ZREMRANGEBYSCORE', receivers_key, string.format('(%.0f', now), '+inf')
return away and 1 or 0
