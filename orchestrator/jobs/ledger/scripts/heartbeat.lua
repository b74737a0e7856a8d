-- Marks a worker as alive for ttl_s seconds. The set `workers` is scored by the time until which a worker is alive.
--
-- KEYS   1 workers
-- ARGV   1 worker  2 ttl_s
-- Reply  'alive'

--- @include "now"

local at = now()
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', at)
redis.call('ZADD', KEYS[1], at + tonumber(ARGV[2]), ARGV[1])
return 'alive'
