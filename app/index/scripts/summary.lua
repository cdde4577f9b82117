-- Totals by type and pool: one slice, each type's largest pools first.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 unused   3 the epoch that the caller trusts
--          4 most types that one call reads   5 pool (encoded, empty for all)   6 pools to skip   7 slice
--          8… types; without any all there are
-- Result   {'epoch', the epoch in force or ''} when it is not the caller's; {'many'} when there are more types than one
--          call reads, which are to be named then; else
--          {'ok', pools left to skip, {type, pool, {figure, number, …}}, …}; fewer than the slice: these types have no
--          more
--!include common few_types

local epoch = redis.call('GET', prefix .. ':epoch')
if epoch ~= ARGV[3] then return {'epoch', epoch or ''} end

local types = few_types(8, tonumber(ARGV[4]))
if not types then return {'many'} end
local skip, slice = tonumber(ARGV[6]), tonumber(ARGV[7])
local rows = {}
for _, agent_type in ipairs(types) do
    local pools_key = prefix .. ':' .. agent_type .. ':pools'
    local pools
    if ARGV[5] ~= '' then
        pools = redis.call('ZSCORE', pools_key, ARGV[5]) and {ARGV[5]} or {}
        if pools[1] and skip > 0 then
            pools, skip = {}, skip - 1
        end
    else
        local size = redis.call('ZCARD', pools_key)
        if skip >= size then
            pools, skip = {}, skip - size
        else
            pools = redis.call('ZRANGE', pools_key, skip, skip + slice - #rows - 1, 'REV')
            skip = 0
        end
    end
    for _, pool in ipairs(pools) do
        rows[#rows + 1] = {agent_type, pool,
            redis.call('HGETALL', prefix .. ':' .. agent_type .. ':totals:' .. pool)}
    end
    if #rows >= slice then break end
end
return {'ok', skip, unpack(rows)}
