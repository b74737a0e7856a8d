-- Renews the lease of a unit.
--
-- KEYS   1 job  2 units  3 owners
-- ARGV   1 unit  2 owner  3 lease_s
-- Reply  'held'
--        'cancelled'  held, but the job was cancelled
--        'lost'       another owner has claimed the unit, or it is no longer open

--- @include "now"

if redis.call('HGET', KEYS[3], ARGV[1]) ~= ARGV[2] then return 'lost' end
redis.call('ZADD', KEYS[2], 'XX', now() + tonumber(ARGV[3]), ARGV[1])
if redis.call('HGET', KEYS[1], 'cancelled') then return 'cancelled' end
return 'held'
