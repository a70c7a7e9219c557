-- Name topics, in the order of their names, and count their entries, without looking at each entry.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (not used)
--   ARGV[2]  where to begin, as for ZRANGEBYLEX        ARGV[3]  most topics to return
--
-- Returns, packed, per topic: its name, its number of entries, those included that have expired and are not swept yet.

local out, start = {}, ARGV[2]
for _ = 1, ARGV[3] do
  local first = redis.call('ZRANGEBYLEX', INDEX, start, '+', 'LIMIT', 0, 1)[1]
  if not first then
    break
  end
  local topic = split(first)
  local past = string.sub(topic, 1, -2) .. '\1'
  out[#out + 1] = sized(topic) .. struct.pack('>I4', redis.call('ZLEXCOUNT', INDEX, '[' .. topic, '(' .. past))
  start = '[' .. past
end
return table.concat(out)
