-- Puts agents back that were taken out as silent between a jump of the clock and its note: one slice. Those that
-- were silent by the clock as it was before stay out, and so do those that another jump before had left in the
-- future of that clock. Then those that a jump backwards left in the future count as seen when the clock was set: a
-- dead one would look alive when that time comes again, unless a sweep has taken it out by then.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 offline_after_ms   3 slice   4 tolerance_ms of what is a jump
-- Result   number of agents put back or dated anew; as many as the slice: there may be more
--!include common ladder place feed totals state

local clock_key, slice = prefix .. ':clock', tonumber(ARGV[3])
-- The jump whose agents are still to be put back: whoever noted it may have died over it.
local jump = redis.call('HMGET', clock_key, 'readmit_ms', 'at_ms', 'shift_ms')
if not jump[1] then return 0 end
local shift = tonumber(jump[1])
local newest = string.format('%.0f', tonumber(jump[2]) - shift + tonumber(ARGV[4]))
-- A jump on the heels of another: agents may have been seen before both, and jump.lua has added them up.
if shift > 0 then shift = tonumber(jump[3]) end
local oldest = string.format('%.0f', now - shift - tonumber(ARGV[2]))
local found = redis.call('ZRANGE', silent_key, oldest, newest, 'BYSCORE', 'LIMIT', 0, slice,
    'WITHSCORES')
for i = 1, #found, 2 do
    local agent_id = found[i]
    local state = read_state(agent_id)
    redis.call('ZREM', silent_key, agent_id)
    if state then
        redis.call('ZADD', seen_key, found[i + 1], agent_id)
        if state.indexed ~= '' then
            local indexed = scoped(state.indexed, state.status, state.cordoned)
            change_state('capacity', agent_id, state, {indexed = indexed})
        end
    end
end
local done = #found / 2
if done < slice and shift < 0 then
    -- Set back once more, unnoticed: then the jump itself lies in the future, and they would be found again for ever.
    local dated = string.format('%.0f', math.min(now, tonumber(jump[2])))
    local ahead = redis.call('ZRANGE', seen_key, string.format('(%.0f', now), '+inf', 'BYSCORE', 'LIMIT', 0, slice - done)
    for _, agent_id in ipairs(ahead) do
        redis.call('ZADD', seen_key, dated, agent_id)
        if read_state(agent_id) then redis.call('HSET', agent_key(agent_id), 'seen', dated) end
    end
    done = done + #ahead
end
if done < slice then redis.call('HDEL', clock_key, 'readmit_ms') end
write_totals()
return done
