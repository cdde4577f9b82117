-- How many agents have enough of what, by counts alone. Agents that fell silent since the last sweep count as
-- placeable: whoever wants exact figures sweeps first.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 unused   3 the epoch that the caller trusts
--          4 agent type   5 pool (encoded, empty for any)   6 min free VRAM   7 min free cores
--          8 GPU type, empty for any
-- Result   {'epoch', the epoch in force or ''} when it is not the caller's, else {'ok', placeable agents,
--          with enough VRAM, with enough cores, with both, silent with both, busy with both, cordoned with both,
--          whether a machine is big enough when idle: 1, 0, or -1 when some do not say how big they are,
--          or there are too many kinds of machines to look through}
--!include common ladder sets

local epoch = redis.call('GET', prefix .. ':epoch')
if epoch ~= ARGV[3] then return {'epoch', epoch or ''} end
local agent_type, pool, min_vram, min_cores = ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[7])

local by_vram = prefix .. ':' .. agent_type .. (pool ~= '' and ':pool:' .. pool or '') .. ':vram'
local enough_cores = sets_with(agent_type, pool, min_cores)
local with_cores = 0
for _, key in ipairs(enough_cores) do with_cores = with_cores + redis.call('ZCARD', key) end

local function hidden(state)
    return count_in(sets_with(agent_type .. state, pool, min_cores), min_vram)
end

-- Fleets are made of few kinds of machines. One of more kinds than this is not searched through.
local most_shapes = 1000

local both = count_in(enough_cores, min_vram)

local function possible()
    if both > 0 and ARGV[8] == '' then return 1 end
    local key = prefix .. ':' .. agent_type .. (pool ~= '' and ':pool:' .. pool or '') .. ':shapes'
    if redis.call('HLEN', key) > most_shapes then return -1 end
    local answer = 0
    for _, shape in ipairs(redis.call('HKEYS', key)) do
        local total, physical, gpu = string.match(shape, '^(%S+) (%S+) (%S+)$')
        if ARGV[8] == '' or ARGV[8] == gpu then
            local vram, cores = tonumber(total), tonumber(physical)
            local no_vram, no_cores = vram == 0 and gpu ~= 'none', cores == 0
            if (no_vram or vram >= tonumber(min_vram)) and (no_cores or cores >= min_cores) then
                if not (no_vram or no_cores) then return 1 end
                answer = -1
            end
        end
    end
    return answer
end

return {'ok', redis.call('ZCARD', by_vram), redis.call('ZCOUNT', by_vram, min_vram, '+inf'), with_cores,
    both, hidden(':silent'), hidden(':busy'), hidden(':cordoned'), possible()}
