-- Note what people may want to know later. Runs in partition 0.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (see common.lua)
--   ARGV[2]  node
--   ARGV[3]  what was counted, packed: kind, number as text
--   ARGV[4]  transitions, the oldest first, packed: age in ms as text, what it was (opaque)
--   ARGV[5]  clients that are connected now, packed: client, what is known of it     ARGV[6]  those that are gone, packed
--   ARGV[7]  ms after which an untouched key of ours goes      ARGV[8]  transitions to keep
--
-- Returns nothing.

local function each(packed, values, act)
  local position = 1
  while position <= #packed do
    local one, other
    one, position = struct.unpack('>I4c0', packed, position)
    if values then
      other, position = struct.unpack('>I4c0', packed, position)
    end
    act(one, other)
  end
end

local now = now_us()
local minute = minute_key(math.floor(now / 60000000))
each(ARGV[3], true, function(kind, number)
  redis.call('HINCRBY', minute, kind, number)
end)
redis.call('PEXPIRE', minute, 2 * 3600 * 1000)
each(ARGV[4], true, function(age_ms, what)
  redis.call('LPUSH', RECENT, struct.pack('>d', now - tonumber(age_ms) * 1000) .. what)
end)
redis.call('LTRIM', RECENT, 0, ARGV[8] - 1)
redis.call('PEXPIRE', RECENT, 3600 * 1000)
each(ARGV[5], true, function(client, about)
  redis.call('HSET', who_key(ARGV[2]), client, about)
end)
each(ARGV[6], false, function(client)
  redis.call('HDEL', who_key(ARGV[2]), client)
end)
redis.call('PEXPIRE', who_key(ARGV[2]), ARGV[7])
return ''
