-- Forgets consumers of the stream's groups that have done nothing for long and hold no entry: those of processes that
-- are gone. In one step with the look: a consumer that goes takes what it holds with it. One that still lives is made
-- anew by its next read.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 idle_ms, by the server's clock
-- Result   number of consumers forgotten
--!include common

local function table_of(reply)
    local found = {}
    for i = 1, #reply, 2 do found[reply[i]] = reply[i + 1] end
    return found
end

local forgotten = 0
local groups = redis.pcall('XINFO', 'GROUPS', stream)
for _, reply in ipairs(groups.err and {} or groups) do
    local group = table_of(reply).name
    for _, one in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
        local consumer = table_of(one)
        if consumer.pending == 0 and consumer.idle >= tonumber(ARGV[2]) then
            redis.call('XGROUP', 'DELCONSUMER', stream, group, consumer.name)
            forgotten = forgotten + 1
        end
    end
end
return forgotten
