-- Count what clients own in this partition.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (not used)
--   ARGV[2]  the clients, packed
--
-- Returns, packed, per client: the number of its keys here.

local out, position = {}, 1
while position <= #ARGV[2] do
  local client
  client, position = struct.unpack('>I4c0', ARGV[2], position)
  local owned = redis.pcall('SCARD', client_key(client))
  out[#out + 1] = struct.pack('>I4', failed(owned) and 0 or owned)
end
return table.concat(out)
