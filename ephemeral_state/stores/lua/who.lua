-- Tell what is known of clients. Runs in partition 0.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (not used)
--   ARGV[2]  packed: node, client
--
-- Returns, packed, per client: what is known of it, empty if nothing is.

local out, position = {}, 1
while position <= #ARGV[2] do
  local node, client
  node, client, position = struct.unpack('>I4c0I4c0', ARGV[2], position)
  local about = redis.pcall('HGET', who_key(node), client)
  out[#out + 1] = sized((failed(about) or not about) and '' or about)
end
return table.concat(out)
