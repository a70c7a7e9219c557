-- Give back the lease of a node that has no clients any more. Runs in partition 0.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (not used)
--   ARGV[2]  node
--
-- Returns nothing.

redis.call('ZREM', LEASES, ARGV[2])
redis.call('HDEL', NODES, ARGV[2])
redis.call('DEL', who_key(ARGV[2]))
return ''
