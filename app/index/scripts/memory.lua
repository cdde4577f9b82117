-- For which amounts of free main memory somebody waits. Memory changes with nearly every heartbeat, so the feed tells
-- of it only when it grows past one of these. They stand in a set for a while and have to be named again.

local memory_slot_ms = 15000

local function memory_key(slots_ahead)
    return string.format('%s:memory-wanted:%.0f', prefix, math.floor(now / memory_slot_ms) + slots_ahead)
end
