-- Read the leases of all nodes, without renewing any. Runs in partition 0.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (see common.lua)
--
-- Returns, packed, per node: ms left (of one that is being buried: below 0, since when), 1 if it holds a connection,
-- 1 if it is being buried, stamp, name, what people may want to know.

local now = now_us()
local out = {}
local function add(key, is_dying)
  local nodes = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  for index = 1, #nodes, 2 do
    local node, stamp = nodes[index], nodes[index + 1]
    -- A user without PUBSUB sees nobody's connection, and the lease tells the rest.
    local listening = redis.pcall('PUBSUB', 'NUMSUB', root .. ':alive:' .. node)[2] or 0
    out[#out + 1] = struct.pack('>dBB', (tonumber(stamp) - now) / 1000, listening > 0 and 1 or 0, is_dying)
      .. sized(stamp) .. sized(node) .. sized(redis.call('HGET', NODES, node) or '')
  end
end
add(LEASES, 0)
add(DYING, 1)
return table.concat(out)
