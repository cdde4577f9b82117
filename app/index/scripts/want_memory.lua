-- Names amounts of free main memory: for at least 15 s the feed tells of agents whose memory grows past one of them.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 most amounts in all   3… amounts in GB
-- Result   1, or 0 when others have named so many that there was no room for all
--!include common memory

local most, all = tonumber(ARGV[2]), 1
for slots_ahead = 0, 1 do
    local key = memory_key(slots_ahead)
    for i = 3, #ARGV do
        if redis.call('ZCARD', key) < most or redis.call('ZSCORE', key, ARGV[i]) then
            redis.call('ZADD', key, ARGV[i], ARGV[i])
        else
            all = 0
        end
    end
    redis.call('PEXPIRE', key, 3 * memory_slot_ms)
end
return all
