-- Opens the report of a job that failed, or makes a postponed report due at once.
--
-- KEYS   1 job  2 active  3 units  4 owners
-- ARGV   1 evaluation id
-- Reply  'report_due'
--        'not_failed'  the job has no failed or postponed report

local state = redis.call('HGET', KEYS[1], 'state')
if state == 'running' and redis.call('HGET', KEYS[1], 'finishing') then
  if redis.call('HEXISTS', KEYS[4], 'finish') == 0 then redis.call('ZADD', KEYS[3], 'XX', 0, 'finish') end
  return 'report_due'
end
if state ~= 'failed' then return 'not_failed' end
redis.call('HSET', KEYS[1], 'state', 'running', 'finishing', '1')
redis.call('HDEL', KEYS[1], 'ended', 'error')
redis.call('ZADD', KEYS[3], 0, 'finish')
redis.call('SADD', KEYS[2], ARGV[1])
return 'report_due'
