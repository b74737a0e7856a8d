-- Ends a job.
--
-- KEYS   1 job  2 active  3 units  4 owners  5 attempts  6 tries  7 shards  8 records
-- ARGV   1 evaluation id  2 state  3 time  4 error  5 ttl_s of plan and records, 0 to keep them
-- Reply  'concluded'
--        'ended'  the job had ended before

--- @include "expire_job"

local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'queued' and state ~= 'running' then return 'ended' end
redis.call('HSET', KEYS[1], 'state', ARGV[2], 'ended', ARGV[3], 'error', ARGV[4])
redis.call('HDEL', KEYS[1], 'report_error', 'report_failures', 'report_failing_since')
redis.call('SREM', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[3], KEYS[4], KEYS[5], KEYS[6])
if tonumber(ARGV[5]) > 0 then expire_job(KEYS[1], KEYS[7], KEYS[8], ARGV[5]) end
return 'concluded'
