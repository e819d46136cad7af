-- Records that a client which asked for an order, by placing or by joining it, has left without its answer. If all of
-- them have left, the next identical order gets it, for a while.
-- KEYS  mark claims asking gone
-- ARGV  now_us>=0 recent_us>=1 org order who tries>=-1
--
-- recent_us  how long the next identical order gets it        who  left
-- tries      earlier tries by its SDK, -1 if nothing counts them
-- Returns 1 if all have left, else 0.
-- WITH again
local now = clock(now_us)
if redis.call('EXISTS', asking_key) == 1 then
  redis.call('SREM', asking_key, who)
  if redis.call('EXISTS', asking_key) == 1 then return 0 end
elseif who ~= order then return 0 end
if not givable(org, order, now) then return 0 end
redis.call('HSET', claims_key, 'gone', string.format('%s %d %.0f', server_run(), tries, now))
redis.call('PEXPIRE', claims_key, math.ceil(recent_us / 1000))
add_for(recent_us, now, gone_key, now, order)
return 1
