-- Postpones a report that could not be stored, and remembers why. The pause doubles with every failure.
--
-- KEYS   1 job  2 units  3 owners  4 attempts
-- ARGV   1 owner  2 error  3 first_pause_s  4 longest_pause_s  5 patience_s
-- Reply  'later'
--        'over'  the report has failed for patience_s; nothing is postponed
--        'lost'  another owner has claimed the report, or it is no longer open

--- @include "now"
--- @include "release_unit"

if redis.call('HGET', KEYS[3], 'finish') ~= ARGV[1] then return 'lost' end
local at = now()
redis.call('HSETNX', KEYS[1], 'report_failing_since', at)
redis.call('HSET', KEYS[1], 'report_error', ARGV[2])
local failures = redis.call('HINCRBY', KEYS[1], 'report_failures', 1)
if at - tonumber(redis.call('HGET', KEYS[1], 'report_failing_since')) >= tonumber(ARGV[5]) then return 'over' end
local pause_s = math.min(tonumber(ARGV[3]) * 2 ^ math.min(failures - 1, 30), tonumber(ARGV[4]))
release_unit(KEYS[2], KEYS[3], KEYS[4], 'finish', ARGV[1], at + pause_s)
return 'later'
