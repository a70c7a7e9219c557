-- Take the lease of a dead node, and clear what the clients that were at home there own, some at a time.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (see common.lua)
--   ARGV[2]  node
--   ARGV[3]  'claim': only take the lease, unless it was renewed since it had the stamp ARGV[4]
--            'clear': refuse every later batch of the node, and clear its clients until ARGV[5] of their entries, or
--            clients, were looked at
--            'done': forget the node
--   ARGV[6]  ms after which an untouched key of ours goes
--
-- Returns, packed: claim: 1 if the node is to be cleared, 0 if it has renewed its lease or is gone. clear: 1 if there is
-- more, then the changes.

local node = ARGV[2]

local function fence()
  -- The node may be frozen, and its writes under way: it comes back by another name.
  redis.call('SET', fence_key(node), 'inf', 'PX', ARGV[6])
end

local now = now_us()
if ARGV[3] == 'claim' then
  if redis.call('ZSCORE', LEASES, node) == ARGV[4] then
    fence()
    redis.call('ZREM', LEASES, node)
    redis.call('HDEL', NODES, node)
    redis.call('ZADD', DYING, now, node)
    redis.call('PEXPIRE', DYING, ARGV[6])
  end
  -- Or somebody took it, and may have died over it: the next node goes on.
  return struct.pack('B', redis.call('ZSCORE', DYING, node) and 1 or 0)
end
if ARGV[3] == 'done' then
  redis.call('ZREM', DYING, node)
  if not redis.call('ZSCORE', LEASES, node) then
    redis.call('DEL', who_key(node))
  end
  return ''
end
fence()
local limit = tonumber(ARGV[5])
local clients = redis.call('ZRANGE', node_key(node), 0, limit - 1)
local changes, looked, more = {}, 0, #clients == limit and 1 or 0
for _, client in ipairs(clients) do
  if looked >= limit then
    more = 1
    break
  end
  local count, packed, owned = drop_client(now, client, true, function(entry)
    note_reaped(entry, client)
  end)
  if redis.call('HGET', HOMES, client) == node then
    redis.call('HDEL', HOMES, client)
  end
  redis.call('ZREM', node_key(node), client)
  looked = looked + 1 + (owned or 0)
  if count then
    changes[#changes + 1] = packed
  end
end
finish(tonumber(ARGV[6]))
return struct.pack('B', more) .. table.concat(changes)
