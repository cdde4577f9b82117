-- An agent that changes its status four times within ten minutes is flapping: still found by searches, but
-- its transitions carry a mark by which the record keeps them as one. `changes` holds the latest four times.

local flapping_changes, flapping_ms = 4, 600000

-- Returns '1' when this change makes, or keeps, the agent flapping, else ''.
local function note_change(agent_id, changes)
    local times = {}
    for ms in string.gmatch(changes or '', '%d+') do times[#times + 1] = ms end
    times[#times + 1] = string.format('%.0f', now)
    if #times > flapping_changes then table.remove(times, 1) end
    local flaps = #times == flapping_changes and math.abs(now - tonumber(times[1])) <= flapping_ms
    redis.call('HSET', agent_key(agent_id), 'changes', table.concat(times, ' '))
    if flaps then redis.call('ZADD', prefix .. ':flapping', now, agent_id) end
    return flaps and '1' or ''
end
