-- Keeps, beside an open hold, what must be called off upstream if the hold's owner dies. `close` forgets it.
-- KEYS  1 mark  2 hold  3 jobs
-- ARGV  1 request  2 record (one line of JSON)
-- reply 1 kept, 0 there is no such hold
arguments(2)
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
local before = redis.call('HGET', KEYS[3], ARGV[1])
redis.call('HSET', KEYS[3], ARGV[1], before and (before .. '\n' .. ARGV[2]) or ARGV[2])
return 1
