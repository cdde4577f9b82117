-- How many tasks of one size fit, one slice of the sum. An agent takes k tasks when it has k times as much as
-- one needs, so the number of tasks is the sum over k of the agents that have at least k times as much: counts,
-- however many agents there are.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 unused   3 the epoch that the caller trusts
--          4 agent type   5 pool (encoded, empty for any)   6 free VRAM and   7 free cores that a task takes
--          8 first k   9 number of k's to sum up
-- Result   {'epoch', the epoch in force or ''} when it is not the caller's, else
--          {'ok', tasks, agents that take at least the first k, 1 when greater k's may add more,
--           free VRAM in MiB and free cores of all placeable agents}
--!include common ladder sets

local epoch = redis.call('GET', prefix .. ':epoch')
if epoch ~= ARGV[3] then return {'epoch', epoch or ''} end
local vram, cores = tonumber(ARGV[6]), tonumber(ARGV[7])
local first, slice = tonumber(ARGV[8]), tonumber(ARGV[9])

local free_vram, free_cores = 0, 0
local totals = redis.call('HGETALL', prefix .. ':' .. ARGV[4] .. ':totals:' .. (ARGV[5] ~= '' and ARGV[5] or '*'))
for i = 1, #totals, 2 do
    local figure = string.match(totals[i], ':(.+)$')
    if figure == 'vram_available_mib' then free_vram = free_vram + tonumber(totals[i + 1]) end
    if figure == 'cores_available' then free_cores = free_cores + tonumber(totals[i + 1]) end
end

local tasks, agents = 0, 0
for k = first, first + slice - 1 do
    if k * cores > 65536 then return {'ok', tasks, agents, 0, free_vram, free_cores} end
    local taking = count_in(sets_with(ARGV[4], ARGV[5], k * cores), string.format('%.17g', k * vram))
    if k == first then agents = taking end
    if taking == 0 then return {'ok', tasks, agents, 0, free_vram, free_cores} end
    tasks = tasks + taking
end
return {'ok', tasks, agents, 1, free_vram, free_cores}
