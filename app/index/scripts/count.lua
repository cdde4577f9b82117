-- How many placeable agents have at least this much free. Agents that fell silent since the last sweep count.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 unused   3 the epoch that the caller trusts
--          4 agent type   5 pool (encoded, empty for any)   6 min free VRAM   7 min free cores
-- Result   {'epoch', the epoch in force or ''} when it is not the caller's, else {'ok', number}
--!include common ladder sets

local epoch = redis.call('GET', prefix .. ':epoch')
if epoch ~= ARGV[3] then return {'epoch', epoch or ''} end
return {'ok', count_in(sets_with(ARGV[4], ARGV[5], tonumber(ARGV[7])), ARGV[6])}
