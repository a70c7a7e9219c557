-- List some of the keys that a server holds, whichever partition they are of.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (not used)
--   ARGV[2]  ms (not used)
--   ARGV[3]  cursor, as for SCAN              ARGV[4]  pattern of the names
--   ARGV[5]  how many keys to look at
--
-- Returns, packed: the server's identity (empty where that may not be asked, or after the first page), the cursor of the
-- next page, then the keys.

local identity = ''
if ARGV[3] == '0' then
  local info = redis.pcall('INFO', 'server')
  identity = type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
end
local page = redis.call('SCAN', ARGV[3], 'MATCH', ARGV[4], 'COUNT', ARGV[5])
local out = {sized(identity), sized(page[1])}
for _, key in ipairs(page[2]) do
  out[#out + 1] = sized(key)
end
return table.concat(out)
