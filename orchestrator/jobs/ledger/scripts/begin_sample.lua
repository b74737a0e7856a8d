-- Allows the owner of a shard to ask for the answer to a sample, and counts the try before it is made: a sample that
-- kills its worker is one that was begun and never recorded.
--
-- KEYS   1 job  2 owners  3 records  4 tries
-- ARGV   1 unit  2 owner  3 sample key  4 most tries
-- Reply  'begun'
--        'exhausted'  too many owners have begun it and never recorded it
--        'recorded'   it has its record
--        'lost'       another owner has claimed the shard, or it is no longer open
--        'cancelled'  the job was cancelled

if redis.call('HGET', KEYS[1], 'cancelled') then return 'cancelled' end
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 'lost' end
if redis.call('HEXISTS', KEYS[3], ARGV[3]) == 1 then return 'recorded' end
-- `tries` names the owners that began a sample, separated by blanks, so that a call that is repeated because its reply
-- was lost counts once.
local begun = redis.call('HGET', KEYS[4], ARGV[3]) or ''
if not string.find(begun, ARGV[2], 1, true) then
  begun = begun .. ' ' .. ARGV[2]
  redis.call('HSET', KEYS[4], ARGV[3], begun)
end
local _, tries = string.gsub(begun, '%S+', '')
return tries > tonumber(ARGV[4]) and 'exhausted' or 'begun'
