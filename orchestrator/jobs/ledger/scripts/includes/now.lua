-- now(): the time in seconds by Redis's own clock, so that workers' clocks are never compared.
local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end
