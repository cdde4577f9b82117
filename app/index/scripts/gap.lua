-- Counting what was trimmed before a group had processed it, once. For the record's group a note of the gap is kept
-- until the record was brought up to the index.

local gap_key = prefix .. ':gap'

local function after(a, b)
    local a_ms, a_n = split_id(a)
    local b_ms, b_n = split_id(b)
    if a_ms ~= b_ms then return greater(a_ms, b_ms) end
    return greater(a_n, b_n)
end

-- Some number of entries, none of them before `first` or after `last`.
local function note_lost(noted, first, last, entries)
    if entries == 0 or not noted then return end
    local known = redis.call('HMGET', gap_key, 'first', 'last')
    if known[1] and after(first, known[1]) then first = known[1] end
    if known[2] and after(known[2], last) then last = known[2] end
    redis.call('HSET', gap_key, 'first', first, 'last', last)
    redis.call('HINCRBY', gap_key, 'entries', entries)
end

-- Entries that the group had read, and that are gone.
local function note_lost_ids(noted, ids)
    local first, last = ids[1], ids[1]
    for _, id in ipairs(ids) do
        if after(first, id) then first = id end
        if after(id, last) then last = id end
    end
    note_lost(noted, first, last, #ids)
end
