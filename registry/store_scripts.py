"""The store's Lua scripts. They compare the lease and the commit number, and write; they decide nothing else.

Every script is given KEYS, in this order. A script runs whole or not at all: what could be refused (a replica,
a full memory, a failing disk) is refused at its first write, and the clock that keys expire by stands meanwhile.
"""

KEYS = ("records", "last", "changes", "seq", "meta", "lease")
STREAM_LENGTH = 10_000  # entries a worker may lie behind before it loads everything again
AUDIT_LENGTH = 20_000  # lines, 8 MB: how long the audit log's files may be out of reach before some are lost

# ARGV: beat prefix, window_ms, worker, batch. A batch is `key at_ms size\n` and `size` bytes for each
# beat: one string goes to the stream as it came, and costs callers nothing to take apart.
# Answers the positions of the keys that have no record. One HSET, one XADD for the whole batch.
BEATS = f"""
local batch, at, position = ARGV[4], 1, 0
local missing, last = {{}}, {{}}
while at <= #batch do
  local _, stop, key, at_ms, size = string.find(batch, '^([^ ]+) (%d+) (%d+)\\n', at)
  at = stop + 1 + tonumber(size)
  if redis.call('HEXISTS', KEYS[1], key) == 1 then
    local value = ARGV[2] .. ' ' .. at_ms .. ' ' .. string.sub(batch, stop + 1, at - 1)
    redis.call('SET', ARGV[1] .. key, value, 'PX', ARGV[2])
    last[#last + 1] = key
    last[#last + 1] = at_ms
  else
    missing[#missing + 1] = position
  end
  position = position + 1
end
if #last > 0 then
  redis.call('HSET', KEYS[2], unpack(last))
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', {STREAM_LENGTH}, '*', 'w', ARGV[3], 'h', batch)
end
return missing
"""

# ARGV: token, the expected numbers or '' for any, number, worker, all keys, beat prefix, 1 with a meta, meta; the audit
# log's key, lines for it with line feeds between, the number of the entry that they come after, how many entries that
# other workers left are among them, as which number the last of those; how many values follow, key and value of each
# record to keep, keys to remove. Commits' numbers have 16 digits, the expected ones a space on either side. The stream
# gets the keys, not the records: those of a newcomer region would fill it. Lines of the audit log that it has are not
# added again; a log that does not reach to the one before them, or goes beyond them, is none of the writer's.
# The number is written last: should a key of ours hold something foreign, the writer sees that it was not committed.
COMMIT = f"""
local holder = redis.call('GET', KEYS[6])
if not holder or string.match(holder, '^[^ ]*') ~= ARGV[1] then return 'fenced' end
local newest = redis.call('GET', KEYS[4]) or '0000000000000000'
if ARGV[2] ~= '' and not string.find(ARGV[2], ' ' .. newest .. ' ', 1, true) then return 'changed' end
if ARGV[10] ~= '' then
  local last = redis.call('LINDEX', ARGV[9], -1)
  local held = last and tonumber(string.match(last, '^{{"seq":(%d+)')) or 0
  local seq = tonumber(ARGV[11])
  local _, feeds = string.gsub(ARGV[10], '\\n', '')
  if held < seq or held > seq + feeds + 1 then
    redis.call('DEL', ARGV[9])
    held = seq
  end
  for line in string.gmatch(ARGV[10], '[^\\n]+') do
    seq = seq + 1
    if seq > held then redis.call('RPUSH', ARGV[9], line) end
  end
  redis.call('LTRIM', ARGV[9], -{AUDIT_LENGTH}, -1)
  if ARGV[12] ~= '0' and held < tonumber(ARGV[13]) then
    redis.call('LTRIM', ARGV[9] .. ':left', ARGV[12], -1)
  end
end
local stop = 14 + tonumber(ARGV[14])
if stop > 14 then redis.call('HSET', KEYS[1], unpack(ARGV, 15, stop)) end
if #ARGV > stop then
  redis.call('HDEL', KEYS[1], unpack(ARGV, stop + 1))
  redis.call('HDEL', KEYS[2], unpack(ARGV, stop + 1))
  for i = stop + 1, #ARGV do redis.call('DEL', ARGV[6] .. ARGV[i]) end
end
if ARGV[7] == '1' then redis.call('SET', KEYS[5], ARGV[8]) end
if ARGV[5] ~= '' then
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', {STREAM_LENGTH}, '*', 'w', ARGV[4], 'c', ARGV[5], 'v', ARGV[3])
end
redis.call('SET', KEYS[4], ARGV[3])
return 'done'
"""

# ARGV: token, address, ttl_ms. Answers who holds the lease now.
# A failover may lose a lease that was just given, and another worker take it: then the first one's commits
# are fenced. A master that was cut off goes on taking its writer's commits until it is demoted, and loses them
# then, as it loses every write; the writer finds out by the number of the newest commit.
LEASE = """
local holder = redis.call('GET', KEYS[6])
if holder and string.match(holder, '^[^ ]*') ~= ARGV[1] then return holder end
holder = ARGV[1] .. ' ' .. ARGV[2]
redis.call('SET', KEYS[6], holder, 'PX', ARGV[3])
return holder
"""

# ARGV: token
RELEASE = """
local holder = redis.call('GET', KEYS[6])
if holder and string.match(holder, '^[^ ]*') == ARGV[1] then redis.call('DEL', KEYS[6]) end
return 1
"""

# ARGV: key of the value, value, worker, batch or ''. Readers of the stream take the batch as any other.
PUBLISH = f"""
redis.call('SET', ARGV[1], ARGV[2])
if ARGV[4] ~= '' then
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', {STREAM_LENGTH}, '*', 'w', ARGV[3], 'h', ARGV[4])
end
return 1
"""

# ARGV: beat prefix, keys. Answers the positions of those without a live beat.
UNHEARD = """
local silent = {}
for i = 2, #ARGV do
  if redis.call('EXISTS', ARGV[1] .. ARGV[i]) == 0 then silent[#silent + 1] = i - 2 end
end
return silent
"""

# ARGV: cursor, count. HSCAN without the values, which only Redis 7.4 can leave out: cursor, keys.
SCAN_KEYS = """
local found = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local keys = {found[1]}
for i = 1, #found[2], 2 do keys[#keys + 1] = found[2][i] end
return keys
"""

# ARGV: beat prefix, cursor, count. HSCAN with what is known of the newest heartbeats: cursor, and of each record key,
# value, beat, the beat's remaining life and when it was last heard, flat.
LOAD = """
local found = redis.call('HSCAN', KEYS[1], ARGV[2], 'COUNT', ARGV[3])
local loaded = {found[1]}
for i = 1, #found[2], 2 do
  local key = found[2][i]
  loaded[#loaded + 1] = key
  loaded[#loaded + 1] = found[2][i + 1]
  loaded[#loaded + 1] = redis.call('GET', ARGV[1] .. key)
  loaded[#loaded + 1] = redis.call('PTTL', ARGV[1] .. key)
  loaded[#loaded + 1] = redis.call('HGET', KEYS[2], key)
end
return loaded
"""

# ARGV: the audit log's key, a number, count. Answers the oldest `count` lines that come after that entry.
AUDIT_LINES = """
local last = redis.call('LINDEX', ARGV[1], -1)
if not last then return {} end
local newest = tonumber(string.match(last, '^{"seq":(%d+)'))
if not newest then return {} end
local first = newest - redis.call('LLEN', ARGV[1]) + 1
local from = math.max(0, tonumber(ARGV[2]) + 1 - first)
return redis.call('LRANGE', ARGV[1], from, from + tonumber(ARGV[3]) - 1)
"""

ALL = (BEATS, COMMIT, LEASE, RELEASE, PUBLISH, UNHEARD, SCAN_KEYS, LOAD, AUDIT_LINES)
