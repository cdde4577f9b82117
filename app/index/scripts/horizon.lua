-- Who may be judged silent.

-- Up to when silence may be judged: the receive time up to which the index group has applied everything.
-- What is still in the stream may hold a heartbeat of just the agent that looks silent.
local function judged_until()
    local groups = redis.pcall('XINFO', 'GROUPS', stream)
    if groups.err then return now end -- no stream: nothing was ever received, nothing is unapplied
    local delivered
    for _, group in ipairs(groups) do
        local info = {}
        for i = 1, #group, 2 do info[group[i]] = group[i + 1] end
        if info.name == 'index' then delivered = info['last-delivered-id'] end
    end
    local first = redis.call('XRANGE', stream, delivered and '(' .. delivered or '-', '+', 'COUNT', 1)[1]
    local until_ms = now
    if first then until_ms = math.min(until_ms, tonumber((split_id(first[1])))) end
    if delivered then
        local pending = redis.call('XPENDING', stream, 'index')
        if pending[1] > 0 then until_ms = math.min(until_ms, tonumber((split_id(pending[2])))) end
    end
    return until_ms
end

-- The window of `seen` that counts as alive. For offline_after_ms after the server's clock was set (jump.lua
-- keeps note) it stretches by as much as the clock went forwards, and takes in what a clock set back left in
-- the future; after that the future is no sign of life.
local function alive_window(offline_after_ms)
    local oldest, newest = judged_until(), now
    local jump = redis.call('HMGET', prefix .. ':clock', 'at_ms', 'shift_ms')
    if jump[1] and now - tonumber(jump[1]) < offline_after_ms then
        oldest = math.min(oldest, now - math.max(0, tonumber(jump[2])))
        newest = math.huge
    end
    return oldest - offline_after_ms, newest
end

-- Freshness, with the costly part put off until a candidate looks silent at all.
local function freshness(offline_after_ms)
    local oldest, newest = now - offline_after_ms, now
    local exact = false
    return function(seen)
        if not seen then return false end
        seen = tonumber(seen)
        if seen >= oldest and seen <= newest then return true end
        if not exact then
            exact = true
            oldest, newest = alive_window(offline_after_ms)
        end
        return seen >= oldest and seen <= newest
    end
end
