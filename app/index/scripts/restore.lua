-- Puts agents back as the record knows them, unless the index knows something newer.
--
-- KEYS[1]  prefix of the shard
-- ARGV[1]  now in ms, empty for the server's time
-- ARGV[2…] per agent: agent_id, last_id, boot_id, seq, retired boots (one "seq boot_id" a line), fingerprint,
--          status, wanted place, number of the strings that follow: field, value, field, value…
-- Result   number of agents put back
--!include common order ladder place

local restored = 0
local at = 2
while at <= #ARGV do
    local agent_id, last_id = ARGV[at], ARGV[at + 1]
    local status, wanted = ARGV[at + 6], ARGV[at + 7]
    local first, count = at + 9, tonumber(ARGV[at + 8])
    local key = agent_key(agent_id)
    local old = redis.call('HMGET', key, 'last_id', 'indexed')
    -- By stream order alone: the recorded boots were judged when they were recorded.
    if not old[1] or judge(old[1], nil, nil, nil, last_id, '', '', 0) == 'applied' then
        local seen = math.min(tonumber((split_id(last_id))), now)
        redis.call('HSET', key, 'last_id', last_id, 'boot_id', ARGV[at + 2], 'seq', ARGV[at + 3],
            'boots', ARGV[at + 4], 'fingerprint', ARGV[at + 5], 'indexed', wanted,
            unpack(ARGV, first, first + count - 1))
        redis.call('PERSIST', key)
        move(agent_id, old[2], wanted)
        for _, set in ipairs({seen_key, silent_key, offline_key}) do redis.call('ZREM', set, agent_id) end
        redis.call('ZADD', status == 'offline' and offline_key or seen_key, seen, agent_id)
        restored = restored + 1
    end
    at = first + count
end
return restored
