-- Notes that one who asked for an order, by placing or by joining it, has left without its answer. Where all of them
-- have, whoever places the same next is given it, for a while.
-- KEYS  1 mark  2 claims  3 asking  4 gone
-- ARGV  1 now_us (0: TIME)  2 recent_us: for how long it is given  3 org  4 order  5 who left
--       6 tries of its SDK before that, -1 where none counts them
-- reply 1 where all have left, else 0
arguments(6)
local now, recent_us, tries = clock(whole(1, 0)), whole(2, 1), whole(6, -1)
local org, order, who = ARGV[3], ARGV[4], ARGV[5]
if redis.call('EXISTS', KEYS[3]) == 1 then
  redis.call('SREM', KEYS[3], who)
  if redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
elseif who ~= order then return 0 end
if not givable(org, order, now) then return 0 end
redis.call('HSET', KEYS[2], 'gone', string.format('%s %d %.0f', server_run(), tries, now))
redis.call('PEXPIRE', KEYS[2], math.ceil(recent_us / 1000))
add_for(recent_us, now, KEYS[4], now, order)
return 1
