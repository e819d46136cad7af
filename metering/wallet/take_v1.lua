-- Notes that a client is told of a long order: from now on another gateway may go on with it, and nobody ends it because
-- its admission was not heard.
-- KEYS  mark hold
-- ARGV  request owner
--
-- owner  of the order, or empty: another gateway tells of it, to a client that has placed it again
-- Returns 1; 0 if it is not this owner's, is no long order, or has ended.
local held_by, long = unpack(redis.call('HMGET', hold_key, 'owner', 'until_us'))
if not long or owner ~= '' and held_by ~= owner then return 0 end
redis.call('HSET', hold_key, 'taken', 1)
return 1
