-- Stores the record of a sample. The first record stays, and the counters move only with it, so that a sample counts
-- once however many workers answered it.
--
-- KEYS   1 job  2 records  3 tries  4 attempts
-- ARGV   1 sample key  2 record  3 '1' if the sample failed  4 unit
-- Reply  'stored'
--        'duplicate'  the sample has its record
--        'closed'     the report is being written, or the job was deleted

if redis.call('HEXISTS', KEYS[1], 'id') == 0 or redis.call('HGET', KEYS[1], 'finishing') then return 'closed' end
if redis.call('HSETNX', KEYS[2], ARGV[1], ARGV[2]) == 0 then return 'duplicate' end
redis.call('HINCRBY', KEYS[1], 'done', 1)
if ARGV[3] == '1' then redis.call('HINCRBY', KEYS[1], 'failed', 1) end
redis.call('HDEL', KEYS[3], ARGV[1])
-- A shard is given up after attempts without progress; this is progress, so only the current attempt counts.
redis.call('HSET', KEYS[4], ARGV[4], 1)
return 'stored'
