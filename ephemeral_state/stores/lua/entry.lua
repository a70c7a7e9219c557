-- Read one entry as of one moment, whatever else its topic has. Removes nothing: see snapshot.lua.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (see common.lua)
--   ARGV[2]  topic                            ARGV[3]  key
--
-- Returns, packed: the time in µs, then, if the entry is stored, key, header, payload.

local values = redis.pcall('HMGET', topic_key(ARGV[2]), 'h' .. ARGV[3], 'p' .. ARGV[3])
if failed(values) then
  return redis.error_reply(at_key(values, topic_key(ARGV[2])))
end
local out = struct.pack('>d', now_us())
if values[1] and values[2] then
  out = out .. sized(ARGV[3]) .. sized(values[1]) .. sized(values[2])
end
return out
