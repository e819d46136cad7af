-- Lets a long order go, for another gateway to take over.
-- KEYS  mark hold long
-- ARGV  org request owner
--
-- Returns 1; 0 if it is not this owner's.
if redis.call('HGET', hold_key, 'owner') ~= owner then return 0 end
redis.call('HSET', hold_key, 'owner', '-', 'taken', 1)
redis.call('HSET', long_key, request, org .. ' -')
return 1
