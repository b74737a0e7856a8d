"""The ledger's transitions, each one Lua script: Redis runs a script to its end before anything else.

A job is cut into units of work: its shards, "0" to "n-1", and at the end "finish", which writes the report. The sorted
set `units` holds the open ones, scored by the time (Redis's own clock, seconds) from which anyone may take them: the
end of the lease of one that the hash `owners` names a holder of, a time long past for one that was never taken. Scripts
that look at every job make the names of their keys: they need a Redis that is no cluster, as Celery does.
"""

from __future__ import annotations

_NOW = """
local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end
"""

# close(): takes a unit off the list; opens "finish" when it was the last. Returns whether it did.
_CLOSE = """
local function close(job, units, owners, unit)
  redis.call('ZREM', units, unit)
  redis.call('HDEL', owners, unit)
  if redis.call('ZCARD', units) > 0 or redis.call('HSETNX', job, 'finishing', '1') == 0 then return 0 end
  redis.call('ZADD', units, 0, 'finish')
  return 1
end
"""

# expire(): forgets plan, records and request id of a job that has ended, ttl_s from now.
_EXPIRE = """
local function expire(job, shards, records, ttl_s)
  redis.call('EXPIRE', shards, ttl_s)
  redis.call('EXPIRE', records, ttl_s)
  local request = redis.call('HGET', job, 'request')
  if request then redis.call('EXPIRE', request, ttl_s) end
end
"""

_KEY = """
local function key(id, name) return ARGV[1] .. ':{' .. id .. '}:' .. name end
"""

# KEYS request job shards units index active; ARGV id digest units (field value)...
# Returns "" or, when the request id is known already, "id digest" of its job; then nothing is written.
PUBLISH = (
    _NOW
    + """
local known = redis.call('GET', KEYS[1])
if known then return known end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2])
redis.call('HSET', KEYS[2], unpack(ARGV, 4))
redis.call('PERSIST', KEYS[3])
for unit = 0, tonumber(ARGV[3]) - 1 do redis.call('ZADD', KEYS[4], unit, tostring(unit)) end
redis.call('ZADD', KEYS[5], now(), ARGV[1])
redis.call('SADD', KEYS[6], ARGV[1])
return ''
"""
)

# Takes the unit that is most due: a report before any shard, then a shard of the job of which fewest are held; of
# several, of the one that was served longest ago, the oldest first. Returns {} or {id, unit, attempts, exhausted}.
# Sent again by the same owner, as its reply was lost, it returns the same.
# KEYS active index; ARGV prefix owner lease_s unit_attempts finish_attempts
TAKE = (
    _NOW
    + _KEY
    + """
local reply = ARGV[1] .. ':taken:' .. ARGV[2]
local before = redis.call('LRANGE', reply, 0, -1)
if #before > 0 and redis.call('HGET', key(before[1], 'owners'), before[2]) == ARGV[2] then return before end
local at = now()
local best
local function better(candidate)
  if not best then return true end
  for place = 1, 4 do
    if candidate[place] ~= best[place] then return candidate[place] < best[place] end
  end
  return false
end
for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local units = key(id, 'units')
  local first = redis.call('ZRANGEBYSCORE', units, '-inf', at, 'LIMIT', 0, 1)[1]
  if first and (first == 'finish' or redis.call('HEXISTS', key(id, 'job'), 'cancelled') == 0) then
    local is_shard = first == 'finish' and 0 or 1
    local held = redis.call('ZCOUNT', units, '(' .. at, '+inf')
    local served = tonumber(redis.call('HGET', key(id, 'job'), 'served') or 0)
    local candidate = {is_shard, held, served, tonumber(redis.call('ZSCORE', KEYS[2], id) or 0), id, first}
    if better(candidate) then best = candidate end
  end
end
if not best then return {} end
local id, unit = best[5], best[6]
redis.call('HSET', key(id, 'owners'), unit, ARGV[2])
redis.call('ZADD', key(id, 'units'), at + tonumber(ARGV[3]), unit)
local job = key(id, 'job')
redis.call('HSET', job, 'served', string.format('%.6f', at))
if redis.call('HGET', job, 'state') == 'queued' then redis.call('HSET', job, 'state', 'running') end
local attempts = redis.call('HINCRBY', key(id, 'attempts'), unit, 1)
local most = tonumber(unit == 'finish' and ARGV[5] or ARGV[4])
local taken = {id, unit, attempts, attempts > most and 1 or 0}
redis.call('RPUSH', reply, unpack(taken))
redis.call('EXPIRE', reply, 60)
return taken
"""
)

# KEYS job units owners; ARGV unit owner lease_s
RENEW = (
    _NOW
    + """
if redis.call('HGET', KEYS[3], ARGV[1]) ~= ARGV[2] then return 'lost' end
redis.call('ZADD', KEYS[2], 'XX', now() + tonumber(ARGV[3]), ARGV[1])
if redis.call('HGET', KEYS[1], 'cancelled') then return 'cancelled' end
return 'held'
"""
)

# release(): gives a unit back undone, in good order: the attempt does not count. Returns whether `owner` held it.
_RELEASE = """
local function release(units, owners, attempts, unit, owner, from)
  if redis.call('HGET', owners, unit) ~= owner then return 0 end
  redis.call('HDEL', owners, unit)
  redis.call('HINCRBY', attempts, unit, -1)
  redis.call('ZADD', units, 'XX', from, unit)
  return 1
end
"""

# KEYS units owners attempts; ARGV unit owner
RELEASE = _RELEASE + "return release(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2], 0)"

# Puts the report off that could not be stored, and remembers why. Returns "later", "over" when that has gone on for
# patience_s, or "lost". KEYS job units owners attempts; ARGV owner error first_pause_s longest_pause_s patience_s
POSTPONE = (
    _NOW
    + _RELEASE
    + """
if redis.call('HGET', KEYS[3], 'finish') ~= ARGV[1] then return 'lost' end
local at = now()
redis.call('HSETNX', KEYS[1], 'report_failing_since', at)
redis.call('HSET', KEYS[1], 'report_error', ARGV[2])
local failures = redis.call('HINCRBY', KEYS[1], 'report_failures', 1)
if at - tonumber(redis.call('HGET', KEYS[1], 'report_failing_since')) >= tonumber(ARGV[5]) then return 'over' end
local pause_s = math.min(tonumber(ARGV[3]) * 2 ^ math.min(failures - 1, 30), tonumber(ARGV[4]))
release(KEYS[2], KEYS[3], KEYS[4], 'finish', ARGV[1], at + pause_s)
return 'later'
"""
)

# KEYS job units owners; ARGV unit. Returns 1 when it was the last shard: "finish" is open now.
CLOSE = (
    _CLOSE
    + """
if redis.call('ZSCORE', KEYS[2], ARGV[1]) == false then return 0 end
return close(KEYS[1], KEYS[2], KEYS[3], ARGV[1])
"""
)

# Counted before the sample is asked: what kills its worker is found by what it had begun and never recorded. The hash
# `tries` names the owners that began a sample, parted by blanks, so that one that begins twice, as its reply was lost,
# counts once. KEYS job owners records tries; ARGV unit owner key max_tries
BEGIN = """
if redis.call('HGET', KEYS[1], 'cancelled') then return 'cancelled' end
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 'lost' end
if redis.call('HEXISTS', KEYS[3], ARGV[3]) == 1 then return 'recorded' end
local begun = redis.call('HGET', KEYS[4], ARGV[3]) or ''
if not string.find(begun, ARGV[2], 1, true) then
  begun = begun .. ' ' .. ARGV[2]
  redis.call('HSET', KEYS[4], ARGV[3], begun)
end
local _, count = string.gsub(begun, '%S+', '')
return count > tonumber(ARGV[4]) and 'exhausted' or 'begun'
"""

# KEYS tries; ARGV key owner. Takes back what that owner began.
ABANDON = """
local left = {}
for owner in string.gmatch(redis.call('HGET', KEYS[1], ARGV[1]) or '', '%S+') do
  if owner ~= ARGV[2] then table.insert(left, owner) end
end
if #left == 0 then return redis.call('HDEL', KEYS[1], ARGV[1]) end
redis.call('HSET', KEYS[1], ARGV[1], table.concat(left, ' '))
return 1
"""

# KEYS job records tries attempts; ARGV key record failed unit. Counts move only when the record is new.
RECORD = """
if redis.call('HEXISTS', KEYS[1], 'id') == 0 or redis.call('HGET', KEYS[1], 'finishing') then return 0 end
if redis.call('HSETNX', KEYS[2], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('HINCRBY', KEYS[1], 'done', 1)
if ARGV[3] == '1' then redis.call('HINCRBY', KEYS[1], 'failed', 1) end
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('HSET', KEYS[4], ARGV[4], 1)
return 1
"""

# Stops a job: units that nobody holds are taken off. Returns 1 when "finish" is open now, 2 when nothing had been
# recorded or held, so that the job has ended here, and 3 when its report was put off, so that it has failed here.
# KEYS job units owners attempts tries active shards records; ARGV id time ttl_s
CANCEL = (
    _NOW
    + _CLOSE
    + _EXPIRE
    + """
local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'queued' and state ~= 'running' then return 0 end
if redis.call('HGET', KEYS[1], 'finishing') then
  local said = redis.call('HGET', KEYS[1], 'report_error')
  if not said or redis.call('HEXISTS', KEYS[3], 'finish') == 1 then return 0 end
  redis.call('DEL', KEYS[2], KEYS[3], KEYS[4], KEYS[5])
  redis.call('HSET', KEYS[1], 'state', 'failed', 'ended', ARGV[2], 'error', 'the report was given up: ' .. said)
  redis.call('HDEL', KEYS[1], 'report_error', 'report_failures', 'report_failing_since')
  redis.call('SREM', KEYS[6], ARGV[1])
  return 3
end
redis.call('HSET', KEYS[1], 'cancelled', '1')
local opened = 0
for _, unit in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now())) do
  opened = opened + close(KEYS[1], KEYS[2], KEYS[3], unit)
end
if opened == 0 or tonumber(redis.call('HGET', KEYS[1], 'done')) > 0 then return opened end
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4], KEYS[5])
redis.call('HSET', KEYS[1], 'state', 'cancelled', 'ended', ARGV[2])
redis.call('SREM', KEYS[6], ARGV[1])
expire(KEYS[1], KEYS[7], KEYS[8], ARGV[3])
return 2
"""
)

# Takes the shards of cancelled jobs off whose holder died, and counts. Returns {jobs, waiting, held}.
# KEYS active; ARGV prefix
SWEEP = (
    _NOW
    + _KEY
    + _CLOSE
    + """
local at = now()
local jobs, waiting, held = 0, 0, 0
for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local job, units, owners = key(id, 'job'), key(id, 'units'), key(id, 'owners')
  if redis.call('HEXISTS', job, 'cancelled') == 1 then
    for _, unit in ipairs(redis.call('ZRANGEBYSCORE', units, '-inf', at)) do
      if unit ~= 'finish' then close(job, units, owners, unit) end
    end
  end
  jobs = jobs + 1
  waiting = waiting + redis.call('ZCOUNT', units, '-inf', at)
  held = held + redis.call('ZCOUNT', units, '(' .. at, '+inf')
  local report_from = tonumber(redis.call('ZSCORE', units, 'finish') or 0)
  if report_from > at and redis.call('HEXISTS', owners, 'finish') == 0 then held = held - 1 end
end
return {jobs, waiting, held}
"""
)

# KEYS job active units owners attempts tries shards records; ARGV id state time error ttl_s (0: for good). Returns 1
# when the job ended by this call.
CONCLUDE = (
    _EXPIRE
    + """
local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'queued' and state ~= 'running' then return 0 end
redis.call('HSET', KEYS[1], 'state', ARGV[2], 'ended', ARGV[3], 'error', ARGV[4])
redis.call('HDEL', KEYS[1], 'report_error', 'report_failures', 'report_failing_since')
redis.call('SREM', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[3], KEYS[4], KEYS[5], KEYS[6])
if tonumber(ARGV[5]) > 0 then expire(KEYS[1], KEYS[7], KEYS[8], ARGV[5]) end
return 1
"""
)

# Opens the report of a job that failed anew, or that was put off at once. Returns 0 when there is none to open.
# KEYS job active units owners; ARGV id
REOPEN = """
local state = redis.call('HGET', KEYS[1], 'state')
if state == 'running' and redis.call('HGET', KEYS[1], 'finishing') then
  if redis.call('HEXISTS', KEYS[4], 'finish') == 0 then redis.call('ZADD', KEYS[3], 'XX', 0, 'finish') end
  return 1
end
if state ~= 'failed' then return 0 end
redis.call('HSET', KEYS[1], 'state', 'running', 'finishing', '1')
redis.call('HDEL', KEYS[1], 'ended', 'error')
redis.call('ZADD', KEYS[3], 0, 'finish')
redis.call('SADD', KEYS[2], ARGV[1])
return 1
"""

# Forgets a job that has ended. Returns 0 when it has not. KEYS job index shards records; ARGV id
DELETE = """
local state = redis.call('HGET', KEYS[1], 'state')
if state == 'queued' or state == 'running' then return 0 end
local request = redis.call('HGET', KEYS[1], 'request')
if request then redis.call('DEL', request) end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[1], KEYS[3], KEYS[4])
return 1
"""
