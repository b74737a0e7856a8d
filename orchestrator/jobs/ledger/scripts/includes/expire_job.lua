-- expire_job(): lets the plan, the records and the request id of a job that has ended expire in ttl_s seconds.
local function expire_job(job, shards, records, ttl_s)
  redis.call('EXPIRE', shards, ttl_s)
  redis.call('EXPIRE', records, ttl_s)
  local request = redis.call('HGET', job, 'request')
  if request then redis.call('EXPIRE', request, ttl_s) end
end
