-- Totals by type, pool and GPU type, kept with every change, so that nobody walks the fleet to add it up.
-- An agent counts under what its hash said when it was counted: `machine` ("type pool gpu_type total_vram_gb
-- physical_cores"), `status`, `indexed` and whether it is cordoned. Amounts of memory are whole MiB.

local function mib(gb)
    return math.floor(tonumber(gb) * 1024 + 0.5)
end

local function parse_machine(machine)
    return string.match(machine, '^(%S+) (%S+) (%S+) (%S+) (%S+)$')
end

-- What a script adds up; `write_totals` at its end writes each sum once, however many agents it moved.
local sums = {}

local function add(key, field, amount)
    if amount == 0 then return end
    local fields = sums[key]
    if not fields then
        fields = {}
        sums[key] = fields
    end
    fields[field] = (fields[field] or 0) + amount
end

local function free_figures(indexed)
    local vram, cores, scope = string.match(indexed or '', '^(%S+) (%d+) (%S+)')
    if not vram or string.find(scope, ':', 1, true) then return 0, 0, 0 end
    return 1, mib(vram), tonumber(cores)
end

-- The totals of the agent's pool, and those of its whole type: no pool's encoded name is a star.
local function totals_keys(agent_type, pool)
    local by_type = prefix .. ':' .. agent_type .. ':totals:'
    return {by_type .. pool, by_type .. '*'}
end

local function count(sign, machine, status, indexed, cordoned)
    local agent_type, pool, gpu, total, physical = parse_machine(machine)
    local placeable, vram, cores = free_figures(indexed)
    for _, key in ipairs(totals_keys(agent_type, pool)) do
        add(key, gpu .. ':' .. status, sign)
        if cordoned then add(key, gpu .. ':cordoned', sign) end
        if status ~= 'offline' then
            add(key, gpu .. ':vram_total_mib', sign * mib(total))
            add(key, gpu .. ':cores_physical', sign * tonumber(physical))
        end
        add(key, gpu .. ':placeable', sign * placeable)
        add(key, gpu .. ':vram_available_mib', sign * vram)
        add(key, gpu .. ':cores_available', sign * cores)
    end
end

-- Which machines there are at all, for "never possible": shapes, pools and types with their numbers of agents.
local numbers, pools = {}, {}

local function enroll(sign, machine)
    local agent_type, pool, gpu, total, physical = parse_machine(machine)
    local by_type = prefix .. ':' .. agent_type
    local shape = total .. ' ' .. physical .. ' ' .. gpu
    for key, field in pairs({
        [prefix .. ':types'] = agent_type,
        [by_type .. ':shapes'] = shape,
        [by_type .. ':pool:' .. pool .. ':shapes'] = shape,
    }) do
        numbers[key] = numbers[key] or {}
        numbers[key][field] = (numbers[key][field] or 0) + sign
    end
    pools[by_type] = pools[by_type] or {}
    pools[by_type][pool] = (pools[by_type][pool] or 0) + sign
end

-- Every script that moves agents ends with it. What somebody damaged costs its own sums only: nothing would tell later
-- which others went with them. The first fault is raised in the end, with the key behind the server's words.
local function write_totals()
    local fault
    local function write(command, key, ...)
        local reply = redis.pcall(command, key, ...)
        if type(reply) ~= 'table' or not reply.err then return tonumber(reply) end
        fault = fault or reply.err .. ' (' .. key .. ')'
    end
    for key, fields in pairs(sums) do
        for field, amount in pairs(fields) do
            if amount ~= 0 then write('HINCRBY', key, field, string.format('%.0f', amount)) end
        end
    end
    for key, fields in pairs(numbers) do
        for field, number in pairs(fields) do
            local left = number ~= 0 and write('HINCRBY', key, field, number)
            if left and left <= 0 then redis.call('HDEL', key, field) end
        end
    end
    for by_type, of_type in pairs(pools) do
        for pool, number in pairs(of_type) do
            local left = number ~= 0 and write('ZINCRBY', by_type .. ':pools', number, pool)
            if left and left <= 0 then
                redis.call('ZREM', by_type .. ':pools', pool)
                redis.call('DEL', by_type .. ':totals:' .. pool)
            end
        end
    end
    if fault then error(redis.error_reply(fault)) end
end

-- Placeable agents by what their machines are, so that one that is big enough is found however many are not:
-- members of one score, "total_vram_gb physical_cores gpu_type pool agent_id".
local function machine_member(agent_id, counted)
    if not counted or free_figures(counted.indexed) == 0 then return nil end
    local _, pool, gpu, total, physical = parse_machine(counted.machine)
    return table.concat({total, physical, gpu, pool, agent_id}, ' ')
end

local function change_machine(agent_id, old, new)
    local before, after = machine_member(agent_id, old), machine_member(agent_id, new)
    if before == after then return end
    if before then redis.call('ZREM', prefix .. ':' .. parse_machine(old.machine) .. ':machines', before) end
    if after then redis.call('ZADD', prefix .. ':' .. parse_machine(new.machine) .. ':machines', 0, after) end
end

-- Brings the totals from what an agent counted as to what it counts as now; nil for not at all.
local function recount(agent_id, old, new)
    if old and new and old.machine == new.machine and old.status == new.status
        and old.cordoned == new.cordoned then
        if old.indexed == new.indexed then return end
        local agent_type, pool, gpu = parse_machine(new.machine)
        local placeable_before, vram_before, cores_before = free_figures(old.indexed)
        local placeable, vram, cores = free_figures(new.indexed)
        if placeable ~= placeable_before then change_machine(agent_id, old, new) end
        for _, key in ipairs(totals_keys(agent_type, pool)) do
            add(key, gpu .. ':placeable', placeable - placeable_before)
            add(key, gpu .. ':vram_available_mib', vram - vram_before)
            add(key, gpu .. ':cores_available', cores - cores_before)
        end
        return
    end
    change_machine(agent_id, old, new)
    local moved = not (old and new and old.machine == new.machine)
    if new and moved then enroll(1, new.machine) end
    if new then count(1, new.machine, new.status, new.indexed, new.cordoned) end
    if old then count(-1, old.machine, old.status, old.indexed, old.cordoned) end
    if old and moved then enroll(-1, old.machine) end
end
