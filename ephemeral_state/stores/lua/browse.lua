-- Look at some entries in the order of their names, without their payloads.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (see common.lua)
--   ARGV[2]  lowest entry, ARGV[3]  highest entry, as for ZRANGEBYLEX
--   ARGV[4]  most entries to look at
--
-- Returns, packed: the time in µs, then per entry: entry, header; the header is empty when it is gone.

local out = {struct.pack('>d', now_us())}
for _, entry in ipairs(redis.call('ZRANGEBYLEX', INDEX, ARGV[2], ARGV[3], 'LIMIT', 0, ARGV[4])) do
  out[#out + 1] = sized(entry)
  out[#out + 1] = sized(get_header(split(entry)) or '')
end
return table.concat(out)
