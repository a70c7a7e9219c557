-- Put before every other script: the names of a partition's keys, the clock, how entries are stored and removed.
--
--   KEYS[1]  the root of one partition, "{prefix:N}"; every other key is built from it, so all share one slot
--   ARGV[1]  the time in µs that a test's clock shows; empty: Redis' own TIME
--
-- A topic arrives as bytes that end in two NULs (see `_topic_id` in redis.py); topic .. key names one entry.
--
--   root:topic:T    hash    '' -> epoch, revision;  'h'key -> deadline, stamp, grace, kept, owner;  'p'key -> payload
--   root:client:C   set     the entries that client C owns, so that its cap and its end cost O(owned)
--   root:deadlines  zset    entry by deadline in µs; without a deadline, by when it goes as a last resort
--   root:index      zset    every entry, all with score 0, in the order of names
--   root:homes      hash    client -> the node that holds its connection
--   root:node:N     zset    the clients at home at node N, by when they were last written for, in µs
--   root:buried:N   hash    entry -> the client that owned it when node N was buried, for an hour
--   root:generation string  when this life of the partition began, in µs: another one after it has lost everything
--   root:leases     zset    node by the end of its lease in µs        (this and all below: in partition 0 only)
--   root:nodes      hash    node -> what people may want to know of it
--   root:who:N      hash    client -> what people may want to know of it, of those whose connection node N holds
--   root:minute:M   hash    what was counted in the minute M since 1970: set, explicit, disconnect, expired
--   root:recent     list    the latest transitions, the last one first
--   root:dying      zset    node whose lease was taken away, and whose clients are being cleared
--
-- A stamp is the epoch and revision of the set that made its owner the owner. The grace is in ms; -1: the owner is
-- gone, and the deadline is the end of its grace. Kept: the time in µs when client and home were last written for
-- this entry; an owner that sets its key again and again need not be written down each time.
--
-- Payloads have a field of their own so that fencing, removing and browsing never copy them.

local root = KEYS[1]
local DEADLINES = root .. ':deadlines'
local INDEX = root .. ':index'
local HOMES = root .. ':homes'
local LEASES = root .. ':leases'
local NODES = root .. ':nodes'
local DYING = root .. ':dying'
local GENERATION = root .. ':generation'

local function topic_key(topic)
  return root .. ':topic:' .. topic
end

local function client_key(client)
  return root .. ':client:' .. client
end

local function node_key(node)
  return root .. ':node:' .. node
end

local function buried_key(node)
  return root .. ':buried:' .. node
end

local RECENT = root .. ':recent'

local function who_key(node)
  return root .. ':who:' .. node
end

local function minute_key(minute)
  return root .. ':minute:' .. string.format('%.0f', minute)
end

-- Read once: what a script writes first in a life must not seem older than that life, and in Redis 6.2 time goes on.
local time_us

local function now_us()
  if ARGV[1] ~= '' then
    return tonumber(ARGV[1])
  end
  if not time_us then
    local time = redis.call('TIME')
    time_us = time[1] * 1000000 + time[2]
  end
  return time_us
end

-- 0: nothing has been written in this life yet.
local function generation()
  return tonumber(redis.call('GET', GENERATION) or 0)
end

local function keep_generation(key_ttl_ms)
  redis.pcall('SET', GENERATION, string.format('%.0f', math.max(1, now_us())), 'NX')
  redis.call('PEXPIRE', GENERATION, key_ttl_ms)
end

-- Bytes that may hold anything, with their length before them.
local function sized(bytes)
  return struct.pack('>I4', #bytes) .. bytes
end

-- The topic and the key of an entry; nothing of what is none, though an index has it.
local function split(entry)
  local _, namespace_end = string.find(entry, '\0\0', 1, true)
  if not namespace_end then
    return nil
  end
  local _, topic_end = string.find(entry, '\0\0', namespace_end + 1, true)
  if not topic_end then
    return nil
  end
  return string.sub(entry, 1, topic_end), string.sub(entry, topic_end + 1)
end

local HEADER_SIZE = 40

local function header(deadline, epoch, revision, grace, kept, owner)
  return struct.pack('>ddddd', deadline, epoch, revision, grace, kept) .. owner
end

-- What stands in place of a header, if it is one: to everybody but the doctor an entry with another is not there.
local function as_header(stored)
  return stored and #stored >= HEADER_SIZE and stored or false
end

local function owner_of(head)
  return string.sub(head, HEADER_SIZE + 1)
end

local function kept_of(head)
  return (struct.unpack('>d', head, 33))
end

local function grace_of(head)
  return (struct.unpack('>d', head, 25))
end

-- Whether the entry's owner became it later than, or with, the given stamp.
local function is_newer(head, epoch, revision)
  local _, its_epoch, its_revision = struct.unpack('>ddd', head)
  return its_epoch > epoch or (its_epoch == epoch and its_revision >= revision)
end

local function deadline_of(head)
  return (struct.unpack('>d', head))
end

-- The result of redis.pcall is an error.
local function failed(result)
  return type(result) == 'table' and result.err
end

-- The text of Redis' error, naming the key. Error replies end at a NUL, and the text may be shown to somebody.
local function at_key(result, key)
  local text = string.gsub(string.gsub(result.err, '^@user_script: ?%d+: %-?', ''), '%s+$', '')  -- Redis 6.2
  local name = string.gsub(key, '%c', function(c)
    return string.format('\\x%02x', string.byte(c))
  end)
  return text .. ' at key ' .. name
end

-- The epoch and revision that the next change of a topic gets, from what is stored under ''.
local function next_revision(stored, now)
  if not stored or #stored ~= 16 then
    return math.max(1, math.floor(now)), 1
  end
  local epoch, revision = struct.unpack('>dd', stored)
  return epoch, revision + 1
end

-- What this script has changed: to be given its time to live at the end, once each.
local touched = {topics = {}, clients = {}, any = false}

-- Entries and what their scores among the deadlines are to be, written at the end by one command. Scores as text: Redis
-- takes longer to write a number down and read it again than for the rest of the command, and many are the same.
local due, scores = {}, {}

local function put_due(entry, deadline)
  local score = scores[deadline]
  if not score then
    score = string.format('%.17g', deadline)
    scores[deadline] = score
  end
  due[entry] = score
end

local function take_due(entry)
  due[entry] = nil
  redis.call('ZREM', DEADLINES, entry)
end

local function write_due()
  local arguments = {}
  for entry, score in pairs(due) do
    arguments[#arguments + 1] = score
    arguments[#arguments + 1] = entry
    if #arguments == 1000 then  -- far below what unpack can
      redis.call('ZADD', DEADLINES, unpack(arguments))
      arguments = {}
    end
  end
  if #arguments > 0 then
    redis.call('ZADD', DEADLINES, unpack(arguments))
  end
end

-- Remove an entry whose header the caller has just checked. Returns the change, packed for Python.
local function remove(now, topic, key, owner)
  local tkey, entry = topic_key(topic), topic .. key
  local epoch, revision = next_revision(redis.call('HGET', tkey, ''), now)
  -- First, since it needs no memory: at maxmemory Redis lets a script that has begun to write go on.
  redis.call('HDEL', tkey, 'h' .. key, 'p' .. key)
  redis.call('HSET', tkey, '', struct.pack('>dd', epoch, revision))
  redis.pcall('SREM', client_key(owner), entry)
  take_due(entry)
  redis.call('ZREM', INDEX, entry)
  touched.topics[tkey], touched.any = true, true
  return struct.pack('>dd', epoch, revision) .. sized(topic) .. sized(key) .. sized(owner)
end

-- The header of an entry; false where there is none, also for want of a topic and a key.
local function get_header(topic, key)
  local head = topic and redis.pcall('HGET', topic_key(topic), 'h' .. key)
  return not failed(head) and as_header(head)
end

-- Forget an entry that the indexes know but that is not there any more: its topic was evicted or deleted.
local function forget(entry)
  take_due(entry)
  redis.call('ZREM', INDEX, entry)
end

-- To be called at the end of every script that writes. Also the last resort: whatever is stored goes by itself, when
-- nobody is left to remove it.
local function finish(key_ttl_ms, empty_ttl_ms)
  write_due()
  for tkey in pairs(touched.topics) do
    -- An empty topic keeps its revision for a while, so that revisions go on when it is used again.
    redis.call('PEXPIRE', tkey, redis.call('HLEN', tkey) == 1 and empty_ttl_ms or key_ttl_ms)
  end
  for ckey in pairs(touched.clients) do
    redis.call('PEXPIRE', ckey, key_ttl_ms)
  end
  if touched.any then
    redis.call('PEXPIRE', DEADLINES, key_ttl_ms)
    redis.call('PEXPIRE', INDEX, key_ttl_ms)
    keep_generation(key_ttl_ms)
  end
end

-- Whether an entry stays for its grace though its client is gone.
local function linger(now, topic, key, head)
  local deadline, epoch, revision, grace, kept = struct.unpack('>ddddd', head)
  if grace <= 0 then
    return grace < 0
  end
  local till, owner = now + grace * 1000, owner_of(head)
  local is_shorter = till < deadline
  -- Its owner has no home any more, also if it ends by itself before its grace does.
  local left = is_shorter and header(till, epoch, revision, -1, kept, owner)
    or header(deadline, epoch, revision, grace, -math.huge, owner)
  if failed(redis.pcall('HSET', topic_key(topic), 'h' .. key, left)) then
    return false
  end
  if is_shorter then
    put_due(topic .. key, till)
  end
  return true
end

-- Remove what a client owns, fenced; if it ended abnormally, what has a grace lingers. `buried`, if any, is where to
-- note what is removed, or will be after its grace. Returns the number of changes, the changes, packed, and how many
-- entries were looked at.
local function drop_client(now, client, abnormal, buried)
  local ckey = client_key(client)
  local entries = redis.pcall('SMEMBERS', ckey)
  if failed(entries) then
    return nil, entries
  end
  local changes = {}
  for _, entry in ipairs(entries) do
    local topic, key = split(entry)
    local head = get_header(topic, key)
    if not head then
      forget(entry)
      redis.call('SREM', ckey, entry)
    elseif owner_of(head) ~= client then
      redis.call('SREM', ckey, entry)
    else
      if not (abnormal and linger(now, topic, key, head)) then
        changes[#changes + 1] = remove(now, topic, key, client)
      end
      if buried then
        redis.pcall('HSET', buried, entry, client)
      end
    end
  end
  local home = redis.pcall('HGET', HOMES, client)
  if home and not failed(home) then
    redis.pcall('ZREM', node_key(home), client)
    redis.call('HDEL', HOMES, client)
  end
  return #changes, table.concat(changes), #entries
end

-- From now on the end of the node is the end of the client.
local function move_home(now, client, node, key_ttl_ms)
  local home = redis.call('HGET', HOMES, client)
  if home ~= node then
    if home then
      redis.pcall('ZREM', node_key(home), client)
    end
    redis.call('HSET', HOMES, client, node)
  end
  redis.call('PEXPIRE', HOMES, key_ttl_ms)
  redis.pcall('ZADD', node_key(node), now, client)
  redis.pcall('PEXPIRE', node_key(node), key_ttl_ms)
end
