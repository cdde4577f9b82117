-- Totals of whole types, over all of their pools, however many those are.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 unused   3 the epoch that the caller trusts
--          4 most types that one call reads   5… types; without any all there are
-- Result   {'epoch', the epoch in force or ''} when it is not the caller's; {'many'} when there are more types than one
--          call reads, which are to be named then; else {'ok', {type, number of pools, {figure, number, …}}, …}
--!include common few_types

local epoch = redis.call('GET', prefix .. ':epoch')
if epoch ~= ARGV[3] then return {'epoch', epoch or ''} end

local types = few_types(5, tonumber(ARGV[4]))
if not types then return {'many'} end
local reply = {'ok'}
for _, agent_type in ipairs(types) do
    reply[#reply + 1] = {agent_type, redis.call('ZCARD', prefix .. ':' .. agent_type .. ':pools'),
        redis.call('HGETALL', prefix .. ':' .. agent_type .. ':totals:*')}
end
return reply
