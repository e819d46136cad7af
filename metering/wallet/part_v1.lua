-- Notes how a part of a long order stands at its provider, for whoever makes it (rule 35).
-- KEYS  mark hold
-- ARGV  request owner part state begins>=0
--
-- part    number of its first image
-- state   JSON; empty: the provider certainly has not taken it, and it may begin again
-- begins  1: it is about to be given to the provider, so a cancel must not have been asked for
-- Returns 1: noted; 2: the order is cancelled, or about to be; 3: it is not this owner's, or has ended.
local held_by, cancelled, begun = unpack(redis.call('HMGET', hold_key, 'owner', 'cancel', 'begun'))
if held_by ~= owner then return 3 end
if begins == 1 and cancelled then return 2 end
if begins == 1 then redis.call('HSET', hold_key, 'taken', 1) end  -- also if that could not be noted before its answer
local field = 'part:' .. part
if state == '' then
  if redis.call('HDEL', hold_key, field) == 1 then
    if begun + 0 <= 1 then redis.call('HDEL', hold_key, 'begun') else redis.call('HSET', hold_key, 'begun', begun - 1) end
  end
else
  if redis.call('HSET', hold_key, field, state) == 1 then redis.call('HSET', hold_key, 'begun', (begun or 0) + 1) end
end
return 1
