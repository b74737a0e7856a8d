-- Cancels a job. Units that are not held are closed at once; held ones are closed by their owners.
--
-- KEYS   1 job  2 units  3 owners  4 attempts  5 tries  6 active  7 shards  8 records
-- ARGV   1 evaluation id  2 time  3 ttl_s
-- Reply  'pending'     held units, or the report under way, will end the job
--        'report_due'  the report is open now
--        'cancelled'   nothing was recorded or held: the job has ended
--        'failed'      its report had been postponed: the job has ended
--        'ended'       the job had ended before

--- @include "now"
--- @include "close_unit"
--- @include "expire_job"

local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'queued' and state ~= 'running' then return 'ended' end

if redis.call('HGET', KEYS[1], 'finishing') then
  local report_error = redis.call('HGET', KEYS[1], 'report_error')
  if not report_error or redis.call('HEXISTS', KEYS[3], 'finish') == 1 then return 'pending' end
  redis.call('DEL', KEYS[2], KEYS[3], KEYS[4], KEYS[5])
  redis.call('HSET', KEYS[1], 'state', 'failed', 'ended', ARGV[2], 'error', 'the report was given up: ' .. report_error)
  redis.call('HDEL', KEYS[1], 'report_error', 'report_failures', 'report_failing_since')
  redis.call('SREM', KEYS[6], ARGV[1])
  return 'failed'
end

redis.call('HSET', KEYS[1], 'cancelled', '1')
local report_due = false
for _, unit in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now())) do
  report_due = close_unit(KEYS[1], KEYS[2], KEYS[3], unit) or report_due
end
if not report_due then return 'pending' end
if tonumber(redis.call('HGET', KEYS[1], 'done')) > 0 then return 'report_due' end

redis.call('DEL', KEYS[2], KEYS[3], KEYS[4], KEYS[5])
redis.call('HSET', KEYS[1], 'state', 'cancelled', 'ended', ARGV[2])
redis.call('SREM', KEYS[6], ARGV[1])
expire_job(KEYS[1], KEYS[7], KEYS[8], ARGV[3])
return 'cancelled'
