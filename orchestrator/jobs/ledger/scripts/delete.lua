-- Deletes a job that has ended.
--
-- KEYS   1 job  2 index  3 shards  4 records
-- ARGV   1 evaluation id
-- Reply  'deleted'
--        'running'  the job has not ended

local state = redis.call('HGET', KEYS[1], 'state')
if state == 'queued' or state == 'running' then return 'running' end
local request = redis.call('HGET', KEYS[1], 'request')
if request then redis.call('DEL', request) end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[1], KEYS[3], KEYS[4])
return 'deleted'
