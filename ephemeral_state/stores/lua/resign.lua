-- Give back the lease of a node that has no clients any more. Runs in partition 0.
--
--   KEYS[1]  root (see common.lua)            ARGV[1]  clock (not used)
--   ARGV[2]  node        ARGV[3]  what to give back: the lease of this stamp; empty: whatever there is
--
-- Returns nothing.

if ARGV[3] ~= '' and redis.call('ZSCORE', LEASES, ARGV[2]) ~= ARGV[3] then
  return ''  -- the node has clients again, and has renewed it for them
end
redis.call('ZREM', LEASES, ARGV[2])
redis.call('HDEL', NODES, ARGV[2])
redis.call('DEL', who_key(ARGV[2]))
return ''
