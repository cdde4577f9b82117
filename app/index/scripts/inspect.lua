-- Holds agents' hashes against the sets they should stand in, each agent atomically.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 "1" to put right what is wrong   3… agent ids
-- Result   {agent_id, what is wrong, agent_id, what is wrong, …}
--!include common ladder place feed totals state

local repairs = ARGV[2] == '1'
local reply = {}

local function report(agent_id, what)
    reply[#reply + 1] = agent_id
    reply[#reply + 1] = what
end

local function check_place(agent_id, place)
    local by_type, by_pool = scopes(place)
    local expected = {{by_type .. ':vram', place.vram}, {by_pool .. ':vram', place.vram},
        {by_type .. ':cores', place.cores}}
    for _, name in ipairs(memberships(place.cores)) do
        expected[#expected + 1] = {by_type .. ':vram:cores:' .. name, place.vram}
        expected[#expected + 1] = {by_pool .. ':vram:cores:' .. name, place.vram}
    end
    for _, one in ipairs(expected) do
        local score = redis.call('ZSCORE', one[1], agent_id)
        if not score or tonumber(score) ~= tonumber(one[2]) then
            report(agent_id, (score and 'wrong score in ' or 'missing from ') .. one[1])
            if repairs then redis.call('ZADD', one[1], one[2], agent_id) end
        end
    end
end

-- What every agent's hash has; a tombstone has no status. app/index/states.py names the same.
local function broken(agent_id)
    local fields = redis.call('HMGET', agent_key(agent_id), 'status', 'agent_type', 'pool_name', 'hostname',
        'boot_id', 'seq', 'last_id', 'indexed', 'machine')
    for i = 2, fields[1] and 9 or 0 do
        if not fields[i] then return true end
    end
    return false
end

for i = 3, #ARGV do
    local agent_id = ARGV[i]
    local state = read_state(agent_id)
    local kind = state and 'hash' or redis.call('TYPE', agent_key(agent_id)).ok
    if kind ~= 'hash' and kind ~= 'none' then
        report(agent_id, 'its key is no hash')
        if repairs then
            redis.call('DEL', agent_key(agent_id))
            for _, key in ipairs({seen_key, silent_key, offline_key}) do redis.call('ZREM', key, agent_id) end
        end
    elseif state and broken(agent_id) then
        report(agent_id, 'its hash lacks fields')
    elseif state then
        local seen, silent, offline = redis.call('ZSCORE', seen_key, agent_id),
            redis.call('ZSCORE', silent_key, agent_id), redis.call('ZSCORE', offline_key, agent_id)
        local right = (state.status == 'offline') == (offline and true or false)
            and (seen and 1 or 0) + (silent and 1 or 0) + (offline and 1 or 0) == 1
        if not right then
            report(agent_id, 'in the wrong sets of ' .. seen_key .. ', ' .. silent_key .. ', ' .. offline_key)
            if repairs then
                -- Silent until it reports or is declared offline: never alive by mistake.
                local last_ms = split_id(state.last_id)
                for _, key in ipairs({seen_key, silent_key, offline_key}) do redis.call('ZREM', key, agent_id) end
                redis.call('ZADD', state.status == 'offline' and offline_key or silent_key, last_ms, agent_id)
                redis.call('HSET', agent_key(agent_id), 'fingerprint', '')
                silent = state.status ~= 'offline'
            end
        end
        local indexed = scoped(state.indexed, state.status, state.cordoned, silent)
        if indexed ~= state.indexed then
            report(agent_id, 'indexed as "' .. state.indexed .. '" instead of "' .. indexed .. '"')
            if repairs then change_state('capacity', agent_id, state, {indexed = indexed}) end
        end
        local place = parse_indexed(repairs and indexed or state.indexed)
        if place then check_place(agent_id, place) end
        local member = machine_member(agent_id, {machine = state.machine, indexed = repairs and indexed or state.indexed})
        local machines_key = prefix .. ':' .. parse_machine(state.machine) .. ':machines'
        if member and not redis.call('ZSCORE', machines_key, member) then
            report(agent_id, 'missing from ' .. machines_key)
            if repairs then redis.call('ZADD', machines_key, 0, member) end
        end
    end
end
write_totals()
return reply
