-- release_unit(): returns a unit undone. It can be claimed from the time `from` on, and the attempt does not count.
-- Returns whether `owner` held it.
local function release_unit(units, owners, attempts, unit, owner, from)
  if redis.call('HGET', owners, unit) ~= owner then return false end
  redis.call('HDEL', owners, unit)
  redis.call('HINCRBY', attempts, unit, -1)
  redis.call('ZADD', units, 'XX', from, unit)
  return true
end
