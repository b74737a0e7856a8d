-- Removes an owner's try of a sample: the worker lives on, so it did not die of the sample.
--
-- KEYS   1 tries
-- ARGV   1 sample key  2 owner
-- Reply  'unclaimed', also if there was no such try

local others = {}
for owner in string.gmatch(redis.call('HGET', KEYS[1], ARGV[1]) or '', '%S+') do
  if owner ~= ARGV[2] then table.insert(others, owner) end
end
if #others == 0 then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], table.concat(others, ' '))
end
return 'unclaimed'
