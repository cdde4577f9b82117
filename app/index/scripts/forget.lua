-- Takes an agent out of the index and says so in the log. A tombstone holds its last id for a while, so that
-- an entry read before and applied late does not bring it back.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 agent id   3 tombstone_ms
-- Result   id of the log entry, or false for an unknown agent
--!include common ladder place feed totals state

local agent_id = ARGV[2]
local key = agent_key(agent_id)
local state = read_state(agent_id)
if not state then return false end
change_state('forgotten', agent_id, state, {indexed = ''})
state.indexed = ''
recount(agent_id, state, nil)
write_totals()
redis.call('DEL', key)
for _, set in ipairs({seen_key, silent_key, offline_key, prefix .. ':cordons'}) do
    redis.call('ZREM', set, agent_id)
end
local id = append('transition', 'forgotten', 'agent_id', agent_id, 'reason', 'operator',
    'at_ms', string.format('%.0f', now))
redis.call('HSET', key, 'last_id', id)
redis.call('PEXPIRE', key, ARGV[3])
return id
