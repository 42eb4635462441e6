"""The store's Lua scripts. They compare versions and write; they decide nothing else."""

RECORDS, SEQ, LAST, OFFLINE, CHANGES = "records", "seq", "last", "offline", "changes"
STREAM_LENGTH = 10_000  # commits a worker may lie behind before it loads everything again

# ARGV: beat prefix, window_ms, worker, batch. A batch is `id at_ms size\n` and `size` bytes for each
# beat: one string goes to the stream as it came, and costs callers nothing to take apart.
# Answers the positions of the ids that have no record. One HSET, one XADD for the whole batch.
BEATS = f"""
local batch, at, position = ARGV[4], 1, 0
local missing, last, there = {{}}, {{}}, {{}}
while at <= #batch do
  local _, stop, id, at_ms, size = string.find(batch, '^([^ ]+) (%d+) (%d+)\\n', at)
  at = stop + 1 + tonumber(size)
  if redis.call('HEXISTS', KEYS[1], id) == 1 then
    local value = ARGV[2] .. ' ' .. at_ms .. ' ' .. string.sub(batch, stop + 1, at - 1)
    redis.call('SET', ARGV[1] .. id, value, 'PX', ARGV[2])
    last[#last + 1] = id
    last[#last + 1] = at_ms
    there[#there + 1] = id
  else
    missing[#missing + 1] = position
  end
  position = position + 1
end
if #there > 0 then
  redis.call('HSET', KEYS[2], unpack(last))
  if redis.call('EXISTS', KEYS[3]) == 1 then redis.call('HDEL', KEYS[3], unpack(there)) end
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', {STREAM_LENGTH}, '*', 'w', ARGV[3], 'h', batch)
end
return missing
"""

# Never under the clock, in milliseconds: a store that lost its newest commits (a failover, an old
# backup, FLUSHALL) must not hand out their versions a second time.
_NEXT_VERSION = """
local current = redis.call('HGET', KEYS[1], ARGV[1])
local held = current and string.sub(current, 1, 16) or '0000000000000000'
if held ~= ARGV[2] then return 0 end
local version = math.max(tonumber(redis.call('GET', KEYS[5]) or 0) + 1, tonumber(ARGV[3]))
local stamp = string.format('%016d', version)
redis.call('SET', KEYS[5], stamp)
"""

# ARGV: id, expected version, at_ms, worker, data, beat key, beat value or '', window_ms
PUT = f"""{_NEXT_VERSION}
redis.call('HSET', KEYS[1], ARGV[1], stamp .. ARGV[5])
if ARGV[7] ~= '' then
  redis.call('SET', ARGV[6], ARGV[7], 'PX', ARGV[8])
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
  redis.call('HDEL', KEYS[3], ARGV[1])
end
redis.call('XADD', KEYS[4], 'MAXLEN', '~', {STREAM_LENGTH}, '*',
  'w', ARGV[4], 'p', ARGV[1], 'v', stamp, 't', ARGV[3], 'd', ARGV[5], 'b', ARGV[7])
return version
"""
# ARGV: id, expected version, at_ms, worker, beat key
DELETE = f"""{_NEXT_VERSION}
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('DEL', ARGV[5])
redis.call('XADD', KEYS[4], 'MAXLEN', '~', {STREAM_LENGTH}, '*',
  'w', ARGV[4], 'x', ARGV[1], 'v', stamp, 't', ARGV[3])
return version
"""

# ARGV: beat prefix, at_ms, ids. Marks those that have a record and no live beat; answers them.
MARK_OFFLINE = """
local marked = {}
for i = 3, #ARGV do
  if redis.call('HEXISTS', KEYS[1], ARGV[i]) == 1 and redis.call('EXISTS', ARGV[1] .. ARGV[i]) == 0 then
    redis.call('HSET', KEYS[3], ARGV[i], ARGV[2])
    marked[#marked + 1] = ARGV[i]
  end
end
return marked
"""

# ARGV: beat prefix, ids. Answers value and remaining life of each, flat.
READ_BEATS = """
local found = {}
for i = 2, #ARGV do
  found[#found + 1] = redis.call('GET', ARGV[1] .. ARGV[i])
  found[#found + 1] = redis.call('PTTL', ARGV[1] .. ARGV[i])
end
return found
"""
