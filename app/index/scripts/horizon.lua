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

-- Freshness with the costly part put off until a candidate looks silent at all.
local function freshness(offline_after_ms)
    local oldest = now - offline_after_ms
    local exact = false
    return function(seen)
        if not seen then return false end
        seen = tonumber(seen)
        if seen >= oldest then return true end
        if not exact then
            exact = true
            oldest = judged_until() - offline_after_ms
        end
        return seen >= oldest
    end
end
