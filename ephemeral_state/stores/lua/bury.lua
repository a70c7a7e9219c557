-- Take the lease of a dead node, and clear what the clients that were at home there own, some at a time.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (see common.lua)
--   ARGV[2]  node
--   ARGV[3]  'claim': only take the lease, unless it was renewed since it had the stamp ARGV[4]
--            'clear': clear clients last written for before the time ARGV[4], in µs, until ARGV[5] of
--            their entries, or clients, were looked at
--            'done': forget the node
--   ARGV[6]  ms after which an untouched key of ours goes      ARGV[7]  the same for a topic without entries
--
-- Returns, packed: claim: the time of the claim in µs, 0 if it failed. clear: 1 if there is more, then the changes.

local now = now_us()
if ARGV[3] == 'claim' then
  if redis.call('ZSCORE', LEASES, ARGV[2]) == ARGV[4] then
    redis.call('ZREM', LEASES, ARGV[2])
    redis.call('HDEL', NODES, ARGV[2])
    redis.call('ZADD', DYING, now, ARGV[2])
    redis.call('PEXPIRE', DYING, ARGV[6])
    return struct.pack('>d', now)
  end
  -- Somebody took it, and may have died over it: whoever comes by goes on.
  return struct.pack('>d', tonumber(redis.call('ZSCORE', DYING, ARGV[2]) or 0))
end
if ARGV[3] == 'done' then
  redis.call('ZREM', DYING, ARGV[2])
  if not redis.call('ZSCORE', LEASES, ARGV[2]) then
    redis.call('DEL', who_key(ARGV[2]))
  end
  return ''
end
local limit = tonumber(ARGV[5])
local clients = redis.call('ZRANGEBYSCORE', node_key(ARGV[2]), '-inf', ARGV[4], 'LIMIT', 0, limit)
local changes, looked, more = {}, 0, #clients == limit and 1 or 0
for _, client in ipairs(clients) do
  if looked >= limit then
    more = 1
    break
  end
  local count, packed, owned = drop_client(now, client, true, buried_key(ARGV[2]))
  redis.call('ZREM', node_key(ARGV[2]), client)
  looked = looked + 1 + (owned or 0)
  if count then
    changes[#changes + 1] = packed
  end
end
redis.pcall('PEXPIRE', buried_key(ARGV[2]), ARGV[7])
finish(tonumber(ARGV[6]), tonumber(ARGV[7]))
return struct.pack('B', more) .. table.concat(changes)
