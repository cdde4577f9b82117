-- The greatest number of free cores below a threshold that enough agents with enough VRAM reach. Bisects over
-- counts, so that no set is walked.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 unused   3 the epoch that the caller trusts
--          4 agent type   5 pool (encoded, empty for any)   6 min free VRAM   7 the threshold
--          8 how many are enough
-- Result   {'epoch', the epoch in force or ''} when it is not the caller's, else
--          {'ok', cores}; 1 core where fewer than enough are below the threshold
--!include common ladder sets

local epoch = redis.call('GET', prefix .. ':epoch')
if epoch ~= ARGV[3] then return {'epoch', epoch or ''} end

local function with(cores)
    return count_in(sets_with(ARGV[4], ARGV[5], cores), ARGV[6])
end

local above = math.min(tonumber(ARGV[7]), 65537)
local enough = (above > 65536 and 0 or with(above)) + tonumber(ARGV[8])
local low, high = 1, above
while high - low > 1 do
    local middle = math.floor((low + high) / 2)
    if with(middle) >= enough then low = middle else high = middle end
end
return {'ok', low}
