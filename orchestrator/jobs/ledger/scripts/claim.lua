-- Claims the unit that is most due, under a lease.
--
-- KEYS   1 active  2 index
-- ARGV   1 key prefix  2 owner  3 lease_s  4 most attempts of a shard  5 most attempts of a report
-- Reply  {'none'}
--        {'claimed' or 'exhausted', evaluation id, unit, attempts}; 'exhausted' is a unit claimed too often

--- @include "now"
--- @include "job_key"

-- A call that is repeated because its reply was lost must not claim a second unit.
local reply_key = ARGV[1] .. ':taken:' .. ARGV[2]
local earlier = redis.call('LRANGE', reply_key, 0, -1)
if #earlier > 0 and redis.call('HGET', job_key(earlier[2], 'owners'), earlier[3]) == ARGV[2] then
  return earlier
end

-- Candidates are compared by: report before shard, fewest units held in the job, longest since the job was served,
-- oldest job.
local function precedes(candidate, best)
  for place = 1, 4 do
    if candidate[place] ~= best[place] then return candidate[place] < best[place] end
  end
  return false
end

local at = now()
local best
for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local units, job = job_key(id, 'units'), job_key(id, 'job')
  local unit = redis.call('ZRANGEBYSCORE', units, '-inf', at, 'LIMIT', 0, 1)[1]
  if unit and (unit == 'finish' or redis.call('HEXISTS', job, 'cancelled') == 0) then
    local candidate = {
      unit == 'finish' and 0 or 1,
      redis.call('ZCOUNT', units, '(' .. at, '+inf'),
      tonumber(redis.call('HGET', job, 'served') or 0),
      tonumber(redis.call('ZSCORE', KEYS[2], id) or 0),
      id,
      unit,
    }
    if not best or precedes(candidate, best) then best = candidate end
  end
end
if not best then return {'none'} end

local id, unit = best[5], best[6]
local job = job_key(id, 'job')
redis.call('HSET', job_key(id, 'owners'), unit, ARGV[2])
redis.call('ZADD', job_key(id, 'units'), at + tonumber(ARGV[3]), unit)
redis.call('HSET', job, 'served', string.format('%.6f', at))
if redis.call('HGET', job, 'state') == 'queued' then redis.call('HSET', job, 'state', 'running') end
local attempts = redis.call('HINCRBY', job_key(id, 'attempts'), unit, 1)
local most = tonumber(unit == 'finish' and ARGV[5] or ARGV[4])
local reply = {attempts > most and 'exhausted' or 'claimed', id, unit, attempts}
redis.call('RPUSH', reply_key, unpack(reply))
redis.call('EXPIRE', reply_key, 60) -- Beyond the default lease: by then the unit can be claimed again anyway.
return reply
