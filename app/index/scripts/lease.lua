-- Takes or keeps the lease on a duty.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 unused   2 duty   3 holder   4 ttl_ms (0 gives the lease back)
-- Result   1 when the caller holds it now, else 0

local key = KEYS[1] .. ':lease:' .. ARGV[2]
local holder = redis.call('GET', key)
if holder and holder ~= ARGV[3] then return 0 end
if ARGV[4] == '0' then
    redis.call('DEL', key)
    return 0
end
redis.call('SET', key, ARGV[3], 'PX', ARGV[4])
return 1
