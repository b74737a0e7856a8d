-- close_unit(): removes a unit from the open ones. Opens the report, the unit "finish", if no other unit is open and it
-- has not been opened before. Returns whether it did.
local function close_unit(job, units, owners, unit)
  redis.call('ZREM', units, unit)
  redis.call('HDEL', owners, unit)
  if redis.call('ZCARD', units) > 0 then return false end
  if redis.call('HSETNX', job, 'finishing', '1') == 0 then return false end
  redis.call('ZADD', units, 0, 'finish')
  return true
end
