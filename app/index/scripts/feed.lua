-- The change feed: one entry per applied change that somebody can see. Bounded; a reader that fell behind the
-- bound starts over.

local feed_entries = 100000
local feed_there = false

-- `indexed` as in the agent's hash after the change; searches find the agent when its type has no suffix.
local function publish(kind, agent_id, agent_type, pool, indexed, status)
    local vram, cores, scope = string.match(indexed or '', '^(%S+) (%d+) (%S+)')
    local figures = scope == agent_type and vram .. ' ' .. cores or ''
    local key = prefix .. ':events'
    if not feed_there and redis.call('EXISTS', key) == 0 then
        -- Whoever read what was here before must not go on as if nothing had been lost.
        redis.call('XADD', key, next_id(key), 'kind', 'reset')
    end
    feed_there = true
    redis.call('XADD', key, 'MAXLEN', '~', feed_entries, next_id(key), 'kind', kind, 'agent_id', agent_id,
        'agent_type', agent_type, 'pool', pool, 'figures', figures, 'status', status)
end
