-- The sets that a search reads.

-- Disjoint; together they hold exactly the agents with that many free cores. The pool is empty for any.
local function sets_with(agent_type, pool, min_cores)
    local scope = prefix .. ':' .. agent_type
    if pool ~= '' then scope = scope .. ':pool:' .. pool end
    local keys = {}
    for _, name in ipairs(covering(min_cores)) do keys[#keys + 1] = scope .. ':vram:cores:' .. name end
    return keys
end

local function count_in(keys, min_vram)
    local total = 0
    for _, key in ipairs(keys) do total = total + redis.call('ZCOUNT', key, min_vram, '+inf') end
    return total
end
