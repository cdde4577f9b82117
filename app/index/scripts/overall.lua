-- Totals of whole types, over all of their pools, however many those are.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 unused   3 the epoch that the caller trusts
--          4 agent type, empty for all
-- Result   {'epoch', the epoch in force or ''} when it is not the caller's, else
--          {'ok', {type, number of pools, {figure, number, …}}, …}
--!include common

local epoch = redis.call('GET', prefix .. ':epoch')
if epoch ~= ARGV[3] then return {'epoch', epoch or ''} end

local types = ARGV[4] ~= '' and {ARGV[4]} or redis.call('HKEYS', prefix .. ':types')
table.sort(types)
local reply = {'ok'}
for _, agent_type in ipairs(types) do
    reply[#reply + 1] = {agent_type, redis.call('ZCARD', prefix .. ':' .. agent_type .. ':pools'),
        redis.call('HGETALL', prefix .. ':' .. agent_type .. ':totals:*')}
end
return reply
