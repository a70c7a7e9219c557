-- Remove entries whose deadline has passed, the earliest first, at the cost of what has expired only.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (see common.lua)
--   ARGV[2]  most entries to remove
--   ARGV[3]  ms after which an untouched key of ours goes
--
-- Returns, packed: ms until the earliest deadline left (0: call again now, -1: there is none), then the changes,
-- each behind a byte: 1 if its owner is gone, and it was the grace that ended.

if life.born > 0 then
  keep_clock()
  keep_life(ARGV[3])
end
local now = now_us()
local changes = {}

-- "(" leaves out what is exactly at its deadline: not listed any more, but not expired yet.
local before = '(' .. string.format('%.17g', now)
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', DEADLINES, '-inf', before, 'LIMIT', 0, ARGV[2])) do
  local topic, key = split(entry)
  local head = get_header(topic, key)
  if not head then
    forget(entry)
  else
    -- An entry without a deadline is here when its last resort has come: its owner can only be gone.
    local deadline = deadline_of(head)
    if deadline < now or deadline == math.huge then
      changes[#changes + 1] = struct.pack('B', grace_of(head) < 0 and 1 or 0) .. remove(topic, key, head)
    else
      redis.call('ZADD', DEADLINES, deadline, entry)
    end
  end
end
finish(tonumber(ARGV[3]))

local next_ms = -1
local first = redis.call('ZRANGE', DEADLINES, 0, 0, 'WITHSCORES')
if first[2] then
  local left = tonumber(first[2]) - now
  -- At its deadline an entry has not expired yet, so a whole number of ms is one too few.
  next_ms = left < 0 and 0 or math.floor(left / 1000) + 1
end
return struct.pack('>d', next_ms) .. table.concat(changes)
