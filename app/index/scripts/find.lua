-- Agents with at least this much free, most free VRAM first, ties by descending id. One bounded slice:
-- looks at no more than `slice` agents of each of the (at most log2) disjoint sets, and says whether
-- there may be more.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 offline_after_ms, empty: as published
--          3 the epoch that the caller trusts
--          4 agent type   5 pool (encoded, empty for any)   6 min free VRAM   7 min free cores
--          8 limit   9, 10 free VRAM and id of the last row of the slice before, empty for the first
--          11 GPU type, empty for any   12 min free memory (GB), empty for any   13 max age in ms, empty for any
--          14 slice   15 "1" to count all that fit
-- Result   {'epoch', the epoch in force or ''} when it is not the caller's, else
--          {'ok', more (0, 1), agents that were silent, total or -1, last VRAM, last id of those looked at,
--           id, seen, document, id, seen, document, …}; an empty document where the agent's key is no hash
--!include common settings ladder sets horizon

local epoch = redis.call('GET', prefix .. ':epoch')
if epoch ~= ARGV[3] then return {'epoch', epoch or ''} end

local fresh = freshness(offline_after(ARGV[2]))
local min_vram, limit, slice = ARGV[6], tonumber(ARGV[8]), tonumber(ARGV[14])
local after_vram, after_id = ARGV[9], ARGV[10]
local gpu_type, min_memory, max_age_ms = ARGV[11], tonumber(ARGV[12]), tonumber(ARGV[13])
local filtered = gpu_type ~= '' or min_memory

local keys = sets_with(ARGV[4], ARGV[5], tonumber(ARGV[7]))
local total = ARGV[15] == '1' and count_in(keys, min_vram) or -1

-- The rank below the last row of the slice before. Bisects ranks among equal scores: skipping over them one
-- by one would walk a whole fleet of equal machines.
local function resume_rank(key)
    local low = redis.call('ZCOUNT', key, '(' .. after_vram, '+inf')
    local high = low + redis.call('ZCOUNT', key, after_vram, after_vram)
    while low < high do
        local middle = math.floor((low + high) / 2)
        if redis.call('ZRANGE', key, middle, middle, 'REV')[1] < after_id then
            high = middle
        else
            low = middle + 1
        end
    end
    return low
end

local runs = {}
for _, key in ipairs(keys) do
    local run
    if after_id == '' then
        run = redis.call('ZRANGE', key, '+inf', min_vram, 'BYSCORE', 'REV', 'LIMIT', 0, slice, 'WITHSCORES')
    else
        local first = resume_rank(key)
        local last = math.min(first + slice, redis.call('ZCOUNT', key, min_vram, '+inf')) - 1
        run = last < first and {} or redis.call('ZRANGE', key, first, last, 'REV', 'WITHSCORES')
    end
    if #run > 0 then runs[#runs + 1] = {rows = run, at = 1, score = tonumber(run[2])} end
end

-- Merges the runs in order. A run that is used up though it was a full slice may go on in its set, so
-- nothing below its last row may be taken from the others.
local ids, scores, more = {}, {}, 0
while #runs > 0 and #ids < slice do
    local best = runs[1]
    for i = 2, #runs do
        local run = runs[i]
        if run.score > best.score or (run.score == best.score and run.rows[run.at] > best.rows[best.at]) then
            best = run
        end
    end
    ids[#ids + 1], scores[#scores + 1] = best.rows[best.at], best.rows[best.at + 1]
    best.at = best.at + 2
    if best.at > #best.rows then
        if #best.rows == 2 * slice then
            more = 1
            break
        end
        for i = 1, #runs do
            if runs[i] == best then
                table.remove(runs, i)
                break
            end
        end
    else
        best.score = tonumber(best.rows[best.at + 1])
    end
end
if #runs > 0 then more = 1 end
if #ids == 0 then return {'ok', 0, 0, total, '', ''} end

local reply = {'ok', more, 0, total, scores[#ids], ids[#ids]}
local seen = redis.call('ZMSCORE', seen_key, unpack(ids))
local silent, rows = 0, 0
for i, agent_id in ipairs(ids) do
    if rows == limit then
        reply[2], reply[5], reply[6] = 1, scores[i - 1], ids[i - 1]
        break
    end
    if not fresh(seen[i]) then
        silent = silent + 1
    elseif not (max_age_ms and tonumber(seen[i]) < now - max_age_ms) then
        local document
        if filtered then
            local fields = redis.pcall('HMGET', agent_key(agent_id), 'document', 'gpu_type', 'memory_available_gb')
            if fields.err then
                document = ''
            elseif (gpu_type == '' or fields[2] == gpu_type)
                and not (min_memory and tonumber(fields[3] or '0') < min_memory) then
                document = fields[1]
            end
        else
            document = redis.pcall('HGET', agent_key(agent_id), 'document')
            if type(document) == 'table' then document = '' end
        end
        if document then
            rows = rows + 1
            local at = #reply
            reply[at + 1], reply[at + 2], reply[at + 3] = agent_id, seen[i], document
        end
    end
end
reply[3] = silent
return reply
