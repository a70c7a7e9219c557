-- Read one topic as of one moment. Removes nothing: whoever reads leaves out what has expired.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (see common.lua)
--   ARGV[2]  topic
--
-- Returns, packed: the time in µs, the generation, then the fields and values of the topic's hash.

local fields = redis.pcall('HGETALL', topic_key(ARGV[2]))
if failed(fields) then
  return redis.error_reply(at_key(fields, topic_key(ARGV[2])))
end
local out = {struct.pack('>dd', now_us(), life.born)}
for _, bytes in ipairs(fields) do
  out[#out + 1] = struct.pack('>I4', #bytes)
  out[#out + 1] = bytes
end
return table.concat(out)
