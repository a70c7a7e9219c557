-- Read one entry as of one moment, whatever else its topic has. Removes nothing: see snapshot.lua.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (see common.lua)
--   ARGV[2]  topic                            ARGV[3]  key
--
-- Returns, packed: the time in µs, the generation, then the fields and values of the entry, if it is stored.

local head, payload = 'h' .. ARGV[3], 'p' .. ARGV[3]
local values = redis.pcall('HMGET', topic_key(ARGV[2]), head, payload)
if failed(values) then
  return redis.error_reply(at_key(values, topic_key(ARGV[2])))
end
local out = struct.pack('>dd', now_us(), life.born)
if values[1] and values[2] then
  out = out .. sized(head) .. sized(values[1]) .. sized(payload) .. sized(values[2])
end
return out
