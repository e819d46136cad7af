-- Notes that an order's client is gone, for as long as an SDK's retry finds its order.
-- KEYS  1 mark  2 claims
-- ARGV  1 recent_us
-- reply 1
arguments(1)
local recent_us = whole(1, 1)
redis.call('HSET', KEYS[2], 'gone', '1')
redis.call('PEXPIRE', KEYS[2], math.ceil(recent_us / 1000))
return 1
