-- Types of agents there are, in no order: one slice. Called again with the cursor until that is 0, it names each type
-- that was there all along, some of them maybe twice.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 unused   3 the epoch that the caller trusts
--          4 cursor, 0 to begin   5 slice
-- Result   {'epoch', the epoch in force or ''} when it is not the caller's, else {'ok', cursor, type, …}
--!include common

local epoch = redis.call('GET', prefix .. ':epoch')
if epoch ~= ARGV[3] then return {'epoch', epoch or ''} end

local found = redis.call('HSCAN', prefix .. ':types', ARGV[4], 'COUNT', ARGV[5])
local reply = {'ok', found[1]}
for i = 1, #found[2], 2 do reply[#reply + 1] = found[2][i] end
return reply
