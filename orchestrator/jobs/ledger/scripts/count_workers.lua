-- Counts the workers that are alive.
--
-- KEYS   1 workers
-- Reply  their number

--- @include "now"

return redis.call('ZCOUNT', KEYS[1], now(), '+inf')
