-- Writes down the ends of holds that ran out in organisations that nobody asks for any more. Money does not need it
-- (an expired hold counts nowhere); the ledger does: every order's end reaches it.
-- KEYS  1 mark  2 busy
-- ARGV  1 now_us (0: TIME)  2 most orders, and then no further organisation is begun  3 remember_s
-- reply orders ended
arguments(3)
local now, most, remember = clock(whole(1, 0)), whole(2, 1), whole(3, 1)
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local ended = 0
for _, org in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, most)) do
  if ended >= most then break end
  -- An organisation whose wallet is lost keeps its holds until it is rebuilt.
  if redis.call('EXISTS', P .. ':wallet:' .. org) == 1 then
    for _, hold in ipairs((expired_holds(org, now))) do
      close(org, hold.request, 'expiry', 'hold_expired', 0, 0, '', '[]', '', now, remember)
      ended = ended + 1
    end
    local first = redis.call('ZRANGE', P .. ':open:' .. org, 0, 0, 'WITHSCORES')[2]
    if first then redis.call('ZADD', KEYS[2], first, org) else redis.call('ZREM', KEYS[2], org) end
  end
end
return ended
