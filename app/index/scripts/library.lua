#!lua name=headroom
-- Lookups for people with redis-cli, docs/redis.md. They run the very scripts that the service runs, by the
-- server's time, and refuse to answer from an index that may not be trusted.
--!layout
--!functions find get count

local most_rows, slice, slices = 100, 128, 2

local fields = {'agent_type', 'pool_name', 'hostname', 'cpu_cores_available', 'cpu_cores_physical',
    'cpu_load_1min', 'cpu_load_5min', 'cpu_percent', 'memory_available_gb', 'memory_percent',
    'gpu_vram_available_gb', 'gpu_vram_total_gb', 'gpu_type', 'cordon'}

local function refuse(code, detail)
    return redis.error_reply(code .. ' ' .. detail)
end

local function rebuilding()
    return refuse('INDEX_REBUILDING', 'The capacity index is missing or being rebuilt; ask the API meanwhile')
end

-- The epoch in force if it may be trusted: opened by this run of the server, for this layout of the keys.
local function trusted_epoch(prefix)
    local epoch = redis.call('GET', prefix .. ':epoch')
    local opened_for, holder = string.match(epoch or '', '^%d+ (%S+) (%S+)$')
    local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
    if opened_for == layout and holder == run_id then return epoch end
    return nil
end

local function encode_pool(name)
    return (string.gsub(name, '[^%w_.~-]', function(byte) return string.format('%%%02X', string.byte(byte)) end))
end

-- Returns type, min free VRAM, min free cores and pool, or nil and what is wrong with them.
local function read_query(agent_type, vram, cores, pool)
    if not agent_type or #agent_type > 32 or not string.match(agent_type, '^[a-z][a-z0-9-]*$') then
        return nil, 'The agent type is a word such as desktop'
    end
    if not vram or not string.match(vram, '^%d+%.?%d*$') then return nil, 'The free VRAM (GB) is a number' end
    if not cores or not string.match(cores, '^[1-9]%d*$') then
        return nil, 'The free cores are a whole number of at least 1'
    end
    if pool and (#pool == 0 or #pool > 512) then return nil, 'The pool is a name of 1 to 128 characters' end
    -- No agent has more cores than the highest rung; a larger number would only lose digits.
    return agent_type, vram, tostring(math.min(tonumber(cores), 131072)), pool and encode_pool(pool) or ''
end

local function age_s(seen_ms)
    local time = redis.call('TIME')
    return string.format('%.1f', tonumber(time[1]) + tonumber(time[2]) / 1000000 - tonumber(seen_ms) / 1000)
end

-- One row as CLIENT LIST prints its rows. The document is a JSON array whose last three elements are numbers.
local function describe(agent_id, seen_ms, document)
    local pool, vram, cores, load = string.match(document, '^%[(".*"),([^,]+),([^,]+),([^,]+)%]$')
    if not pool then return nil end
    return string.format('%s vram_gb=%s cores=%s load_1min=%s pool=%s age_s=%s', agent_id, vram, cores, load,
        encode_pool(cjson.decode('[' .. pool .. ']')[1]), age_s(seen_ms))
end

local function find_rows(keys, args)
    local agent_type, vram, cores, pool = read_query(args[1], args[2], args[3], args[5])
    local limit = args[4] or '10'
    if not agent_type then return refuse('INVALID_QUERY', vram) end
    if not string.match(limit, '^%d+$') or tonumber(limit) < 1 or tonumber(limit) > most_rows then
        return refuse('INVALID_QUERY', 'The limit is a whole number from 1 to ' .. most_rows)
    end
    limit = tonumber(limit)
    local epoch = trusted_epoch(keys[1])
    if not epoch then return rebuilding() end
    local rows, after_vram, after_id = {}, '', ''
    for part = 1, slices do
        local found = find({keys[1]}, {'', '', epoch, agent_type, pool, vram, cores, limit - #rows,
            after_vram, after_id, '', '', '', part == 1 and limit + 1 or slice, '0'})
        for i = 7, #found, 3 do rows[#rows + 1] = describe(found[i], found[i + 1], found[i + 2]) end
        if #rows >= limit or found[2] == 0 then return rows end
        after_vram, after_id = found[5], found[6]
    end
    return refuse('UNAVAILABLE', 'Too many silent agents are in the way; is a reaper running? Ask the API meanwhile')
end

local function count_rows(keys, args)
    local agent_type, vram, cores, pool = read_query(args[1], args[2], args[3], args[4])
    if not agent_type then return refuse('INVALID_QUERY', vram) end
    local epoch = trusted_epoch(keys[1])
    if not epoch then return rebuilding() end
    return count({keys[1]}, {'', '', epoch, agent_type, pool, vram, cores})[2]
end

local function describe_agent(keys, args)
    local agent_id = string.lower(args[1] or '')
    if not string.match(agent_id, '^%x+-%x+-%x+-%x+-%x+$') or #agent_id ~= 36 then
        return refuse('INVALID_AGENT_ID', 'Invalid agent_id format (must be UUID)')
    end
    local epoch = trusted_epoch(keys[1])
    if not epoch then return rebuilding() end
    local found = get({keys[1]}, {'', '', epoch, agent_id, unpack(fields)})
    if found[1] == 'none' then return refuse('AGENT_NOT_FOUND', 'Agent not found') end
    local described = {'agent_id', agent_id, 'status', found[3] == 1 and found[4] or 'offline'}
    for i, field in ipairs(fields) do
        described[#described + 1], described[#described + 2] = field, found[4 + i] or ''
    end
    described[#described + 1], described[#described + 2] = 'age_s', age_s(found[2])
    return described
end

redis.register_function{function_name = 'headroom_find', callback = find_rows, flags = {'no-writes'},
    description = 'prefix, type, min free VRAM (GB), min free cores, limit, pool: the agents that fit'}
redis.register_function{function_name = 'headroom_count', callback = count_rows, flags = {'no-writes'},
    description = 'prefix, type, min free VRAM (GB), min free cores, pool: how many agents fit'}
redis.register_function{function_name = 'headroom_agent', callback = describe_agent, flags = {'no-writes'},
    description = 'prefix, agent id: one agent'}
