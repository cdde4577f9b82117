-- Keeps note that the server's clock was set, and gives everybody the time to report by the new one.
-- Several watchers see the same jump: the first one's note counts.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 shift_ms, negative when it was set back
--          3 offline_after_ms   4 tolerance_ms
-- Result   1 when the note was taken, else 0
--!include common

local clock_key = prefix .. ':clock'
local shift, tolerance = tonumber(ARGV[2]), tonumber(ARGV[4])
local known = redis.call('HMGET', clock_key, 'at_ms', 'shift_ms', 'last_shift_ms')
local total = shift
if known[1] then
    local at = tonumber(known[1])
    if math.abs(now - at) < 3 * tolerance and math.abs(shift - tonumber(known[3])) < tolerance then return 0 end
    -- A jump on the heels of another (by the time before it): agents may have been seen before both.
    if math.abs(now - shift - at) < tonumber(ARGV[3]) then total = total + math.max(0, tonumber(known[2])) end
end
-- How far ids run ahead: new ones stand still until the clock has caught up with the last one.
local ahead = 0
local info = redis.pcall('XINFO', 'STREAM', stream)
for i = 1, info.err and 0 or #info, 2 do
    if info[i] == 'last-generated-id' then ahead = tonumber((split_id(info[i + 1]))) end
end
redis.call('HSET', clock_key, 'at_ms', string.format('%.0f', now), 'shift_ms', string.format('%.0f', total),
    'last_shift_ms', string.format('%.0f', shift), 'ahead_ms', string.format('%.0f', ahead),
    'readmit_ms', string.format('%.0f', shift))
redis.call('SET', prefix .. ':grace', string.format('%.0f', now + tonumber(ARGV[3])))
return 1
