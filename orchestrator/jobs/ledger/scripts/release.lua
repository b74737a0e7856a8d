-- Returns a unit undone, to be claimed at once. The attempt does not count.
--
-- KEYS   1 units  2 owners  3 attempts
-- ARGV   1 unit  2 owner
-- Reply  'released'
--        'lost'  another owner has claimed the unit, or it is no longer open

--- @include "release_unit"

return release_unit(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2], 0) and 'released' or 'lost'
