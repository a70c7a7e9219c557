-- Tell how far each of many topics has come, and its digest.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (not used)
--   ARGV[2]  the topics, packed
--
-- Returns, packed, per topic: epoch, revision, bytes, digest; all 0 for one that is not there, or is not ours.

local UNKNOWN = struct.pack('>dddd', 0, 0, 0, 0)

local out, position = {}, 1
while position <= #ARGV[2] do
  local topic
  topic, position = struct.unpack('>I4c0', ARGV[2], position)
  local stored = redis.pcall('HGET', topic_key(topic), '')
  out[#out + 1] = (failed(stored) or not stored or #stored ~= META_SIZE) and UNKNOWN or stored
end
return table.concat(out)
