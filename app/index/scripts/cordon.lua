-- Cordons an agent, or lifts its cordon: in force when this returns, whatever heartbeats say.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 agent id   3 the cordon as a document, empty to lift it
--          4 when it expires in ms, empty for never   5 "1": only if it has expired by now
-- Result   id of the log entry, or false when there was nothing to do (unknown agent, not cordoned)
--!include common ladder place feed totals state

local agent_id, document, expires_ms = ARGV[2], ARGV[3], ARGV[4]
local key, cordons_key = agent_key(agent_id), prefix .. ':cordons'
local state = read_state(agent_id)
if document == '' and not redis.call('ZSCORE', cordons_key, agent_id) then return false end
if ARGV[5] == '1' and tonumber(redis.call('ZSCORE', cordons_key, agent_id)) > now then return false end
if document ~= '' and not state then return false end

local cordoned = document ~= ''
local kind = cordoned and 'cordon' or 'uncordon'
local id = append('transition', kind .. 'ed', 'agent_id', agent_id,
    'reason', ARGV[5] == '1' and 'expired' or 'operator', 'at_ms', string.format('%.0f', now), 'cordon', document)
if state then
    redis.call('HSET', key, 'cordon', document, 'cordon_id', id)
    local indexed = scoped(state.indexed, state.status, cordoned, redis.call('ZSCORE', silent_key, agent_id))
    change_state(kind, agent_id, state, {indexed = indexed, cordoned = cordoned})
end
write_totals()
if cordoned then
    redis.call('ZADD', cordons_key, expires_ms ~= '' and expires_ms or '+inf', agent_id)
else
    redis.call('ZREM', cordons_key, agent_id)
end
return id
