-- Notes that the gateway of a long order has heard that it was admitted: from now on another one may go on with it.
-- KEYS  mark hold
-- ARGV  request owner
--
-- Returns 1; 0 if it is not this owner's, or has ended.
if redis.call('HGET', hold_key, 'owner') ~= owner then return 0 end
redis.call('HSET', hold_key, 'taken', 1)
return 1
