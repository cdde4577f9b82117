-- The order rule: which heartbeats of an agent take effect. The same rule as app/models/order.py.
-- Retired boots are kept newest first, one a line, as "seq boot_id".

local kept_boots = 8

-- The retired boots with the seq of one of them; nil where they stay as they are. A boot that is not among them may
-- be from before the agent was forgotten.
local function heard(retired, boot, seq)
    local lines, known = {}, false
    for old_seq, old_boot in string.gmatch(retired or '', '(%d+) ([^\n]+)') do
        if old_boot == boot then
            if not greater(seq, old_seq) then return nil end
            old_seq, known = seq, true
        end
        lines[#lines + 1] = old_seq .. ' ' .. old_boot
    end
    return known and table.concat(lines, '\n') or nil
end

-- Returns the outcome, for an applied heartbeat the boot in force and its seq, and the retired boots (nil where
-- they stay as they are). A heartbeat that changes nothing else leaves its seq there: a dead worker's entries are
-- judged after later ones, and must leave behind what they would have left in their turn.
local function judge(last_id, holder, holder_seq, retired, id, boot, seq, offline_after_ms)
    if not last_id then return 'applied', boot, seq end
    local ms, n = split_id(id)
    local last_ms, last_n = split_id(last_id)
    if ms == last_ms and n == last_n then return 'duplicate' end
    if greater(last_ms, ms) or (ms == last_ms and greater(last_n, n)) then
        return 'reordered', nil, nil, heard(retired, boot, seq)
    end
    if boot == '' then return 'applied', holder or '', holder_seq or '' end
    if not holder or holder == '' then return 'applied', boot, seq end
    if boot == holder then
        if seq == holder_seq then return 'duplicate' end
        if greater(holder_seq, seq) then return 'reordered' end
        return 'applied', boot, seq
    end
    local lines, known_seq = {holder_seq .. ' ' .. holder}, nil
    for old_seq, old_boot in string.gmatch(retired or '', '(%d+) ([^\n]+)') do
        if old_boot == boot then
            known_seq = old_seq
        elseif #lines < kept_boots - 1 then
            lines[#lines + 1] = old_seq .. ' ' .. old_boot
        end
    end
    if known_seq then
        if seq == known_seq then return 'duplicate' end
        if greater(known_seq, seq) then return 'reordered' end
        -- Two machines with one id would take turns for ever: the holder keeps it until it falls silent.
        if tonumber(ms) - tonumber(last_ms) < offline_after_ms then
            return 'cloned', nil, nil, heard(retired, boot, seq)
        end
    end
    return 'applied', boot, seq, table.concat(lines, '\n')
end
