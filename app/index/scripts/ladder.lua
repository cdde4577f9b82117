-- Rungs and bands: cores -> names of sets. The same arithmetic as app/models/ladder.py.

local function band(start, size)
    return string.format('%d-%d', start, start + size - 1)
end

-- The sets that an agent with that many free cores is in.
local function memberships(cores)
    local names = {}
    local rung = 1
    while rung <= cores do
        names[#names + 1] = rung .. '+'
        rung = rung * 2
    end
    local size = rung / 4
    while size >= 1 do
        local start = math.floor(cores / size) * size
        if math.floor(cores / size) % 2 == 1 then names[#names + 1] = band(start, size) end
        size = size / 2
    end
    return names
end

-- The disjoint sets that together hold exactly the agents with at least that many free cores.
local function covering(min_cores)
    local names = {}
    local start = math.max(1, min_cores)
    while true do
        local size = 1
        while start % (size * 2) == 0 do size = size * 2 end
        if size == start then break end
        names[#names + 1] = band(start, size)
        start = start + size
    end
    names[#names + 1] = string.format('%d+', start)
    return names
end
