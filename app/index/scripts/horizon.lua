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
    local unapplied = redis.call('XRANGE', stream, delivered and '(' .. delivered or '-', '+', 'COUNT', 1)[1]
    local oldest_id = unapplied and unapplied[1]
    if delivered then
        local pending = redis.call('XPENDING', stream, 'index')
        if pending[1] > 0 then oldest_id = pending[2] end
    end
    if not oldest_id then return now end
    local until_ms = tonumber((split_id(oldest_id)))
    -- After the clock was set back ids stand still ahead of it, and do not say when an entry came, not even once
    -- the clock has caught up with them. What was applied last was seen when it was applied.
    local jump = redis.call('HMGET', prefix .. ':clock', 'at_ms', 'ahead_ms')
    -- A rebuild that raises ids above the clock knows only how far they run ahead.
    local undated = jump[2] and until_ms > tonumber(jump[1] or 0) and until_ms <= tonumber(jump[2])
    if until_ms <= now and not undated then return until_ms end
    local last = redis.call('ZRANGE', seen_key, string.format('%.0f', now), '-inf', 'BYSCORE', 'REV',
        'LIMIT', 0, 1, 'WITHSCORES')
    return tonumber(last[2] or jump[1] or now)
end

-- Redis's clock may be set back by that much before anybody notices; a smaller step nobody notices at all.
local unnoticed_ms = 15000

-- The window of `seen` that counts as alive. Until silence has been judged for offline_after_ms since the server's
-- clock was set (jump.lua keeps note) it stretches by as much as the clock went forwards, and takes in what a clock
-- set back left in the future; after that only what may lie there unnoticed is a sign of life.
local function alive_window(offline_after_ms)
    local jump = redis.call('HMGET', prefix .. ':clock', 'at_ms', 'shift_ms')
    local oldest, newest = judged_until(), now + unnoticed_ms
    if jump[1] and oldest - tonumber(jump[1]) < offline_after_ms then
        oldest = oldest - math.max(0, tonumber(jump[2]))
        newest = math.huge
    end
    return oldest - offline_after_ms, newest
end

-- Freshness, with the costly part put off until a candidate looks silent at all.
local function freshness(offline_after_ms)
    local oldest, newest = now - offline_after_ms, now + unnoticed_ms
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
