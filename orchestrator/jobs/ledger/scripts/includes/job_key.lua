-- job_key(id, name): a key of any job. Scripts that visit all active jobs build their keys themselves and expect the
-- prefix in ARGV[1]; that rules out a Redis cluster, as Celery does.
local function job_key(id, name)
  return ARGV[1] .. ':{' .. id .. '}:' .. name
end
