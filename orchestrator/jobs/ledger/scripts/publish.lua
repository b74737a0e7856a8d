-- Publishes a job whose plan is stored under `shards` already, unless its request id is taken.
--
-- KEYS   1 request  2 job  3 shards  4 units  5 index  6 active
-- ARGV   1 evaluation id  2 digest of the spec  3 number of shards  4... fields of the job: name, value, name, value
-- Reply  {'published'}, also if this call is a repetition because its first reply was lost
--        {'known', evaluation id, digest} if another job has the request id; nothing is written

--- @include "now"

local known = redis.call('GET', KEYS[1])
if known then
  local id, digest = string.match(known, '^(%S+) (%S+)$')
  if id == ARGV[1] then return {'published'} end
  return {'known', id, digest}
end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2])
redis.call('HSET', KEYS[2], unpack(ARGV, 4))
-- The plan was written with a time to live, in case its writer died before this call.
redis.call('PERSIST', KEYS[3])
-- The scores 0 to n-1 are times long past: every shard can be claimed at once, in order.
for unit = 0, tonumber(ARGV[3]) - 1 do
  redis.call('ZADD', KEYS[4], unit, tostring(unit))
end
redis.call('ZADD', KEYS[5], now(), ARGV[1])
redis.call('SADD', KEYS[6], ARGV[1])
return {'published'}
