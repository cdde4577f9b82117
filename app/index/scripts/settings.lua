-- What the workers publish for those who read the index without their settings.

-- The silence in ms after which an agent is offline: as given, or where that is empty, as published.
local function offline_after(given)
    if given ~= '' then return tonumber(given) end
    local published = redis.call('GET', prefix .. ':offline-after')
    if not published then error('INDEX_REBUILDING nobody has published offline-after') end
    return tonumber(published)
end
