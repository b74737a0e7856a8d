-- Closes the shards of cancelled jobs whose owner died, and counts the units of all active jobs.
--
-- KEYS   1 active
-- ARGV   1 key prefix
-- Reply  {jobs, units that can be claimed, units that are held}

--- @include "now"
--- @include "job_key"
--- @include "close_unit"

local at = now()
local jobs, waiting, held = 0, 0, 0
for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local job, units, owners = job_key(id, 'job'), job_key(id, 'units'), job_key(id, 'owners')
  if redis.call('HEXISTS', job, 'cancelled') == 1 then
    for _, unit in ipairs(redis.call('ZRANGEBYSCORE', units, '-inf', at)) do
      if unit ~= 'finish' then close_unit(job, units, owners, unit) end
    end
  end
  jobs = jobs + 1
  waiting = waiting + redis.call('ZCOUNT', units, '-inf', at)
  held = held + redis.call('ZCOUNT', units, '(' .. at, '+inf')
  -- A postponed report is neither waiting nor held.
  local report_from = tonumber(redis.call('ZSCORE', units, 'finish') or 0)
  if report_from > at and redis.call('HEXISTS', owners, 'finish') == 0 then held = held - 1 end
end
return {jobs, waiting, held}
