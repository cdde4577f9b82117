-- Opens an epoch after a rebuild: from now on lookups trust the index, and a grace begins, since agents could
-- not report while Redis was away. The rebuild's marker proves that nothing was flushed since it began, and that
-- it began on this run of the server.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 marker   3 layout   4 run id of the server
--          5 offline_after_ms
-- Result   the epoch, or false when the marker is gone
--!include common feed

local marker_key = prefix .. ':rebuild'
if redis.call('GET', marker_key) ~= ARGV[2] then return false end
redis.call('DEL', marker_key)
local epoch = string.format('%.0f %s %s', now, ARGV[3], ARGV[4])
redis.call('SET', prefix .. ':epoch', epoch)
redis.call('SET', prefix .. ':grace', string.format('%.0f', now + tonumber(ARGV[5])))
publish('rebuild', '', '', '', '', '')
return epoch
