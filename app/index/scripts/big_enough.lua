-- Placeable agents that would fit if they were idle, by what their machines are: the first of each kind of machine
-- that is big enough, by ids. Looks at no more kinds and agents than it is told to.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 unused   3 the epoch that the caller trusts
--          4 agent type   5 pool (encoded, empty for any)   6 VRAM and   7 cores that a machine must have
--          8 GPU type, empty for any   9 most agents   10 most kinds of machines
-- Result   {'epoch', the epoch in force or ''} when it is not the caller's, else
--          {'ok', agent id, "free VRAM free cores", agent id, …}
--!include common ladder place

local epoch = redis.call('GET', prefix .. ':epoch')
if epoch ~= ARGV[3] then return {'epoch', epoch or ''} end
local agent_type, pool, min_vram, min_cores = ARGV[4], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local most, most_shapes = tonumber(ARGV[9]), tonumber(ARGV[10])

local by_type = prefix .. ':' .. agent_type
local shapes_key = by_type .. (pool ~= '' and ':pool:' .. pool or '') .. ':shapes'
-- Of a fleet of very many kinds another part with every call.
local shapes = redis.call('HLEN', shapes_key) > most_shapes and redis.call('HRANDFIELD', shapes_key, most_shapes)
    or redis.call('HKEYS', shapes_key)
table.sort(shapes)

local reply = {'ok'}
for _, shape in ipairs(shapes) do
    local total, physical, gpu = string.match(shape, '^(%S+) (%S+) (%S+)$')
    local wanted = (ARGV[8] == '' or ARGV[8] == gpu) and tonumber(total) >= min_vram
        and tonumber(physical) >= min_cores
    if wanted and #reply < 2 * most then
        local first = shape .. ' ' .. (pool ~= '' and pool .. ' ' or '')
        local members = redis.call('ZRANGE', by_type .. ':machines', '[' .. first, '(' .. first .. '\255', 'BYLEX',
            'LIMIT', 0, most - (#reply - 1) / 2)
        for _, member in ipairs(members) do
            local agent_id = string.match(member, '%S+$')
            local indexed = redis.pcall('HGET', agent_key(agent_id), 'indexed')
            local place = type(indexed) == 'string' and parse_indexed(indexed)
            if place and place.scope == agent_type then
                reply[#reply + 1], reply[#reply + 2] = agent_id, place.vram .. ' ' .. place.cores
            end
        end
    end
end
return reply
