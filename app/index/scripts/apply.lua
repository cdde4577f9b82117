-- Applies heartbeats to the index in the order given, each by the order rule, writing only what changed.
--
-- KEYS[1]  prefix of the shard
-- ARGV[1]  now in ms, empty for the server's time
-- ARGV[2]  offline_after_ms
-- ARGV[3…] per heartbeat: agent_id, stream_id, boot_id, seq, fingerprint of everything but the order,
--          status, place ("vram cores type pool", empty without metrics),
--          machine ("type pool gpu_type total_vram_gb physical_cores", the last three "-" when not said),
--          the hash's other fields, as a JSON array of field, value, field, value…
-- Result   {outcomes, fault}: per heartbeat applied, duplicate, reordered, cloned, or the error that its agent's state
--          led to; and nil, or why totals could not be written. An error alone where the server refuses.
--!include common order ladder place feed totals flapping memory

local offline_after_ms = tonumber(ARGV[2])
local outcomes = {}
local wanted_key = memory_key(0)
local memory_wanted = redis.call('EXISTS', wanted_key) == 1

-- Where the agent belongs and as what it counts, from what its heartbeat says and what was known.
local function settle(old, status, place, machine)
    local agent_type, pool, gpu = parse_machine(machine)
    if gpu == '-' then
        -- A goodbye without metrics leaves the last ones.
        local _, _, known_gpu, total, physical = parse_machine(old.machine or '- - none 0.0 0')
        machine = table.concat({agent_type, pool, known_gpu, total, physical}, ' ')
        local vram, cores = string.match(old.indexed or '', '^(%S+) (%d+)')
        if vram then place = table.concat({vram, cores, agent_type, pool}, ' ') end
    end
    return {machine = machine, status = status, indexed = scoped(place, status, old.cordoned),
        cordoned = old.cordoned}
end

-- Whether a search that waits for memory may find the agent now and did not before.
local function memory_helps(agent_id, before)
    local after = redis.call('HGET', agent_key(agent_id), 'memory_available_gb')
    return after and tonumber(after) > tonumber(before or '0')
        and redis.call('ZCOUNT', wanted_key, '(' .. (before or '0'), after) > 0
end

-- Brings sets, totals and feed in line.
local function follow(agent_id, old, new, memory_before)
    move(agent_id, old.indexed, new.indexed)
    recount(agent_id, old.status and old.machine and old, new)
    local agent_type, pool, gpu = parse_machine(new.machine)
    local found = old.indexed ~= new.indexed
    if not found and free_figures(new.indexed) == 1 then
        -- What filters see has changed, though the sets do not know it.
        found = select(3, parse_machine(old.machine)) ~= gpu
            or (memory_wanted and memory_helps(agent_id, memory_before))
    end
    if found or old.status ~= new.status then
        publish(found and 'capacity' or 'status', agent_id, agent_type, pool, new.indexed, new.status)
    end
end

local function apply_one(at)
    local agent_id, id, boot, seq = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
    local fingerprint, status = ARGV[at + 4], ARGV[at + 5]
    local place, machine = ARGV[at + 6], ARGV[at + 7]
    local fields = ARGV[at + 8]

    local key = agent_key(agent_id)
    local known = redis.call('HMGET', key, 'last_id', 'boot_id', 'seq', 'boots', 'fingerprint', 'indexed',
        'status', 'changes', 'machine', 'cordon')
    local outcome, holder, holder_seq, boots =
        judge(known[1], known[2], known[3], known[4], id, boot, seq, offline_after_ms)
    if outcome ~= 'applied' then
        if boots then redis.call('HSET', key, 'boots', boots) end
        if outcome == 'cloned' then redis.call('ZADD', prefix .. ':cloned', now, agent_id) end
        return outcome
    end
    -- An entry's id runs ahead of the clock after the clock stepped back; nobody is seen in the future.
    local seen = math.min(tonumber((split_id(id))), now)
    local was = known[7]
    if known[5] == fingerprint and (known[2] or '') == holder then
        redis.call('HSET', key, 'last_id', id, 'seen', seen, 'seq', holder_seq)
    else
        local old = {status = was, indexed = known[6] or '', machine = known[9],
            cordoned = known[10] and known[10] ~= '' or false}
        local new = settle(old, status, place, machine)
        local memory_before = memory_wanted and redis.call('HGET', key, 'memory_available_gb') or nil
        -- A full server refuses a call at its first write, unless that one only deletes: were the first a ZREM,
        -- this call would be run and the one before it, refused, would be tried again after it.
        redis.call('HSET', key, 'last_id', id, 'seen', seen, 'boot_id', holder, 'seq', holder_seq, 'boots',
            boots or known[4] or '', 'fingerprint', fingerprint, 'indexed', new.indexed,
            'machine', new.machine, unpack(cjson.decode(fields)))
        -- A forgotten agent leaves a tombstone that expires; its return must not expire with it.
        if known[1] and not was then redis.call('PERSIST', key) end
        redis.call('ZREM', silent_key, agent_id)
        follow(agent_id, old, new, memory_before)
    end
    if status == 'offline' then
        redis.call('ZREM', seen_key, agent_id)
        redis.call('ZADD', offline_key, seen, agent_id)
    else
        redis.call('ZADD', seen_key, seen, agent_id)
    end
    if was ~= status then
        if status ~= 'offline' then redis.call('ZREM', offline_key, agent_id) end
        append_transition(agent_id, status, 'heartbeat', id, note_change(agent_id, known[8]))
    end
    return outcome
end

-- Some servers raise a table, others its text.
local function words(fault)
    return type(fault) == 'table' and fault.err or fault
end

-- Whether the server takes this from nobody now, or not from this user, rather than that the agent is damaged. Taken
-- for the server's, what is the agent's would stop everybody for ever; the other way it costs this heartbeat.
local function refuses(fault)
    local code = string.match(fault, '^(%u+) ')
    if code == 'ERR' then
        return string.find(fault, 'ACL failure', 1, true) or string.find(fault, 'user executing', 1, true)
    end
    return code and code ~= 'WRONGTYPE'
end

for at = 3, #ARGV, 9 do
    -- A damaged agent holds up nobody: those after it, tried again later, would be behind what followed them.
    local done, outcome = pcall(apply_one, at)
    if not done then
        local fault = words(outcome)
        outcome = redis.error_reply(fault)
        if refuses(fault) then
            pcall(write_totals)
            return outcome
        end
    end
    outcomes[#outcomes + 1] = outcome
end
-- Were the call to fail with them, its repetition would find all applied and nothing to add up.
local written, fault = pcall(write_totals)
return {outcomes, not written and redis.error_reply(words(fault))}
