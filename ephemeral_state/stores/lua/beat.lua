-- Renew the lease of a node and read those of all nodes. Runs in partition 0.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (see common.lua)
--   ARGV[2]  node        ARGV[3]  ms that the lease is to last        ARGV[4]  what people may want to know, JSON
--   ARGV[5]  ms after which an untouched key of ours goes        ARGV[6]  the last stamp that the node was told of
--
-- Returns, packed: generation, 1 if the lease was there as the node had left it, its new stamp; then per other node: ms left,
-- stamp, name. A node that is being buried has no ms left.

local now = now_us()
keep_generation(ARGV[5])
-- A later lease than the node was told of is from a beat of its own whose answer was lost. Half a µs in it says that the
-- node has not been told either that its lease was gone, or that it was an earlier one: then the store had gone back.
local known, found = tonumber(ARGV[6]), tonumber(redis.call('ZSCORE', LEASES, ARGV[2]) or nil)
local is_as_left = found and (not known or found == known or (found > known and found % 1 == 0))
local till = math.floor(now) + tonumber(ARGV[3]) * 1000 + (known and not is_as_left and 0.5 or 0)
redis.call('ZADD', LEASES, string.format('%.17g', till), ARGV[2])
redis.call('HSET', NODES, ARGV[2], ARGV[4])
for _, key in ipairs({LEASES, NODES, node_key(ARGV[2]), who_key(ARGV[2]), HOMES}) do
  redis.call('PEXPIRE', key, ARGV[5])
end

local out = {struct.pack('>dB', generation(), is_as_left and 1 or 0) .. sized(redis.call('ZSCORE', LEASES, ARGV[2]))}
local function add(leases, is_dying)
  for index = 1, #leases, 2 do
    if leases[index] ~= ARGV[2] then
      local left = is_dying and 0 or (tonumber(leases[index + 1]) - now) / 1000
      out[#out + 1] = struct.pack('>d', left) .. sized(leases[index + 1]) .. sized(leases[index])
    end
  end
end
add(redis.call('ZRANGE', LEASES, 0, -1, 'WITHSCORES'), false)
add(redis.call('ZRANGE', DYING, 0, -1, 'WITHSCORES'), true)
return table.concat(out)
