-- Renew the lease of a node and read those of all nodes. Runs in partition 0.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (see common.lua)
--   ARGV[2]  node        ARGV[3]  ms that the lease is to last        ARGV[4]  metadata of the node, JSON
--   ARGV[5]  ms after which an untouched key of ours goes        ARGV[6]  the last stamp that the node was told of
--
-- Returns, packed: generation, then 1 if the lease was as the node had left it, 0 if not and 2 if the node was reaped,
-- and its new stamp; then per other node: ms left, stamp, name. A node that is being reaped has no ms left.

local node = ARGV[2]
if tonumber(redis.call('GET', fence_key(node)) or nil) == math.huge then
  return struct.pack('>dB', life.born, 2) .. sized('')
end
keep_clock()
local now = now_us()
-- A later lease than the node was told of is from its own earlier heartbeat, whose reply was lost. Half a µs in it marks
-- a lease that was made anew after a loss, or after the store had gone back, and whose node has not been told so.
local known, found = tonumber(ARGV[6]), tonumber(redis.call('ZSCORE', LEASES, node) or nil)
local is_as_left = found and (not known or found == known or (found > known and found % 1 == 0))
local lease_us = tonumber(ARGV[3]) * 1000
if known and not is_as_left then
  -- The node renewed it last a lease before `known`. Nothing that was lost is more than a few heartbeats later.
  local beyond = known - lease_us
  if life.floor <= beyond then
    begin_recovery(math.max(now, beyond + RECOVERY_US))
  end
end
keep_life(ARGV[5])
local till = math.floor(now) + lease_us + (known and not is_as_left and 0.5 or 0)
redis.call('ZADD', LEASES, string.format('%.17g', till), node)
redis.call('HSET', NODES, node, ARGV[4])
for _, key in ipairs({LEASES, NODES, node_key(node), who_key(node), HOMES}) do
  redis.call('PEXPIRE', key, ARGV[5])
end

local out = {struct.pack('>dB', life.born, is_as_left and 1 or 0) .. sized(redis.call('ZSCORE', LEASES, node))}
local function add(leases, is_dying)
  for index = 1, #leases, 2 do
    if leases[index] ~= node then
      local left = is_dying and 0 or (tonumber(leases[index + 1]) - now) / 1000
      out[#out + 1] = struct.pack('>d', left) .. sized(leases[index + 1]) .. sized(leases[index])
    end
  end
end
add(redis.call('ZRANGE', LEASES, 0, -1, 'WITHSCORES'), false)
add(redis.call('ZRANGE', DYING, 0, -1, 'WITHSCORES'), true)
return table.concat(out)
