-- Declares agents that were taken out as silent offline, and says so in the log: one slice. During a grace, and
-- while nobody takes heartbeats in, nobody is declared; when most of a large fleet is silent at once, only few
-- are, since that is more likely a fault on the way here than the death of so many machines.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 slice   3 smallest fleet that has a brake
--          4 the brake lets one in this many of the fleet through
--          5 who takes heartbeats in says so at least this often (ms)
-- Result   {agents declared, 1 when there may be more to declare at once, 1 when the brake held}
--!include common ladder place feed totals state flapping horizon

local silent = redis.call('ZCARD', silent_key)
if silent == 0 then return {0, 0, 0} end
-- A grace has not passed before what was received during it has been applied.
if judged_until() < tonumber(redis.call('GET', prefix .. ':grace') or 0) then return {0, 0, 0} end
-- Far in the past or in the future: nobody takes heartbeats in, or the clock was set and nobody has noticed yet.
local receiver = redis.call('ZRANGE', prefix .. ':receivers', 0, 0, 'REV', 'WITHSCORES')
if receiver[2] and math.abs(now - tonumber(receiver[2])) > tonumber(ARGV[5]) then return {0, 0, 0} end
local slice = tonumber(ARGV[2])
local fleet = silent + redis.call('ZCARD', seen_key)
local braked = fleet > tonumber(ARGV[3]) and silent * 2 > fleet
if braked then slice = math.min(slice, math.ceil(fleet / tonumber(ARGV[4]))) end

local found = redis.call('ZRANGE', silent_key, 0, slice - 1, 'WITHSCORES')
for i = 1, #found, 2 do
    local agent_id = found[i]
    local state = read_state(agent_id)
    redis.call('ZREM', silent_key, agent_id)
    if state then
        redis.call('ZADD', offline_key, found[i + 1], agent_id)
        change_state('status', agent_id, state, {status = 'offline'})
        append_transition(agent_id, 'offline', 'silent', state.last_id, note_change(agent_id, state.changes))
    end
end
write_totals()
local declared = #found / 2
return {declared, (not braked and declared == slice) and 1 or 0, braked and 1 or 0}
