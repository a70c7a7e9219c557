-- Tell which clients are at home at a node, as far as this partition knows.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (not used)
--   ARGV[2]  node
--
-- Returns the clients, packed.

local out = {}
for _, client in ipairs(redis.call('ZRANGE', node_key(ARGV[2]), 0, -1)) do
  out[#out + 1] = sized(client)
end
return table.concat(out)
