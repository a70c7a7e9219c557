-- List some of the keys that a server holds, whichever partition they are of.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (not used)
--   ARGV[2]  ms, ARGV[3]  ms (not used)
--   ARGV[4]  cursor, as for SCAN              ARGV[5]  pattern of the names
--   ARGV[6]  how many keys to look at
--
-- Returns, packed: the server's identity (empty where that may not be asked, or after the first page), the cursor of the
-- next page, then the keys.

local identity = ''
if ARGV[4] == '0' then
  local info = redis.pcall('INFO', 'server')
  identity = type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
end
local page = redis.call('SCAN', ARGV[4], 'MATCH', ARGV[5], 'COUNT', ARGV[6])
local out = {sized(identity), sized(page[1])}
for _, key in ipairs(page[2]) do
  out[#out + 1] = sized(key)
end
return table.concat(out)
