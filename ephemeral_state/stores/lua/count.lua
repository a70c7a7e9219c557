-- Count the entries of one partition, expired ones included.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (not used)
--
-- Returns the number, packed.

return struct.pack('>I4', redis.call('ZCARD', INDEX))
