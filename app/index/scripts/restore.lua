-- Puts agents back as the record knows them: heartbeat fields unless the index knows something newer, the boots
-- that it has forgotten in any case, cordons unless one was set or lifted later. A key that is no hash is replaced;
-- what the agent was in the sets and totals by the old one stays until the next audit.
--
-- KEYS[1]  prefix of the shard
-- ARGV[1]  now in ms, empty for the server's time
-- ARGV[2]  offline_after_ms
-- ARGV[3…] per agent: agent_id, last_id, boot_id, seq, retired boots (one "seq boot_id" a line), fingerprint,
--          status, place, machine, cordon (a document, empty for none), cordon's log id (empty for never any),
--          when it expires in ms (empty for never), the hash's other fields as a JSON array of field, value, …
-- Result   number of agents put back
--!include common order ladder place feed totals state gap

local restored = 0
local offline_after_ms = tonumber(ARGV[2])

-- By stream order alone: what is recorded was judged when it was recorded.
local function compare(id, known)
    if not known or known == '' then return 'applied' end
    return judge(known, nil, nil, nil, id, '', '', 0)
end

-- Ids begin anew when Redis loses its data: after the clock was set back they lie below the recorded ones until the
-- rebuild raises them. What was reported in between is the newer by its own count. A goodbye is left to the record:
-- it would not hear of this one.
local function later_by_seq(known, boot, seq)
    return boot ~= '' and known[4] == boot and greater(known[5], seq)
end

-- Without what the record remembers of boots, an old one would be new to an index that has lost its data.
-- Returns true when the index took a heartbeat from one that must not have won: then the record is right.
local function recall_boots(key, last_id, boot, seq, boots)
    local known = redis.call('HMGET', key, 'last_id', 'boot_id', 'seq', 'boots')
    local holder = known[2] or ''
    -- Heartbeats without a boot leave holder and seq as they are.
    if last_id ~= known[1] and not (holder == boot and known[3] == seq) then
        local outcome = judge(last_id, boot, seq, boots, known[1], holder, known[3] or '', offline_after_ms)
        if outcome ~= 'applied' then return true end
    end
    local lines, named = {}, {[holder] = true, [''] = true}
    local function remember(old_seq, old_boot)
        if not named[old_boot] and #lines < kept_boots - 1 then
            named[old_boot] = true
            lines[#lines + 1] = old_seq .. ' ' .. old_boot
        end
    end
    for old_seq, old_boot in string.gmatch(known[4] or '', '(%d+) ([^\n]+)') do remember(old_seq, old_boot) end
    if holder == '' then
        redis.call('HSET', key, 'boot_id', boot, 'seq', seq)
    else
        remember(seq, boot)
    end
    for old_seq, old_boot in string.gmatch(boots, '(%d+) ([^\n]+)') do remember(old_seq, old_boot) end
    redis.call('HSET', key, 'boots', table.concat(lines, '\n'))
    return false
end

local at = 3
while at <= #ARGV do
    local agent_id, last_id, status = ARGV[at], ARGV[at + 1], ARGV[at + 6]
    local place, machine = ARGV[at + 7], ARGV[at + 8]
    local cordon, cordon_id, expires_ms = ARGV[at + 9], ARGV[at + 10], ARGV[at + 11]
    local fields = ARGV[at + 12]
    local key = agent_key(agent_id)
    local state = read_state(agent_id)
    local known = redis.pcall('HMGET', key, 'cordon', 'cordon_id', 'last_id', 'boot_id', 'seq')
    if known.err then
        -- Whatever somebody made of the key would stop every rebuild.
        redis.call('DEL', key)
        known = {}
    end
    local cordoned = known[1] and known[1] ~= '' or false
    local fresher = compare(last_id, known[3]) == 'applied'
    if fresher and state and state.status ~= 'offline' and later_by_seq(known, ARGV[at + 2], ARGV[at + 3]) then
        redis.call('HSET', key, 'last_id', last_id)
        -- The record refuses that entry for its id, and hears of it as of one that is lost: from the hash.
        note_lost(true, known[3], known[3], 1)
        fresher = false
    end
    if state and not fresher then
        fresher = recall_boots(key, last_id, ARGV[at + 2], ARGV[at + 3], ARGV[at + 4])
    end
    -- The record may not have heard yet that the agent was forgotten: neither it nor its cordon comes back.
    local forgotten = known[3] and not state and not fresher
    if not forgotten and cordon_id ~= '' and compare(cordon_id, known[2]) ~= 'reordered' then
        cordoned = cordon ~= ''
        redis.call('HSET', key, 'cordon', cordon, 'cordon_id', cordon_id)
        if cordoned then
            redis.call('ZADD', prefix .. ':cordons', expires_ms ~= '' and expires_ms or '+inf', agent_id)
        else
            redis.call('ZREM', prefix .. ':cordons', agent_id)
        end
    end
    local indexed
    if fresher then
        indexed = scoped(place, status, cordoned)
        local seen = math.min(tonumber((split_id(last_id))), now)
        redis.call('HSET', key, 'last_id', last_id, 'seen', seen, 'boot_id', ARGV[at + 2], 'seq', ARGV[at + 3],
            'boots', ARGV[at + 4], 'fingerprint', ARGV[at + 5], 'machine', machine, 'indexed', indexed,
            unpack(cjson.decode(fields)))
        if known[3] then
            redis.call('PERSIST', key)
            for _, set in ipairs({seen_key, silent_key, offline_key}) do redis.call('ZREM', set, agent_id) end
        end
        redis.call('ZADD', status == 'offline' and offline_key or seen_key, seen, agent_id)
        restored = restored + 1
    elseif state and state.cordoned ~= cordoned then
        indexed = scoped(state.indexed, state.status, cordoned, redis.call('ZSCORE', silent_key, agent_id))
        status, machine = state.status, state.machine
        redis.call('HSET', key, 'indexed', indexed)
    end
    if indexed then
        move(agent_id, state and state.indexed, indexed)
        recount(agent_id, state, {machine = machine, status = status, indexed = indexed, cordoned = cordoned})
        local agent_type, pool = parse_machine(machine)
        publish('capacity', agent_id, agent_type, pool, indexed, status)
    end
    at = at + 13
end
write_totals()
return restored
