-- Read some of a topic, in the order of its keys. Removes nothing: the reader leaves out what has expired.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (see common.lua)
--   ARGV[2]  topic                            ARGV[3]  the key to go on after; empty: begin
--   ARGV[4]  bytes of keys and payloads to read, more or less
--
-- Returns, packed: the time in µs, when this life of the partition began, then epoch, revision, bytes and digest of the
-- topic, 1 if there is more, then per entry: key, header, payload.

local MOST_ENTRIES = 500

local topic, after, budget = ARGV[2], ARGV[3], tonumber(ARGV[4])
local tkey = topic_key(topic)
local meta = redis.pcall('HGET', tkey, '')
if failed(meta) then
  return redis.error_reply(at_key(meta, tkey))
end
meta = meta and #meta == META_SIZE and meta or string.rep('\0', META_SIZE)
local bytes = struct.unpack('>d', meta, 17)
local out, more = {struct.pack('>dd', now_us(), life.born), meta, ''}, 0

local function add(key, head, payload)
  out[#out + 1] = sized(key)
  out[#out + 1] = sized(head)
  out[#out + 1] = sized(payload)
end

if after == '' and bytes <= budget and redis.call('HLEN', tkey) <= 1 + 2 * MOST_ENTRIES then
  local fields = redis.call('HGETALL', tkey)
  local payloads = {}
  for index = 1, #fields, 2 do
    if string.sub(fields[index], 1, 1) == 'p' then
      payloads[string.sub(fields[index], 2)] = fields[index + 1]
    end
  end
  for index = 1, #fields, 2 do
    local key = string.sub(fields[index], 2)
    if string.sub(fields[index], 1, 1) == 'h' and payloads[key] then
      add(key, fields[index + 1], payloads[key])
    end
  end
else
  local first = after == '' and '[' .. topic or '(' .. topic .. after
  local entries =
    redis.call('ZRANGEBYLEX', INDEX, first, '(' .. string.sub(topic, 1, -2) .. '\1', 'LIMIT', 0, MOST_ENTRIES)
  more = #entries == MOST_ENTRIES and 1 or 0
  local read = 0
  for index, entry in ipairs(entries) do
    local key = string.sub(entry, #topic + 1)
    local values = redis.call('HMGET', tkey, 'h' .. key, 'p' .. key)
    add(key, values[1] or '', values[2] or '')
    read = read + #key + (values[2] and #values[2] or 0)
    if read >= budget and index < #entries then
      more = 1
      break
    end
  end
end
out[3] = struct.pack('B', more)
return table.concat(out)
