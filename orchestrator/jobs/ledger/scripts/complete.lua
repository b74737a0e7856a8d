-- Completes a shard: removes it from the open units. Opens the report after the last one.
--
-- KEYS   1 job  2 units  3 owners
-- ARGV   1 unit
-- Reply  'report_due'   this was the last shard; the report is open now
--        'shards_left'
--        'not_open'     the shard was completed before

--- @include "close_unit"

if redis.call('ZSCORE', KEYS[2], ARGV[1]) == false then return 'not_open' end
return close_unit(KEYS[1], KEYS[2], KEYS[3], ARGV[1]) and 'report_due' or 'shards_left'
