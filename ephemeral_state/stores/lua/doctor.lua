-- Look in one partition for what contradicts itself, and repair it. Every fault is judged anew by each script, so what
-- is right again is left alone.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (see common.lua)
--   ARGV[2]  ms after which an untouched key of ours goes
--   ARGV[3]  'look', 'again' or 'repair'      ARGV[4]  the nodes that have a lease or are being buried, packed
--   ARGV[5]  look: where, packed: cursor, key. Otherwise the faults, packed: kind, place, member
--   ARGV[6]  look: elements to look at, at most; repair: entries of clients to look at before the rest is left
--   ARGV[7]  look: elements to read from a key at once
--
-- Returns, packed: look: the faults as above, and with kind '' what was not looked at yet: cursor, key.
-- Otherwise per fault a byte, 0 right by now, 1 wrong, 2 repaired, 3 not reached, for this has taken long enough; then,
-- of repair, the changes.
--
--   kind  place   member  what is wrong
--   'b'   topic   key     the entry lacks its header or its payload, or the header is no header
--   'v'   topic           the topic has no revision
--   'i'   entry           it is not in the index, or not with score 0
--   'd'   entry           it is not among the deadlines, or with another deadline
--   'c'   entry           it is not in the set of what its owner owns
--   'o'   entry           it has no deadline, and its owner is at home at no node with a lease
--   'I'   entry           the index has it, but it is not there
--   'D'   entry           the deadlines have it, but it is not there
--   'C'   client  entry   the client's set has it, but it is not there, or another's
--   'h'   client  node    it is at home there, but not in the set of the node
--   'n'   node    client  it is in the set of the node, but at home elsewhere, or nowhere
--   'H'   client  node    it is at home at a node without a lease
--   'N'   node            something is known of it, but it has no lease
--   't'   key             it is ours and does not expire
--   'f'   key             it is none of ours: another type, or another name

local now = now_us()
local key_ttl_ms = tonumber(ARGV[2])

local living, position = {}, 1
while position <= #ARGV[4] do
  local node
  node, position = struct.unpack('>I4c0', ARGV[4], position)
  living[node] = true
end

-- The reply, or nil: also where the key holds something foreign, which is a fault of its own.
local function try(...)
  local reply = redis.pcall(...)
  return reply and not failed(reply) and reply or nil
end

local function is_living(node)
  return living[node] or try('ZSCORE', LEASES, node) or try('ZSCORE', DYING, node)
end

-- The topic, the key and the header of an entry that is there; nothing of one that is not.
local function find(entry)
  local topic, key = split(entry)
  local head = topic and get_header(topic, key)
  if head then
    return topic, key, head
  end
end

local EXACT = {
  deadlines = 'zset', index = 'zset', homes = 'hash', life = 'hash', gone = 'hash', leases = 'zset', nodes = 'hash',
  dying = 'zset', recent = 'list',
}

local TYPES = {
  topic = 'hash', client = 'set', taken = 'hash', node = 'zset', fence = 'string', reaped = 'hash', who = 'hash',
  minute = 'hash',
}

local function is_topic(topic)
  local _, namespace_end = string.find(topic, '\0\0', 1, true)
  local _, topic_end = string.find(topic, '\0\0', (namespace_end or #topic) + 1, true)
  return topic_end == #topic
end

-- What a key is by its name: kind, whose, type. Nothing for a name that is none of ours.
local function named(key)
  local name = string.sub(key, #root + 2)
  if EXACT[name] then
    return name, '', EXACT[name]
  end
  local colon = string.find(name, ':', 1, true)
  if not colon then
    return nil
  end
  local kind, whose = string.sub(name, 1, colon - 1), string.sub(name, colon + 1)
  if not TYPES[kind] or (kind == 'topic' and not is_topic(whose)) then
    return nil
  end
  return kind, whose, TYPES[kind]
end

local wrong = {}

function wrong.b(topic, key)
  local head = try('HGET', topic_key(topic), 'h' .. key)
  local payload = try('HEXISTS', topic_key(topic), 'p' .. key) == 1
  return (head ~= nil) ~= payload or (head ~= nil and #head < HEADER_SIZE)
end

function wrong.v(topic)
  local stored = try('HGET', topic_key(topic), '')
  return (try('HLEN', topic_key(topic)) or 0) > 0 and not (stored and #stored == META_SIZE)
end

function wrong.i(entry)
  return find(entry) and try('ZSCORE', INDEX, entry) ~= '0'
end

function wrong.d(entry)
  local topic, _, head = find(entry)
  if not topic then
    return false
  end
  local score, deadline = try('ZSCORE', DEADLINES, entry), deadline_of(head)
  return not score or (deadline < math.huge and tonumber(score) ~= deadline)
end

function wrong.c(entry)
  local topic, _, head = find(entry)
  return topic and try('SISMEMBER', client_key(owner_of(head)), entry) ~= 1
end

function wrong.o(entry)
  local topic, _, head = find(entry)
  if not topic or deadline_of(head) < math.huge then
    return false
  end
  local home = try('HGET', HOMES, owner_of(head))
  return not home or not is_living(home)
end

function wrong.I(entry)
  return try('ZSCORE', INDEX, entry) and not find(entry)
end

function wrong.D(entry)
  return try('ZSCORE', DEADLINES, entry) and not find(entry)
end

function wrong.C(client, entry)
  local topic, _, head = find(entry)
  return try('SISMEMBER', client_key(client), entry) == 1 and not (topic and owner_of(head) == client)
end

function wrong.h(client, node)
  return try('HGET', HOMES, client) == node and is_living(node) and not try('ZSCORE', node_key(node), client)
end

function wrong.n(node, client)
  local home = try('HGET', HOMES, client)
  return try('ZSCORE', node_key(node), client) and home ~= node and (home ~= nil or is_living(node))
end

function wrong.H(client, node)
  local home = try('HGET', HOMES, client)
  return not is_living(node) and (home == node or (not home and try('ZSCORE', node_key(node), client)))
end

function wrong.N(node)
  return try('HEXISTS', NODES, node) == 1 and not try('ZSCORE', LEASES, node)
end

function wrong.f(key)
  local is = redis.call('TYPE', key).ok
  local _, _, expected = named(key)
  return is ~= 'none' and is ~= expected
end

function wrong.t(key)
  -- What is not ours may be meant to stay.
  return try('PTTL', key) == -1 and not wrong.f(key)
end

local changes, looked_at = {}, 0
local repair = {}

function repair.b(topic, key)
  local head = try('HGET', topic_key(topic), 'h' .. key)
  -- Subscribers may have seen it, so it goes as any entry does.
  changes[#changes + 1] = remove(topic, key, as_header(head) or header(0, 0, 0, 0, 0, 0, 0, ''))
end

function repair.v(topic)
  local epoch, revision = next_meta(nil)
  local bytes, digest = 0, 0
  for _, field in ipairs(redis.call('HKEYS', topic_key(topic))) do
    local head = string.sub(field, 1, 1) == 'h' and as_header(redis.call('HGET', topic_key(topic), field))
    if head then
      bytes, digest = bytes + size_of(head), (digest + mixed(changed_of(head))) % 4294967296
    end
  end
  redis.call('HSET', topic_key(topic), '', struct.pack('>dddd', epoch, revision, bytes, digest))
  touched.topics[topic_key(topic)], touched.any = true, true
end

function repair.i(entry)
  redis.call('ZADD', INDEX, 0, entry)
  touched.any = true
end

function repair.d(entry)
  local _, _, head = find(entry)
  redis.call('ZADD', DEADLINES, math.min(deadline_of(head), now + key_ttl_ms * 1000), entry)
  touched.any = true
end

function repair.c(entry)
  local _, _, head = find(entry)
  local ckey = client_key(owner_of(head))
  if try('SADD', ckey, entry) then
    touched.clients[ckey] = true
  end
end

function repair.o(entry)
  local topic, key, head = find(entry)
  changes[#changes + 1] = remove(topic, key, head)
end

function repair.I(entry)
  redis.call('ZREM', INDEX, entry)
end

function repair.D(entry)
  redis.call('ZREM', DEADLINES, entry)
end

function repair.C(client, entry)
  redis.call('SREM', client_key(client), entry)
end

function repair.h(client, node)
  move_home(now, client, node, key_ttl_ms)
end

function repair.n(node, client)
  if try('HGET', HOMES, client) then
    redis.call('ZREM', node_key(node), client)
  else
    move_home(now, client, node, key_ttl_ms)
  end
end

function repair.H(client, node)
  local count, packed, owned = drop_client(now, client, true, function(entry)
    note_reaped(entry, client)
  end)
  leave_home(client)
  try('ZREM', node_key(node), client)
  looked_at = looked_at + 1 + (owned or 0)
  if count then
    changes[#changes + 1] = packed
  end
end

function repair.N(node)
  redis.call('HDEL', NODES, node)
end

function repair.t(key)
  redis.call('PEXPIRE', key, key_ttl_ms)
end

local out = {}

local function suspect(kind, place, member)
  if wrong[kind](place, member) then
    out[#out + 1] = sized(kind) .. sized(place) .. sized(member)
    return true
  end
end

local SCANS = {hash = {'HSCAN', 2}, set = {'SSCAN', 1}, zset = {'ZSCAN', 2}}

-- What to suspect for an element of a key: of whom the key is, the element, and its value or score.
local suspects = {}

function suspects.topic(topic, field)
  local key = string.sub(field, 2)
  if field == '' or suspect('b', topic, key) or string.sub(field, 1, 1) ~= 'h' then
    return
  end
  for _, kind in ipairs({'i', 'd', 'c', 'o'}) do
    suspect(kind, topic .. key, '')
  end
end

function suspects.client(client, entry)
  suspect('C', client, entry)
end

function suspects.index(_, entry)
  suspect('I', entry, '')
end

function suspects.deadlines(_, entry)
  suspect('D', entry, '')
end

function suspects.homes(_, client, node)
  suspect('h', client, node)
  suspect('H', client, node)
end

function suspects.node(node, client)
  suspect('n', node, client)
  suspect('H', client, node)
end

function suspects.nodes(_, node)
  suspect('N', node, '')
end

-- Look at some of a key. Returns the cursor of the rest, '0' if there is none, and how much was looked at.
local function look(cursor, key)
  if cursor == '0' then
    if suspect('f', key, '') then
      return '0', 1
    end
    suspect('t', key, '')
  end
  local kind, whose, is = named(key)
  if kind == 'topic' and cursor == '0' then
    suspect('v', whose, '')
  end
  if not suspects[kind] then
    return '0', 1
  end
  local scan, stride = SCANS[is][1], SCANS[is][2]
  local page = try(scan, key, cursor, 'COUNT', ARGV[7])
  if not page then
    return '0', 1
  end
  for index = 1, #page[2], stride do
    suspects[kind](whose, page[2][index], page[2][index + 1])
  end
  return page[1], 1 + #page[2] / stride
end

if ARGV[3] == 'look' then
  local looked, at = 0, 1
  while at <= #ARGV[5] do
    local cursor, key
    cursor, key, at = struct.unpack('>I4c0I4c0', ARGV[5], at)
    if looked < tonumber(ARGV[6]) then
      local spent
      cursor, spent = look(cursor, key)
      looked = looked + spent
      if cursor ~= '0' then
        out[#out + 1] = sized('') .. sized(cursor) .. sized(key)
      end
    else
      out[#out + 1] = sized('') .. sized(cursor) .. sized(key)
    end
  end
  return table.concat(out)
end

local is_usable = true
for key, command in pairs({[DEADLINES] = 'ZCARD', [INDEX] = 'ZCARD', [HOMES] = 'HLEN'}) do
  is_usable = is_usable and try(command, key) ~= nil
end
local at = 1
while at <= #ARGV[5] do
  local kind, place, member, status
  kind, place, member, at = struct.unpack('>I4c0I4c0I4c0', ARGV[5], at)
  if looked_at >= tonumber(ARGV[6]) then
    status = 3
  elseif not wrong[kind](place, member) then
    status = 0
  elseif ARGV[3] == 'repair' and repair[kind] and is_usable then
    repair[kind](place, member)
    status = wrong[kind](place, member) and 1 or 2
  else
    status = 1
  end
  out[#out + 1] = struct.pack('B', status)
end
finish(key_ttl_ms)
return table.concat(out) .. table.concat(changes)
