-- Types of agents that one call may read the totals of.

-- Those named from ARGV[first] on; where none is, all there are in order, or nil when these are more than `most`.
local function few_types(first, most)
    if ARGV[first] then return {unpack(ARGV, first)} end
    local key = prefix .. ':types'
    if redis.call('HLEN', key) > most then return nil end
    local types = redis.call('HKEYS', key)
    table.sort(types)
    return types
end
