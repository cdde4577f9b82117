-- Where an agent stands in the sorted sets. `indexed` in its hash says under what it stands there now
-- ("vram cores scope pool", empty when it is in none), so that removal never recomputes it from newer figures.
-- The scope is the agent's type for those that searches find, and type:silent, type:cordoned or type:busy for
-- those that have as much but may not be found.

-- The place of an agent ("vram cores type pool") in the scope that its state puts it in.
local function scoped(place, status, cordoned, silent)
    local suffix = ''
    if silent or status == 'offline' then
        suffix = ':silent'
    elseif cordoned then
        suffix = ':cordoned'
    elseif status == 'busy' then
        suffix = ':busy'
    end
    return (string.gsub(place, '^(%S+ %d+ [^%s:]+)%S*', '%1' .. suffix))
end

local function parse_indexed(indexed)
    if not indexed or indexed == '' then return nil end
    local vram, cores, scope, pool = string.match(indexed, '^(%S+) (%d+) (%S+) (%S+)$')
    return {vram = vram, cores = tonumber(cores), scope = scope, pool = pool}
end

local function scopes(place)
    local by_type = prefix .. ':' .. place.scope
    return by_type, by_type .. ':pool:' .. place.pool
end

local function leave(agent_id, place)
    local by_type, by_pool = scopes(place)
    redis.call('ZREM', by_type .. ':vram', agent_id)
    redis.call('ZREM', by_type .. ':cores', agent_id)
    redis.call('ZREM', by_pool .. ':vram', agent_id)
    for _, name in ipairs(memberships(place.cores)) do
        redis.call('ZREM', by_type .. ':vram:cores:' .. name, agent_id)
        redis.call('ZREM', by_pool .. ':vram:cores:' .. name, agent_id)
    end
end

-- Takes an agent from the sets it stands in to those it belongs to, touching only those that differ.
local function move(agent_id, indexed, wanted)
    if (indexed or '') == wanted then return end
    local old, new = parse_indexed(indexed), parse_indexed(wanted)
    if old and not (new and old.scope == new.scope and old.pool == new.pool) then
        leave(agent_id, old)
        old = nil
    end
    if not new then return end
    local by_type, by_pool = scopes(new)
    local new_vram = not old or old.vram ~= new.vram
    local stays = {}
    if new_vram then
        redis.call('ZADD', by_type .. ':vram', new.vram, agent_id)
        redis.call('ZADD', by_pool .. ':vram', new.vram, agent_id)
    end
    if not old or old.cores ~= new.cores then
        redis.call('ZADD', by_type .. ':cores', new.cores, agent_id)
        if old then
            local wanted_names = {}
            for _, name in ipairs(memberships(new.cores)) do wanted_names[name] = true end
            for _, name in ipairs(memberships(old.cores)) do
                if wanted_names[name] then
                    stays[name] = true
                else
                    redis.call('ZREM', by_type .. ':vram:cores:' .. name, agent_id)
                    redis.call('ZREM', by_pool .. ':vram:cores:' .. name, agent_id)
                end
            end
        end
    end
    for _, name in ipairs(memberships(new.cores)) do
        if new_vram or not stays[name] then
            redis.call('ZADD', by_type .. ':vram:cores:' .. name, new.vram, agent_id)
            redis.call('ZADD', by_pool .. ':vram:cores:' .. name, new.vram, agent_id)
        end
    end
end
