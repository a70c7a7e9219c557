-- Read the payloads of some entries.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (not used)
--   ARGV[2]  the entries, packed
--
--   ARGV[3]  bytes to read, more or less
--
-- Returns, packed, per entry: its payload, empty when the entry is gone; of the first entries, at least of one.

local out, position, read = {}, 1, 0
while position <= #ARGV[2] and read < tonumber(ARGV[3]) do
  local entry
  entry, position = struct.unpack('>I4c0', ARGV[2], position)
  local topic, key = split(entry)
  local payload = redis.pcall('HGET', topic_key(topic), 'p' .. key)
  payload = (failed(payload) or not payload) and '' or payload
  read = read + #payload
  out[#out + 1] = sized(payload)
end
return table.concat(out)
