-- Time, ids and key names. Included first by every script.
-- Key names stand in app/index/keys.py too, where Python needs them; a test holds the two together.

local prefix = KEYS[1]
local stream = prefix .. ':heartbeats'
local seen_key = prefix .. ':seen'
local silent_key = prefix .. ':silent'
local offline_key = prefix .. ':offline'

local function agent_key(agent_id)
    return prefix .. ':agent:' .. agent_id
end

-- Tests inject a time as ARGV[1]; in production it is empty and the server's own counts.
local injected = ARGV[1] ~= ''
local function read_clock()
    if injected then return tonumber(ARGV[1]) end
    local time = redis.call('TIME')
    return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local now = read_clock()

-- Lua's numbers lose digits above 2^53: decimal strings are compared as strings.
local function greater(a, b)
    if #a ~= #b then return #a > #b end
    return a > b
end

local function split_id(id)
    return string.match(id, '^(%d+)-(%d+)$')
end

-- The id for a new entry of a stream, by the same clock as everything else in this script.
local function next_id(key)
    if not injected then return '*' end
    -- Like '*', an injected id never goes below the last one when the clock steps back, or XSETID raised it.
    local info = redis.pcall('XINFO', 'STREAM', key)
    local ms = now
    for i = 1, info.err and 0 or #info, 2 do
        if info[i] == 'last-generated-id' then ms = math.max(ms, tonumber((split_id(info[i + 1])))) end
    end
    return string.format('%.0f-*', ms)
end

local function append(...)
    return redis.call('XADD', stream, next_id(stream), ...)
end

local function append_transition(agent_id, kind, reason, position, flapping)
    return append('transition', kind, 'agent_id', agent_id, 'reason', reason, 'position', position,
        'at_ms', string.format('%.0f', now), 'flapping', flapping)
end
