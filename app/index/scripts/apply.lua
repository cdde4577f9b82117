-- Applies heartbeats to the index in the order given, each by the order rule, writing only what changed.
--
-- KEYS[1]  prefix of the shard
-- ARGV[1]  now in ms, empty for the server's time
-- ARGV[2]  offline_after_ms
-- ARGV[3…] per heartbeat: agent_id, stream_id, boot_id, seq, fingerprint of everything but the order,
--          status, place ("vram cores type pool", empty without metrics),
--          machine ("type pool gpu_type total_vram_gb physical_cores", the last three "-" when not said),
--          number of the strings that follow: field, value, field, value…
-- Result   an outcome per heartbeat: applied, duplicate, reordered, cloned
--!include common order ladder place feed totals flapping

local offline_after_ms = tonumber(ARGV[2])
local outcomes = {}

-- The agent's new state, all but its order.
local function take_over(key, agent_id, old, status, place, machine)
    local was, cordoned = old.status, old.cordon and old.cordon ~= ''
    local agent_type, pool, gpu = parse_machine(machine)
    if gpu == '-' then
        -- A goodbye without metrics leaves the last ones.
        local _, _, known_gpu, total, physical = parse_machine(old.machine or '- - none 0.0 0')
        machine = table.concat({agent_type, pool, known_gpu, total, physical}, ' ')
        local vram, cores = string.match(old.indexed or '', '^(%S+) (%d+)')
        if vram then place = table.concat({vram, cores, agent_type, pool}, ' ') end
    end
    local indexed = scoped(place, status, cordoned)
    redis.call('HSET', key, 'indexed', indexed, 'machine', machine)
    move(agent_id, old.indexed, indexed)
    local before = was and old.machine
        and {machine = old.machine, status = was, indexed = old.indexed, cordoned = cordoned}
    recount(before, {machine = machine, status = status, indexed = indexed, cordoned = cordoned})
    local moved = (old.indexed or '') ~= indexed
    if moved or was ~= status then
        publish(moved and 'capacity' or 'status', agent_id, agent_type, pool, indexed, status)
    end
end

local at = 3
while at <= #ARGV do
    local agent_id, id, boot, seq = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
    local fingerprint, status = ARGV[at + 4], ARGV[at + 5]
    local place, machine = ARGV[at + 6], ARGV[at + 7]
    local first, count = at + 9, tonumber(ARGV[at + 8])
    at = first + count

    local key = agent_key(agent_id)
    local old = redis.call('HMGET', key, 'last_id', 'boot_id', 'seq', 'boots', 'fingerprint', 'indexed', 'status',
        'changes', 'machine', 'cordon')
    local outcome, holder, holder_seq, boots =
        judge(old[1], old[2], old[3], old[4], id, boot, seq, offline_after_ms)
    if outcome == 'applied' then
        -- An entry's id runs ahead of the clock after the clock stepped back; nobody is seen in the future.
        local seen = math.min(tonumber((split_id(id))), now)
        local was = old[7]
        if old[5] == fingerprint and (old[2] or '') == holder then
            redis.call('HSET', key, 'last_id', id, 'seq', holder_seq)
        else
            -- A forgotten agent leaves a tombstone that expires; its return must not expire with it.
            if old[1] and not was then redis.call('PERSIST', key) end
            redis.call('ZREM', silent_key, agent_id)
            redis.call('HSET', key, 'last_id', id, 'boot_id', holder, 'seq', holder_seq,
                'fingerprint', fingerprint, unpack(ARGV, first, first + count - 1))
            if boots then redis.call('HSET', key, 'boots', boots) end
            take_over(key, agent_id, {indexed = old[6], status = was, machine = old[9], cordon = old[10]},
                status, place, machine)
        end
        if status == 'offline' then
            redis.call('ZREM', seen_key, agent_id)
            redis.call('ZADD', offline_key, seen, agent_id)
        else
            redis.call('ZADD', seen_key, seen, agent_id)
        end
        if was ~= status then
            if status ~= 'offline' then redis.call('ZREM', offline_key, agent_id) end
            append_transition(agent_id, status, 'heartbeat', id, note_change(agent_id, old[8]))
        end
    elseif outcome == 'cloned' then
        redis.call('ZADD', prefix .. ':cloned', now, agent_id)
    end
    outcomes[#outcomes + 1] = outcome
end
return outcomes
