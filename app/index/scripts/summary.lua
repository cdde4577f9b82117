-- Totals by type and pool: one slice, each type's largest pools first.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 unused   3 the epoch that the caller trusts
--          4 agent type, empty for all   5 pool (encoded, empty for all)   6 pools to skip   7 slice
-- Result   {'epoch', the epoch in force or ''} when it is not the caller's, else
--          {'ok', {type, pool, {figure, number, …}}, …}; fewer than the slice: there are no more
--!include common

local epoch = redis.call('GET', prefix .. ':epoch')
if epoch ~= ARGV[3] then return {'epoch', epoch or ''} end

local types = ARGV[4] ~= '' and {ARGV[4]} or redis.call('HKEYS', prefix .. ':types')
table.sort(types)
local skip, slice = tonumber(ARGV[6]), tonumber(ARGV[7])
local reply = {'ok'}
for _, agent_type in ipairs(types) do
    local pools_key = prefix .. ':' .. agent_type .. ':pools'
    local size = redis.call('ZCARD', pools_key)
    local pools
    if ARGV[5] ~= '' then
        pools = redis.call('ZSCORE', pools_key, ARGV[5]) and {ARGV[5]} or {}
        if pools[1] and skip > 0 then
            pools, skip = {}, skip - 1
        end
    elseif skip >= size then
        pools, skip = {}, skip - size
    else
        pools = redis.call('ZRANGE', pools_key, skip, skip + slice - #reply, 'REV')
        skip = 0
    end
    for _, pool in ipairs(pools) do
        reply[#reply + 1] = {agent_type, pool,
            redis.call('HGETALL', prefix .. ':' .. agent_type .. ':totals:' .. pool)}
    end
    if #reply > slice then break end
end
return reply
