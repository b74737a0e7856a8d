"""The ledger's transitions, each one Lua script: Redis runs a script to its end before anything else.

A job is cut into units of work: its shards, "0" to "n-1", and at the end "finish", which writes the report. The sorted
set `units` holds the open ones, scored by the time (Redis's own clock, seconds) at which someone has to look after
them: the end of the lease where the hash `owners` names a holder, else the time to send the unit again.
"""

from __future__ import annotations

FINISH = "finish"

_NOW = """
local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end
"""

# close(): takes a unit off the list; opens "finish" when it was the last. Returns whether it did.
_CLOSE = """
local function close(job, units, owners, unit, resend_s)
  redis.call('ZREM', units, unit)
  redis.call('HDEL', owners, unit)
  if redis.call('ZCARD', units) > 0 or redis.call('HSETNX', job, 'finishing', '1') == 0 then return 0 end
  redis.call('ZADD', units, now() + resend_s, 'finish')
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

# KEYS request job shards units index active; ARGV id digest units resend_s (field value)...
# Returns "" or, when the request id is known already, "id digest" of its job; then nothing is written.
PUBLISH = (
    _NOW
    + """
local known = redis.call('GET', KEYS[1])
if known then return known end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2])
redis.call('HSET', KEYS[2], unpack(ARGV, 5))
redis.call('PERSIST', KEYS[3])
local at = now()
for unit = 0, tonumber(ARGV[3]) - 1 do redis.call('ZADD', KEYS[4], at + tonumber(ARGV[4]), tostring(unit)) end
redis.call('ZADD', KEYS[5], at, ARGV[1])
redis.call('SADD', KEYS[6], ARGV[1])
return ''
"""
)

# KEYS job units owners attempts; ARGV unit owner lease_s max_attempts
CLAIM = (
    _NOW
    + """
local state = redis.call('HGET', KEYS[1], 'state')
local score = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not state or not score then return 'over' end
local owner = redis.call('HGET', KEYS[3], ARGV[1])
if owner and owner ~= ARGV[2] and tonumber(score) > now() then return 'held' end
redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], now() + tonumber(ARGV[3]), ARGV[1])
if state == 'queued' then redis.call('HSET', KEYS[1], 'state', 'running') end
if redis.call('HINCRBY', KEYS[4], ARGV[1], 1) > tonumber(ARGV[4]) then return 'exhausted' end
return 'granted'
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

# Gives a unit back unfinished, to be sent again after delay_s.
# KEYS units owners attempts; ARGV unit owner delay_s refund
RELEASE = (
    _NOW
    + """
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HINCRBY', KEYS[3], ARGV[1], -tonumber(ARGV[4]))
redis.call('ZADD', KEYS[1], 'XX', now() + tonumber(ARGV[3]), ARGV[1])
return 1
"""
)

# KEYS job units owners; ARGV unit resend_s. Returns 1 when it was the last shard: "finish" is open now.
CLOSE = (
    _NOW
    + _CLOSE
    + """
if redis.call('ZSCORE', KEYS[2], ARGV[1]) == false then return 0 end
return close(KEYS[1], KEYS[2], KEYS[3], ARGV[1], tonumber(ARGV[2]))
"""
)

# Counted before the sample is asked: what kills its worker is found by what it had begun and never recorded.
# KEYS job owners records tries; ARGV unit owner key max_tries
BEGIN = """
if redis.call('HGET', KEYS[1], 'cancelled') then return 'cancelled' end
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 'lost' end
if redis.call('HEXISTS', KEYS[3], ARGV[3]) == 1 then return 'recorded' end
if redis.call('HINCRBY', KEYS[4], ARGV[3], 1) > tonumber(ARGV[4]) then return 'exhausted' end
return 'begun'
"""

# KEYS job records tries attempts; ARGV key record failed unit. Counts move only when the record is new.
RECORD = """
if redis.call('HGET', KEYS[1], 'finishing') then return 0 end
if redis.call('HSETNX', KEYS[2], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('HINCRBY', KEYS[1], 'done', 1)
if ARGV[3] == '1' then redis.call('HINCRBY', KEYS[1], 'failed', 1) end
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('HSET', KEYS[4], ARGV[4], 1)
return 1
"""

# Stops a job: units that nobody holds are taken off. Returns 1 when "finish" is to be sent, 2 when nothing had been
# recorded or held, so that the job has ended here.
# KEYS job units owners active shards records; ARGV id time resend_s ttl_s
CANCEL = (
    _NOW
    + _CLOSE
    + _EXPIRE
    + """
local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'queued' and state ~= 'running' then return 0 end
if redis.call('HGET', KEYS[1], 'finishing') then return 0 end
redis.call('HSET', KEYS[1], 'cancelled', '1')
local opened = 0
for _, unit in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  if redis.call('HEXISTS', KEYS[3], unit) == 0 then
    opened = opened + close(KEYS[1], KEYS[2], KEYS[3], unit, tonumber(ARGV[3]))
  end
end
if opened == 0 or tonumber(redis.call('HGET', KEYS[1], 'done')) > 0 then return opened end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[1], 'state', 'cancelled', 'ended', ARGV[2])
redis.call('SREM', KEYS[4], ARGV[1])
expire(KEYS[1], KEYS[5], KEYS[6], ARGV[4])
return 2
"""
)

# Takes the units whose time has come: leases that ran out, and units that were sent and never claimed, these only
# while the queue is empty, for else they may still stand in it; "finish" in any case. Returns those to send again.
# KEYS job units owners; ARGV queue_empty resend_s
OVERDUE = (
    _NOW
    + _CLOSE
    + """
local send = {}
local cancelled = redis.call('HGET', KEYS[1], 'cancelled')
local resend_s = tonumber(ARGV[2])
for _, unit in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now())) do
  local held = redis.call('HDEL', KEYS[3], unit) == 1
  if cancelled and unit ~= 'finish' then
    if close(KEYS[1], KEYS[2], KEYS[3], unit, resend_s) == 1 then table.insert(send, 'finish') end
  else
    if held or unit == 'finish' or ARGV[1] == '1' then table.insert(send, unit) end
    redis.call('ZADD', KEYS[2], now() + resend_s, unit)
  end
end
return send
"""
)

# KEYS job active units owners attempts tries shards records; ARGV id state time error ttl_s. Returns 1 when the job
# ended by this call.
CONCLUDE = (
    _EXPIRE
    + """
local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'queued' and state ~= 'running' then return 0 end
redis.call('HSET', KEYS[1], 'state', ARGV[2], 'ended', ARGV[3], 'error', ARGV[4])
redis.call('SREM', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[3], KEYS[4], KEYS[5], KEYS[6])
expire(KEYS[1], KEYS[7], KEYS[8], ARGV[5])
return 1
"""
)
