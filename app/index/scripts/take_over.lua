-- Takes over entries that another consumer has left unacknowledged for too long. Those that are gone Redis forgets
-- in the same moment, so they are counted here: a consumer that dies now must not take the count with it.
--
-- KEYS[1]  prefix of the shard
-- ARGV     1 now in ms, empty for the server's time   2 group   3 "1" where a gap is to be noted
--          4 consumer   5 idle_ms   6 cursor   7 most entries
-- Result   {next cursor, entries, number of entries lost}
--!include common gap

local cursor, entries, gone = unpack(redis.call('XAUTOCLAIM', stream, ARGV[2], ARGV[4], ARGV[5], ARGV[6],
    'COUNT', ARGV[7]))
note_lost_ids(ARGV[3] == '1', gone)
return {cursor, entries, #gone}
