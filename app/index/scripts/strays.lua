-- Finds members of one of the sorted sets that their hashes do not place there.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 "1" to take them out   3 key of the set   4… members
-- Result   the strays
--!include common ladder place totals

local key = ARGV[3]
local reply = {}

local function belongs(member)
    local agent_id = string.match(member, '%S+$')
    local fields = redis.pcall('HMGET', agent_key(agent_id), 'indexed', 'machine')
    if fields.err then return false end
    if agent_id ~= member then
        return fields[2] and key == prefix .. ':' .. parse_machine(fields[2]) .. ':machines'
            and machine_member(agent_id, {indexed = fields[1], machine = fields[2]}) == member
    end
    local place = parse_indexed(fields[1])
    if not place then return false end
    local by_type, by_pool = scopes(place)
    for _, scope in ipairs({by_type, by_pool}) do
        if key == scope .. ':vram' or key == by_type .. ':cores' then return true end
        if string.sub(key, 1, #scope + 12) == scope .. ':vram:cores:' then
            local name = string.sub(key, #scope + 13)
            for _, one in ipairs(memberships(place.cores)) do
                if one == name then return true end
            end
        end
    end
    return false
end

for i = 4, #ARGV do
    if not belongs(ARGV[i]) then
        reply[#reply + 1] = ARGV[i]
        if ARGV[2] == '1' then redis.call('ZREM', key, ARGV[i]) end
    end
end
return reply
