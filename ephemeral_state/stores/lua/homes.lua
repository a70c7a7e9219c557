-- Tell at which nodes clients are at home, as far as this partition knows.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (not used)
--   ARGV[2]  the clients, packed
--
-- Returns, packed, per client: its node, empty when it has none here.

local out, position = {}, 1
while position <= #ARGV[2] do
  local client
  client, position = struct.unpack('>I4c0', ARGV[2], position)
  local home = redis.pcall('HGET', HOMES, client)
  out[#out + 1] = sized((failed(home) or not home) and '' or home)
end
return table.concat(out)
