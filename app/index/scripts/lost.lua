-- Counts what was trimmed before a group had processed it. Only before the group's next read does Redis tell what
-- was trimmed unread.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 group   3 "1" where the gap is to be noted
--          4… ids of entries that were read, not acknowledged, and are gone: they are acknowledged
-- Result   number of entries lost
--!include common gap

local group, noted = ARGV[2], ARGV[3] == '1'
local gone = {}
for i = 4, #ARGV do
    redis.call('XACK', stream, group, ARGV[i])
    gone[#gone + 1] = ARGV[i]
end
note_lost_ids(noted, gone)

local function table_of(reply)
    local found = {}
    for i = 1, #reply, 2 do found[reply[i]] = reply[i + 1] end
    return found
end

local function lost_unread()
    local groups = redis.pcall('XINFO', 'GROUPS', stream)
    if groups.err then return 0 end -- the reader will make stream and group anew
    local whole = table_of(redis.call('XINFO', 'STREAM', stream))
    local trimmed = whole['entries-added'] - whole.length
    local oldest = whole['first-entry'] and whole['first-entry'][1]
    for _, reply in ipairs(groups) do
        local info = table_of(reply)
        local delivered = info['last-delivered-id']
        -- Redis does not always know how much a group has read.
        local unread = info['entries-read'] and trimmed - info['entries-read'] or 0
        if info.name == group and unread > 0 and not (oldest and not after(oldest, delivered)) then
            note_lost(noted, delivered, oldest or whole['last-generated-id'], unread)
            -- As if it had read them, or they would be counted again before its next read, or after it.
            redis.call('XGROUP', 'SETID', stream, group, delivered, 'ENTRIESREAD', trimmed)
            return unread
        end
    end
    return 0
end
return #gone + lost_unread()
