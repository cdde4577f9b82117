-- How many agents have at least k times what one task needs, for each k asked for: counts, however many agents
-- there are.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 unused   3 the epoch that the caller trusts
--          4 agent type   5 pool (encoded, empty for any)   6 free VRAM and   7 free cores that a task takes
--          8… the k's, a slice of them
-- Result   {'epoch', the epoch in force or ''} when it is not the caller's, else
--          {'ok', free VRAM in MiB and free cores of all placeable agents, agents for each k, …}
--!include common ladder sets

local epoch = redis.call('GET', prefix .. ':epoch')
if epoch ~= ARGV[3] then return {'epoch', epoch or ''} end
local vram, cores = tonumber(ARGV[6]), tonumber(ARGV[7])

local free_vram, free_cores = 0, 0
local totals = redis.call('HGETALL', prefix .. ':' .. ARGV[4] .. ':totals:' .. (ARGV[5] ~= '' and ARGV[5] or '*'))
for i = 1, #totals, 2 do
    local figure = string.match(totals[i], ':(.+)$')
    if figure == 'vram_available_mib' then free_vram = free_vram + tonumber(totals[i + 1]) end
    if figure == 'cores_available' then free_cores = free_cores + tonumber(totals[i + 1]) end
end

local reply = {'ok', free_vram, free_cores}
for i = 8, #ARGV do
    local k = tonumber(ARGV[i])
    reply[#reply + 1] = count_in(sets_with(ARGV[4], ARGV[5], k * cores), string.format('%.17g', k * vram))
end
return reply
