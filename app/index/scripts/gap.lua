-- Counts what was trimmed before a group had processed it, once. For the record's group it also keeps note of the
-- gap until the record was brought up to the index.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 group   3 "1" where the gap is to be noted
--          4… ids of entries that were read, not acknowledged, and are gone
-- Result   number of entries lost
--!include common

local group, noted = ARGV[2], ARGV[3] == '1'
local gap_key = prefix .. ':gap'
local lost, first, last = 0, nil, nil

local function after(a, b)
    local a_ms, a_n = split_id(a)
    local b_ms, b_n = split_id(b)
    if a_ms ~= b_ms then return greater(a_ms, b_ms) end
    return greater(a_n, b_n)
end

local function miss(from, to, entries)
    lost = lost + entries
    if not first or after(first, from) then first = from end
    if not last or after(to, last) then last = to end
end

local function table_of(reply)
    local found = {}
    for i = 1, #reply, 2 do found[reply[i]] = reply[i + 1] end
    return found
end

for i = 4, #ARGV do
    redis.call('XACK', stream, group, ARGV[i])
    miss(ARGV[i], ARGV[i], 1)
end

local function miss_unread()
    local groups = redis.pcall('XINFO', 'GROUPS', stream)
    if groups.err then return end -- the reader will make stream and group anew
    local whole = table_of(redis.call('XINFO', 'STREAM', stream))
    for _, reply in ipairs(groups) do
        local info = table_of(reply)
        local trimmed = whole['entries-added'] - whole.length
        -- Redis does not always know what a group has read.
        local unread = info['entries-read'] and trimmed - info['entries-read'] or 0
        local delivered = info['last-delivered-id']
        local oldest = whole['first-entry'] and whole['first-entry'][1]
        if info.name == group and unread > 0 and not (oldest and not after(oldest, delivered)) then
            miss(delivered, oldest or whole['last-generated-id'], unread)
            -- As if it had read them, or they would be counted again before its next read, or after it.
            redis.call('XGROUP', 'SETID', stream, group, delivered, 'ENTRIESREAD', trimmed)
        end
    end
end
miss_unread()

if lost > 0 and noted then
    local known = redis.call('HMGET', gap_key, 'first', 'last')
    if known[1] and after(first, known[1]) then first = known[1] end
    if known[2] and after(known[2], last) then last = known[2] end
    redis.call('HSET', gap_key, 'first', first, 'last', last)
    redis.call('HINCRBY', gap_key, 'entries', lost)
end
return lost
