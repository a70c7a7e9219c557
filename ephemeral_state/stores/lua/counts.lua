-- Count the live entries of some topics.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (see common.lua)
--   ARGV[2]  the topics, packed               ARGV[3]  entries to look at, more or less, before the rest is left
--
-- Returns, packed: the numbers of the first topics, at least of one. Of a topic with more than 1 000 entries it counts
-- those too that have expired and are not swept yet, since looking at each would take too long.

local now, out, position, looked = now_us(), {}, 1, 0
while position <= #ARGV[2] and looked < tonumber(ARGV[3]) do
  local topic
  topic, position = struct.unpack('>I4c0', ARGV[2], position)
  local size = redis.pcall('HLEN', topic_key(topic))
  if failed(size) then
    return redis.error_reply(at_key(size, topic_key(topic)))
  end
  local count = math.floor(size / 2)
  if count > 0 and count <= 1000 then
    local heads = {}
    for _, field in ipairs(redis.call('HKEYS', topic_key(topic))) do
      if string.sub(field, 1, 1) == 'h' then
        heads[#heads + 1] = field
      end
    end
    count = 0
    for _, head in ipairs(redis.call('HMGET', topic_key(topic), unpack(heads))) do
      if as_header(head) and deadline_of(head) > now then
        count = count + 1
      end
    end
    looked = looked + #heads
  end
  looked = looked + 1
  out[#out + 1] = struct.pack('>I4', count)
end
return table.concat(out)
