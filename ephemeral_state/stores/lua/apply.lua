-- Carry out a batch of writes in order, each atomically; one that is refused changes nothing and stops nobody.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (see common.lua)
--   ARGV[2]  keys a client may own
--   ARGV[3]  ms after which an untouched key of ours goes      ARGV[4]  the same for a topic without entries
--   ARGV[5]  the writes, packed: op, ttl in ms (< 0: no deadline), lengths of client, topic, key and payload, then
--            those; op is 'S' set, 'C' clear, 'D' drop, 'A' drop of a client that ended abnormally, 'R' restore.
--            For S and R follow: keys that the client owns in other partitions, grace in ms, node;
--            for R then a stamp: epoch, revision
--
-- Returns per write, packed: 0 nothing changed; 1 epoch, revision; 2 number of keys owned, too many;
-- 3 text of Redis' error; 4 count, changes.

local cap, key_ttl_ms, empty_ttl_ms = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local now = now_us()

local KEEP_US = key_ttl_ms * 1000 / 24

local NOTHING = struct.pack('B', 0)

local function changed(epoch, revision)
  return struct.pack('>Bdd', 1, epoch, revision)
end

local function refused(result, key)
  return struct.pack('B', 3) .. sized(at_key(result, key))
end

local function store(ttl_ms, client, topic, key, payload, node, grace_ms, found, stamp_epoch, stamp_revision)
  local tkey, ckey, entry = topic_key(topic), client_key(client), topic .. key
  local owner = found[2] and owner_of(found[2])
  local deadline = ttl_ms < 0 and math.huge or now + ttl_ms * 1000
  local epoch, revision = next_revision(found[1], now)
  local is_kept = owner == client and kept_of(found[2]) > now - KEEP_US and grace_of(found[2]) >= 0
  -- Set for a client without a node, its home is not known yet.
  local kept = is_kept and kept_of(found[2]) or node ~= '' and now or -math.huge
  local head = header(deadline, stamp_epoch or epoch, stamp_revision or revision, grace_ms, kept, client)
  -- The only write here that Redis may refuse (at maxmemory, on a replica), hence the first.
  local written = redis.pcall('HSET', tkey, '', struct.pack('>dd', epoch, revision), 'h' .. key, head, 'p' .. key, payload)
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
  end
  redis.pcall('SADD', ckey, entry)
  if not owner then
    redis.call('ZADD', INDEX, 0, entry)
  end
  if node ~= '' then
    move_home(now, client, node, key_ttl_ms)
  end
  touched.clients[ckey] = true
  return changed(epoch, revision)
end

local function set(ttl_ms, elsewhere, client, topic, key, payload, node, grace_ms)
  local tkey, ckey = topic_key(topic), client_key(client)
  local found = redis.pcall('HMGET', tkey, '', 'h' .. key)
  if failed(found) then
    return refused(found, tkey)
  end
  found[2] = as_header(found[2])
  if not found[2] or owner_of(found[2]) ~= client then
    local owned = redis.pcall('SCARD', ckey)
    if failed(owned) then
      return refused(owned, ckey)
    end
    -- The entry can be in the set although it is not stored, when Redis has evicted the topic.
    if owned + elsewhere >= cap and redis.call('SISMEMBER', ckey, topic .. key) == 0 then
      return struct.pack('>Bd', 2, owned + elsewhere)
    end
  end
  return store(ttl_ms, client, topic, key, payload, node, grace_ms, found)
end

-- Whether an entry that is not here was lost, or cleared because its node was thought dead; otherwise somebody who had
-- the right to has cleared it.
local function is_missed(stored, entry, client, node, stamp_epoch, stamp_revision)
  if not stored or #stored ~= 16 then
    return true
  end
  -- Without a generation this script is the first of a life, and what there is of the topic it has just stored itself.
  local born = generation()
  if born == 0 or stamp_epoch < born then
    return true
  end
  local epoch, revision = struct.unpack('>dd', stored)
  if epoch == stamp_epoch and revision < stamp_revision then
    return true
  end
  return redis.pcall('HGET', buried_key(node), entry) == client
end

local function restore(ttl_ms, client, topic, key, payload, node, grace_ms, epoch, revision)
  local tkey, ckey = topic_key(topic), client_key(client)
  local found = redis.pcall('HMGET', tkey, '', 'h' .. key)
  if failed(found) then
    return refused(found, tkey)
  end
  found[2] = as_header(found[2])
  local owned = redis.pcall('SCARD', ckey)
  if failed(owned) then
    return refused(owned, ckey)
  end
  if found[2] and owner_of(found[2]) == client and grace_of(found[2]) >= 0 and is_newer(found[2], epoch, revision) then
    -- It is there. Only its last resort, and its home, are put off.
    put_due(topic .. key, math.min(deadline_of(found[2]), now + key_ttl_ms * 1000))
    move_home(now, client, node, key_ttl_ms)
    touched.topics[tkey], touched.clients[ckey], touched.any = true, true, true
    return NOTHING
  end
  if found[2] and owner_of(found[2]) ~= client and is_newer(found[2], epoch, revision) then
    return NOTHING
  end
  if not found[2] and not is_missed(found[1], topic .. key, client, node, epoch, revision) then
    return NOTHING
  end
  redis.pcall('HDEL', buried_key(node), topic .. key)
  return store(ttl_ms, client, topic, key, payload, node, grace_ms, found, epoch, revision)
end

local function clear(client, topic, key)
  local head = redis.pcall('HGET', topic_key(topic), 'h' .. key)
  if failed(head) then
    return refused(head, topic_key(topic))
  end
  if not as_header(head) or owner_of(head) ~= client then
    return NOTHING
  end
  return changed(struct.unpack('>dd', remove(now, topic, key, client)))
end

local function drop(client, abnormal)
  local count, changes = drop_client(now, client, abnormal)
  if not count then
    return refused(changes, client_key(client))
  end
  return struct.pack('>BI4', 4, count) .. changes
end

for key, command in pairs({[DEADLINES] = 'ZCARD', [INDEX] = 'ZCARD', [HOMES] = 'HLEN'}) do
  local size = redis.pcall(command, key)
  if failed(size) then
    return redis.error_reply(at_key(size, key))
  end
end

local outcomes, position, writes = {}, 1, ARGV[5]
while position <= #writes do
  local op, ttl_ms, client_size, topic_size, key_size, payload_size, at = struct.unpack('>c1dI4I4I4I4', writes, position)
  local topic_at = at + client_size
  local key_at = topic_at + topic_size
  local payload_at = key_at + key_size
  position = payload_at + payload_size
  local client = string.sub(writes, at, topic_at - 1)
  if op == 'D' or op == 'A' then
    outcomes[#outcomes + 1] = drop(client, op == 'A')
  else
    local topic, key = string.sub(writes, topic_at, key_at - 1), string.sub(writes, key_at, payload_at - 1)
    if op == 'C' then
      outcomes[#outcomes + 1] = clear(client, topic, key)
    else
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
    end
  end
end
finish(key_ttl_ms, empty_ttl_ms)
return table.concat(outcomes)
