-- Writes down the ends of holds that ran out in organisations that nobody asks for any more. Money does not need it
-- (an expired hold counts nowhere); the ledger does: every order's end reaches it.
-- KEYS  mark busy
-- ARGV  now_us>=0 most>=1 remember_s>=1
--
-- most  orders; then no further organisation is begun
-- Returns how many orders it ended.
local now = clock(now_us)
if redis.call('EXISTS', mark_key) == 0 then return 0 end
local ended = 0
for _, org in ipairs(redis.call('ZRANGEBYSCORE', busy_key, '-inf', now, 'LIMIT', 0, most)) do
  if ended >= most then break end
  -- An organisation whose wallet is lost keeps its holds until it is rebuilt.
  if redis.call('EXISTS', P .. ':wallet:' .. org) == 1 then
    for _, hold in ipairs((expired_holds(org, now))) do
      close(org, hold.request, 'expiry', 'hold_expired', 0, 0, '', '[]', '', now, remember_s)
      ended = ended + 1
    end
    local first = redis.call('ZRANGE', P .. ':open:' .. org, 0, 0, 'WITHSCORES')[2]
    if first then redis.call('ZADD', busy_key, first, org) else redis.call('ZREM', busy_key, org) end
  end
end
return ended
