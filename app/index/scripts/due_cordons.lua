-- Agents whose cordons have ended by themselves: one slice. A cordon rather lasts too long than is lost to a clock that
-- was set wrong: nothing ends during a grace or while nobody takes heartbeats in, which is before a jump is noted too,
-- and for an hour after the clock was set forwards cordons end by the time before.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 slice
--          3 who takes heartbeats in says so at least this often (ms)
-- Result   agent ids
--!include common

local held_ms = 3600000

if now < tonumber(redis.call('GET', prefix .. ':grace') or 0) then return {} end
local receiver = redis.call('ZRANGE', prefix .. ':receivers', 0, 0, 'REV', 'WITHSCORES')
if receiver[2] and math.abs(now - tonumber(receiver[2])) > tonumber(ARGV[3]) then return {} end
local jump = redis.call('HMGET', prefix .. ':clock', 'at_ms', 'shift_ms')
local due = now
if jump[1] and now - tonumber(jump[1]) < held_ms then due = now - math.max(0, tonumber(jump[2])) end
return redis.call('ZRANGE', prefix .. ':cordons', '-inf', string.format('%.0f', due), 'BYSCORE', 'LIMIT', 0, ARGV[2])
