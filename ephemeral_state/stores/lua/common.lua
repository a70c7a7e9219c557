-- Put before every other script: the names of a partition's keys, the clock, how entries are stored and removed.
--
--   KEYS[1]  the root of one partition, "{prefix:N}"; every other key is built from it, so all share one slot
--   ARGV[1]  the time in µs that a test's clock shows; empty: Redis' own TIME
--
-- A topic arrives as bytes that end in two NULs (see `topic_id` in redis_wire.py); topic .. key names one entry.
--
--   root:topic:T    hash    '' -> epoch, revision, bytes, digest;  'h'key -> header (see below);  'p'key -> payload
--                           It exists while the topic has entries.
--   root:client:C   set     the entries that client C owns, so that its cap and its end cost O(owned)
--   root:taken:C    hash    entry -> epoch, revision of the change by which client C lost it to somebody else, while
--                           its connection lives at a node that need not have heard of that
--   root:deadlines  zset    entry by deadline in µs; without a deadline, by when it goes as a last resort
--   root:index      zset    every entry, all with score 0, in the order of names
--   root:homes      hash    client -> the node that holds its connection
--   root:node:N     zset    the clients at home at node N, by when they were last written for, in µs
--   root:fence:N    string  the number of the earliest batch of writer N that may still be applied; "inf": none, for
--                           node N was reaped
--   root:reaped:H   hash    entry -> the client that owned it when its node was reaped, in the hour H since 1970
--   root:gone       hash    entry -> its stamp: removed while the partition recovers from a loss (see `is_recovering`)
--   root:life       hash    born, floor, epoch, recovers, offset, seen: see `life`
--   root:leases     zset    node by the end of its lease in µs        (this and all below: in partition 0 only)
--   root:nodes      hash    node -> its metadata, JSON
--   root:who:N      hash    client -> its metadata, JSON, of those whose connection node N holds
--   root:minute:M   hash    what was counted in the minute M since 1970: set, explicit, disconnect, expired
--   root:recent     list    the latest transitions, the last one first
--   root:dying      zset    node whose lease was taken away, and whose clients are being cleared
--
-- A header is seven numbers and the owner:
--   deadline  in µs; infinite for an entry without one
--   epoch, revision  the stamp: of the set that gave the entry its present value. Writing back keeps it
--   grace     in ms; -1: the owner is gone, and the deadline is the end of its grace
--   kept      when client and home were last written for this entry, in µs; an owner that sets its key again and again
--             need not be written down each time. -inf: set by another writer than the owner's node, or the owner is gone
--   size      bytes of key and payload
--   changed   the revision of the change that subscribers were told of; what digests are made of
--
-- Payloads have a field of their own so that fencing, removing and browsing never copy them.

local root = KEYS[1]
local DEADLINES = root .. ':deadlines'
local INDEX = root .. ':index'
local HOMES = root .. ':homes'
local LEASES = root .. ':leases'
local NODES = root .. ':nodes'
local DYING = root .. ':dying'
local LIFE = root .. ':life'
local GONE = root .. ':gone'
local RECENT = root .. ':recent'

local HOUR_US = 3600 * 1000000
local RECOVERY_US = 5 * 1000000
local RECOVERY_NOTES_MS = 30 * 1000

local function topic_key(topic)
  return root .. ':topic:' .. topic
end

local function client_key(client)
  return root .. ':client:' .. client
end

local function node_key(node)
  return root .. ':node:' .. node
end

local function taken_key(client)
  return root .. ':taken:' .. client
end

local function fence_key(writer)
  return root .. ':fence:' .. writer
end

local function reaped_key(hour)
  return root .. ':reaped:' .. string.format('%.0f', hour)
end

local function who_key(node)
  return root .. ':who:' .. node
end

local function minute_key(minute)
  return root .. ':minute:' .. string.format('%.0f', minute)
end

-- The result of redis.pcall is an error.
local function failed(result)
  return type(result) == 'table' and result.err
end

-- One life of the partition: from the first write after it was empty to the next loss of everything. Times in µs.
--   born      when it began; 0: nothing has been written yet
--   floor     a topic of an earlier epoch begins a new one with its next change: raised when the store has gone back, so
--             that no later change has the stamp of one that was lost
--   epoch     the last epoch that was given to a topic: epochs never repeat, whatever the clock does
--   recovers  until when what is removed is noted, for nodes that still have to write back
--   offset    added to TIME so that the clock never goes back;  seen: see `keep_clock`
local LIFE_FIELDS = {'born', 'floor', 'epoch', 'recovers', 'offset', 'seen'}
local life, life_changed = {}, {}
do
  local stored = redis.pcall('HMGET', LIFE, unpack(LIFE_FIELDS))
  for index, field in ipairs(LIFE_FIELDS) do
    life[field] = not failed(stored) and tonumber(stored[index] or nil) or 0
  end
end

local function set_life(field, value)
  life[field], life_changed[field] = value, true
end

-- Read once: what a script writes first in a life must not seem older than that life, and in Redis 6.2 time goes on.
local time_us

local function now_us()
  if not time_us then
    local time = ARGV[1]
    if time == '' then
      local parts = redis.call('TIME')
      time = parts[1] * 1000000 + parts[2]
    end
    time_us = tonumber(time) + life.offset
  end
  return time_us
end

-- A clock that was put back goes on from where it was: at the latest time that a heartbeat or a sweep has seen.
local function keep_clock()
  if now_us() < life.seen then
    set_life('offset', life.offset + life.seen - now_us())
    time_us = life.seen
  end
  set_life('seen', now_us())
end

local function is_recovering()
  return life.born == 0 or now_us() < life.recovers
end

-- The store has lost something: all of it, or its latest writes. `beyond`: later than every epoch that was lost.
local function begin_recovery(beyond)
  set_life('epoch', math.max(life.epoch, beyond) + 1)
  set_life('floor', life.epoch)
  set_life('recovers', now_us() + RECOVERY_US)
end

local function begin_life()
  if life.born == 0 then
    set_life('born', math.max(1, math.floor(now_us())))
    set_life('recovers', now_us() + RECOVERY_US)
  end
end

local function keep_life(key_ttl_ms)
  begin_life()
  local arguments = {}
  for field in pairs(life_changed) do
    arguments[#arguments + 1] = field
    arguments[#arguments + 1] = string.format('%.17g', life[field])
  end
  if #arguments > 0 then
    redis.pcall('HSET', LIFE, unpack(arguments))
  end
  redis.call('PEXPIRE', LIFE, key_ttl_ms)
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

local HEADER_SIZE = 56

local function header(deadline, epoch, revision, grace, kept, size, changed, owner)
  return struct.pack('>ddddddd', deadline, epoch, revision, grace, kept, size, changed) .. owner
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

local function size_of(head)
  return (struct.unpack('>d', head, 41))
end

local function changed_of(head)
  return (struct.unpack('>d', head, 49))
end

-- Whether a stamp is that of a later set than the other one, or of the same.
local function is_stamp_newer(epoch, revision, other_epoch, other_revision)
  return epoch > other_epoch or (epoch == other_epoch and revision >= other_revision)
end

-- Whether the entry got its value later than, or with, the given stamp.
local function is_newer(head, epoch, revision)
  local _, its_epoch, its_revision = struct.unpack('>ddd', head)
  return is_stamp_newer(its_epoch, its_revision, epoch, revision)
end

local function has_stamp(head, epoch, revision)
  return string.sub(head, 9, 24) == struct.pack('>dd', epoch, revision)
end

local function deadline_of(head)
  return (struct.unpack('>d', head))
end

-- The text of Redis' error, naming the key. Error replies end at a NUL, and the text may be shown to somebody.
local function at_key(result, key)
  local text = string.gsub(string.gsub(result.err, '^@user_script: ?%d+: %-?', ''), '%s+$', '')  -- Redis 6.2
  local name = string.gsub(key, '%c', function(c)
    return string.format('\\x%02x', string.byte(c))
  end)
  return text .. ' at key ' .. name
end

local META_SIZE = 32

-- What one entry adds to the digest of its topic: its last change, mixed, so that a sum tells which ones are there.
-- Exact in doubles: each factor and the product are below 2^53.
local function mixed(revision)
  return ((revision % 2097152) * 2654435761 + math.floor(revision / 2097152)) % 4294967296
end

-- The epoch and revision that the next change of a topic gets, and its bytes and digest as they are, from what is stored
-- under ''.
local function next_meta(stored)
  local epoch, revision, bytes, digest
  if stored and #stored == META_SIZE then
    epoch, revision, bytes, digest = struct.unpack('>dddd', stored)
  end
  if not epoch or epoch < life.floor then
    set_life('epoch', math.max(life.epoch + 1, math.floor(now_us())))
    epoch, revision = life.epoch, 0
  end
  return epoch, revision + 1, bytes or 0, digest or 0
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
local function remove(topic, key, head)
  local tkey, entry, owner = topic_key(topic), topic .. key, owner_of(head)
  local epoch, revision, bytes, digest = next_meta(redis.call('HGET', tkey, ''))
  -- First, since it needs no memory: at maxmemory Redis lets a script that has begun to write go on.
  redis.call('HDEL', tkey, 'h' .. key, 'p' .. key)
  touched.any = true
  if redis.call('HLEN', tkey) > 1 then
    digest = (digest - mixed(changed_of(head))) % 4294967296
    redis.call('HSET', tkey, '', struct.pack('>dddd', epoch, revision, math.max(0, bytes - size_of(head)), digest))
    touched.topics[tkey] = true
  else
    redis.call('DEL', tkey)
    touched.topics[tkey] = nil
  end
  redis.pcall('SREM', client_key(owner), entry)
  take_due(entry)
  redis.call('ZREM', INDEX, entry)
  if is_recovering() then
    redis.pcall('HSET', GONE, entry, string.sub(head, 9, 24))
    redis.call('PEXPIRE', GONE, RECOVERY_NOTES_MS)
  end
  return struct.pack('>dd', epoch, revision) .. sized(topic) .. sized(key) .. sized(owner)
end

-- Note for the node that holds the connection of a client that the client has lost an entry, by the change of this
-- stamp. The node need not follow the topic, and must not bring the entry back.
local function note_taken(client, entry, epoch, revision, key_ttl_ms)
  if redis.call('HEXISTS', HOMES, client) == 1 then
    redis.pcall('HSET', taken_key(client), entry, struct.pack('>dd', epoch, revision))
    redis.call('PEXPIRE', taken_key(client), key_ttl_ms)
  end
end

-- The client had the entry when its node was reaped, and gets it back if the node turns out to live.
local function note_reaped(entry, client)
  local key = reaped_key(math.floor(now_us() / HOUR_US))
  redis.pcall('HSET', key, entry, client)
  redis.call('PEXPIRE', key, 2 * HOUR_US / 1000)
  redis.pcall('HDEL', GONE, entry)
end

-- The client that owned an entry when its node was reaped, of entries that nobody has set since.
local function get_reaped(entry)
  local hour = math.floor(now_us() / HOUR_US)
  for _, each in ipairs({hour, hour - 1}) do
    local client = redis.pcall('HGET', reaped_key(each), entry)
    if client and not failed(client) then
      return client, reaped_key(each)
    end
  end
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
local function finish(key_ttl_ms)
  write_due()
  for tkey in pairs(touched.topics) do
    redis.call('PEXPIRE', tkey, key_ttl_ms)
  end
  for ckey in pairs(touched.clients) do
    redis.call('PEXPIRE', ckey, key_ttl_ms)
  end
  if touched.any then
    redis.call('PEXPIRE', DEADLINES, key_ttl_ms)
    redis.call('PEXPIRE', INDEX, key_ttl_ms)
    keep_life(key_ttl_ms)
  end
end

-- Whether an entry stays for its grace though its client is gone.
local function linger(now, topic, key, head)
  local deadline, epoch, revision, grace, _, size, changed = struct.unpack('>ddddddd', head)
  if grace <= 0 then
    return grace < 0
  end
  local till, owner = now + grace * 1000, owner_of(head)
  local is_shorter = till < deadline
  -- Its owner has no home any more, also if it ends by itself before its grace does.
  local left = is_shorter and header(till, epoch, revision, -1, -math.huge, size, changed, owner)
    or header(deadline, epoch, revision, grace, -math.huge, size, changed, owner)
  if failed(redis.pcall('HSET', topic_key(topic), 'h' .. key, left)) then
    return false
  end
  if is_shorter then
    put_due(topic .. key, till)
  end
  return true
end

-- Remove what a client owns, fenced; if it ended abnormally, what has a grace lingers. `each`, if any, is called with
-- every entry that is removed, or will be after its grace. Returns the number of changes, the changes, packed, and how
-- many entries were looked at.
local function drop_client(now, client, abnormal, each)
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
      local change
      if not (abnormal and linger(now, topic, key, head)) then
        change = remove(topic, key, head)
        changes[#changes + 1] = change
      end
      if each then
        each(entry, change)
      end
    end
  end
  return #changes, table.concat(changes), #entries
end

-- The connection of a client is gone.
local function leave_home(client)
  local home = redis.pcall('HGET', HOMES, client)
  if home and not failed(home) then
    redis.pcall('ZREM', node_key(home), client)
    redis.call('HDEL', HOMES, client)
    redis.call('DEL', taken_key(client))
  end
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
