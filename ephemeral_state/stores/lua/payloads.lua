-- Read the payloads of some entries.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (not used)
--   ARGV[2]  the entries, packed
--
-- Returns, packed, per entry: its payload, empty when the entry is gone.

local out, position = {}, 1
while position <= #ARGV[2] do
  local entry
  entry, position = struct.unpack('>I4c0', ARGV[2], position)
  local topic, key = split(entry)
  local payload = redis.pcall('HGET', topic_key(topic), 'p' .. key)
  out[#out + 1] = sized((failed(payload) or not payload) and '' or payload)
end
return table.concat(out)
