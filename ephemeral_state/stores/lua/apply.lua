-- Carry out a batch of writes in order, each atomically; one that is refused changes nothing and stops nobody.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (see common.lua)
--   ARGV[2]  keys a client may own            ARGV[3]  bytes a topic may have
--   ARGV[4]  ms after which an untouched key of ours goes      ARGV[5]  ms that a fence is kept
--   ARGV[6]  the writer; empty: not fenced    ARGV[7]  the number of this batch among those of the writer
--   ARGV[8]  '1': the writer has given up an earlier batch, which must not be applied when it arrives late
--   ARGV[9]  when the writer gives up this batch, in µs; empty: it does not know the time here
--   ARGV[10] the writes, packed: op, ttl in ms (< 0: no deadline), lengths of client, topic, key and payload, then
--            those. op is 'S' set, 'C' clear, 'D' drop, 'A' drop of a client that ended abnormally, 'R' restore,
--            'K' keep: its payload are the entries, packed, that the client still owns.
--            For all but S and R follows: 1 if the node of the client's connection asks for it.
--            For S and R follow: keys that the client owns in other partitions, grace in ms, node;
--            for R then a stamp: epoch, revision
--
-- Returns, packed: 1 if the batch was applied, 0 if it came after a later one or after its time, and 2 if its node was
-- reaped; the time in µs; then per write: 0 nothing changed; 1 epoch, revision; 2 number of keys owned, too many; 3 text of Redis' error; 4 count, changes;
-- 5 bytes of the topic, too many; 6 the entry belongs to somebody else by now.

local cap, max_bytes = tonumber(ARGV[2]), tonumber(ARGV[3])
local key_ttl_ms = tonumber(ARGV[4])

-- A request that its client has given up may still arrive, even after the connection was closed: TCP sends it again.
local now = now_us()

if ARGV[6] ~= '' then
  local fence = tonumber(redis.call('GET', fence_key(ARGV[6])) or nil)
  if fence and tonumber(ARGV[7]) < fence then
    return struct.pack('>Bd', fence == math.huge and 2 or 0, now)
  end
  if ARGV[9] ~= '' and now > tonumber(ARGV[9]) then
    return struct.pack('>Bd', 0, now)
  end
  if ARGV[8] == '1' then
    redis.call('SET', fence_key(ARGV[6]), ARGV[7], 'PX', ARGV[5])
  end
end

local KEEP_US = key_ttl_ms * 1000 / 24

local NOTHING, TAKEN = struct.pack('B', 0), struct.pack('B', 6)

local function changed(epoch, revision)
  return struct.pack('>Bdd', 1, epoch, revision)
end

local function refused(result, key)
  return struct.pack('B', 3) .. sized(at_key(result, key))
end

local function find(topic, key)
  local found = redis.pcall('HMGET', topic_key(topic), '', 'h' .. key)
  if failed(found) then
    return nil, nil, refused(found, topic_key(topic))
  end
  return found[1], as_header(found[2])
end

-- The stamp, if given, is that of the set which is written back.
local function store(ttl_ms, client, topic, key, payload, node, grace_ms, meta, head, stamp_epoch, stamp_revision)
  local tkey, ckey, entry = topic_key(topic), client_key(client), topic .. key
  local owner = head and owner_of(head)
  local epoch, revision, bytes, digest = next_meta(meta)
  local size = #key + #payload
  local new_bytes = bytes + size - (head and size_of(head) or 0)
  if not stamp_epoch and new_bytes > max_bytes and new_bytes > bytes then
    return struct.pack('>Bd', 5, new_bytes)
  end
  local deadline = ttl_ms < 0 and math.huge or now + ttl_ms * 1000
  local is_kept = owner == client and kept_of(head) > now - KEEP_US and grace_of(head) >= 0 and node ~= ''
  -- Set for a client without a node, its home is not known yet.
  local kept = is_kept and kept_of(head) or node ~= '' and now or -math.huge
  local new_head =
    header(deadline, stamp_epoch or epoch, stamp_revision or revision, grace_ms, kept, size, revision, client)
  digest = (digest + mixed(revision) - (head and mixed(changed_of(head)) or 0)) % 4294967296
  local new_meta = struct.pack('>dddd', epoch, revision, math.max(0, new_bytes), digest)
  -- The only write here that Redis may refuse (at maxmemory, on a replica), hence the first.
  local written = redis.pcall('HSET', tkey, '', new_meta, 'h' .. key, new_head, 'p' .. key, payload)
  if failed(written) then
    return refused(written, tkey)
  end
  put_due(entry, math.min(deadline, now + key_ttl_ms * 1000))
  touched.topics[tkey], touched.any = true, true
  if is_kept and not stamp_epoch then
    return changed(epoch, revision)
  end
  if owner and owner ~= client then
    redis.pcall('SREM', client_key(owner), entry)
    note_taken(owner, entry, epoch, revision, key_ttl_ms)
  end
  redis.pcall('SADD', ckey, entry)
  if not owner then
    redis.call('ZADD', INDEX, 0, entry)
    local former, reaped = get_reaped(entry)
    if former then
      redis.call('HDEL', reaped, entry)
      if former ~= client then
        redis.pcall('HSET', taken_key(former), entry, struct.pack('>dd', epoch, revision))
        redis.call('PEXPIRE', taken_key(former), 2 * HOUR_US / 1000)
      end
    end
    if is_recovering() then
      redis.pcall('HDEL', GONE, entry)
    end
  end
  if node ~= '' then
    move_home(now, client, node, key_ttl_ms)
  end
  touched.clients[ckey] = true
  return changed(epoch, revision)
end

local function set(ttl_ms, elsewhere, client, topic, key, payload, node, grace_ms)
  local meta, head, failure = find(topic, key)
  if failure then
    return failure
  end
  if not head or owner_of(head) ~= client then
    local ckey = client_key(client)
    local owned = redis.pcall('SCARD', ckey)
    if failed(owned) then
      return refused(owned, ckey)
    end
    -- The entry can be in the set although it is not stored, when Redis has evicted the topic.
    if owned + elsewhere >= cap and redis.call('SISMEMBER', ckey, topic .. key) == 0 then
      return struct.pack('>Bd', 2, owned + elsewhere)
    end
  end
  return store(ttl_ms, client, topic, key, payload, node, grace_ms, meta, head)
end

-- Whether somebody else has had the entry, or cleared it, since the client was its owner by the given stamp. Otherwise
-- an entry that is not here was lost, or cleared because its node was taken for dead.
local function is_taken(entry, client, epoch, revision)
  for _, key in ipairs({taken_key(client), GONE}) do
    local stamp = redis.pcall('HGET', key, entry)
    if stamp and not failed(stamp) and #stamp == 16 then
      local its_epoch, its_revision = struct.unpack('>dd', stamp)
      -- The same stamp is that of the client's own value, which went with the end of its grace.
      local is_its_own = its_epoch == epoch and its_revision == revision
      if not is_its_own and is_stamp_newer(its_epoch, its_revision, epoch, revision) then
        return true
      end
    end
  end
  local former = get_reaped(entry)
  return former and former ~= client
end

local function restore(ttl_ms, client, topic, key, payload, node, grace_ms, epoch, revision)
  local meta, head, failure = find(topic, key)
  if failure then
    return failure
  end
  local tkey, ckey, entry = topic_key(topic), client_key(client), topic .. key
  local owned = redis.pcall('SCARD', ckey)
  if failed(owned) then
    return refused(owned, ckey)
  end
  local is_own = head and owner_of(head) == client and grace_of(head) >= 0
  -- Of what it has set itself, the node knows the last value, and the store may have gone back to another one.
  if is_own and (kept_of(head) == -math.huge and is_newer(head, epoch, revision) or has_stamp(head, epoch, revision)) then
    -- It is there. Only its last resort, and its home, are put off.
    put_due(entry, math.min(deadline_of(head), now + key_ttl_ms * 1000))
    move_home(now, client, node, key_ttl_ms)
    touched.topics[tkey], touched.clients[ckey], touched.any = true, true, true
    return NOTHING
  end
  if head and owner_of(head) ~= client and is_newer(head, epoch, revision) then
    return TAKEN
  end
  if not head and is_taken(entry, client, epoch, revision) then
    return TAKEN
  end
  return store(ttl_ms, client, topic, key, payload, node, grace_ms, meta, head, epoch, revision)
end

local function clear(client, topic, key, is_own)
  local head = redis.pcall('HGET', topic_key(topic), 'h' .. key)
  if failed(head) then
    return refused(head, topic_key(topic))
  end
  head = as_header(head)
  if not head or owner_of(head) ~= client then
    return NOTHING
  end
  local change = remove(topic, key, head)
  local epoch, revision = struct.unpack('>dd', change)
  if not is_own then
    note_taken(client, topic .. key, epoch, revision, key_ttl_ms)
  end
  return changed(epoch, revision)
end

local function drop(client, abnormal, is_own)
  local count, changes = drop_client(now, client, abnormal, not is_own and function(entry, change)
    if change then
      local epoch, revision = struct.unpack('>dd', change)
      note_taken(client, entry, epoch, revision, key_ttl_ms)
    end
  end)
  if not count then
    return refused(changes, client_key(client))
  end
  if is_own then
    leave_home(client)
  end
  return struct.pack('>BI4', 4, count) .. changes
end

-- Remove what a client has no more, as its node knows: the store has gone back to when it had it.
local function keep(client, entries)
  local ckey = client_key(client)
  local owned = redis.pcall('SMEMBERS', ckey)
  if failed(owned) then
    return refused(owned, ckey)
  end
  local kept, position = {}, 1
  while position <= #entries do
    local entry
    entry, position = struct.unpack('>I4c0', entries, position)
    kept[entry] = true
  end
  local changes = {}
  for _, entry in ipairs(owned) do
    local topic, key = split(entry)
    local head = not kept[entry] and get_header(topic, key)
    -- Another writer may have set it for the client: its node knows nothing of that.
    if head and owner_of(head) == client and kept_of(head) > -math.huge then
      changes[#changes + 1] = remove(topic, key, head)
    end
  end
  return struct.pack('>BI4', 4, #changes) .. table.concat(changes)
end

for key, command in pairs({[DEADLINES] = 'ZCARD', [INDEX] = 'ZCARD', [HOMES] = 'HLEN'}) do
  local size = redis.pcall(command, key)
  if failed(size) then
    return redis.error_reply(at_key(size, key))
  end
end

local outcomes, position, writes = {struct.pack('>Bd', 1, now)}, 1, ARGV[10]
while position <= #writes do
  local op, ttl_ms, client_size, topic_size, key_size, payload_size, at = struct.unpack('>c1dI4I4I4I4', writes, position)
  local topic_at = at + client_size
  local key_at = topic_at + topic_size
  local payload_at = key_at + key_size
  position = payload_at + payload_size
  local client = string.sub(writes, at, topic_at - 1)
  local topic, key = string.sub(writes, topic_at, key_at - 1), string.sub(writes, key_at, payload_at - 1)
  if op == 'S' or op == 'R' then
    local payload = string.sub(writes, payload_at, position - 1)
    local elsewhere, grace_ms, node
    elsewhere, grace_ms, node, position = struct.unpack('>I4dI4c0', writes, position)
    if op == 'S' then
      outcomes[#outcomes + 1] = set(ttl_ms, elsewhere, client, topic, key, payload, node, grace_ms)
    else
      local epoch, revision
      epoch, revision, position = struct.unpack('>dd', writes, position)
      outcomes[#outcomes + 1] = restore(ttl_ms, client, topic, key, payload, node, grace_ms, epoch, revision)
    end
  else
    local is_own
    is_own, position = struct.unpack('B', writes, position)
    is_own = is_own == 1
    if op == 'C' then
      outcomes[#outcomes + 1] = clear(client, topic, key, is_own)
    elseif op == 'K' then
      outcomes[#outcomes + 1] = keep(client, string.sub(writes, payload_at, position - 2))
    else
      outcomes[#outcomes + 1] = drop(client, op == 'A', is_own)
    end
  end
end
finish(key_ttl_ms)
return table.concat(outcomes)
