-- Read what was counted in the last minutes, and the latest transitions. Runs in partition 0.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (see common.lua)
--   ARGV[2]  minutes            ARGV[3]  what a transition must begin with         ARGV[4]  most transitions to return
--
-- Returns, packed: per minute, the oldest first, the numbers of sets, explicit clears, disconnects and expiries; then
-- per transition, the last one first: its age in ms, what it was.

local now = now_us()
local out = {}
for minute = math.floor(now / 60000000) - ARGV[2] + 1, math.floor(now / 60000000) do
  local counts = redis.pcall('HMGET', minute_key(minute), 'set', 'explicit', 'disconnect', 'expired')
  for index = 1, 4 do
    out[#out + 1] = struct.pack('>I4', not failed(counts) and tonumber(counts[index] or 0) or 0)
  end
end
local found = 0
local recent = redis.pcall('LRANGE', RECENT, 0, -1)
for _, item in ipairs(failed(recent) and {} or recent) do
  if found < tonumber(ARGV[4]) and string.sub(item, 9, 8 + #ARGV[3]) == ARGV[3] then
    out[#out + 1] = struct.pack('>d', (now - struct.unpack('>d', item)) / 1000) .. sized(string.sub(item, 9))
    found = found + 1
  end
end
return table.concat(out)
