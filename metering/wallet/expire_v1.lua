-- Records the ends of expired holds in organisations without new requests. Money does not need this, because an expired
-- hold counts nowhere. The ledger needs it, because every order's end must reach it.
-- KEYS  mark busy
-- ARGV  now_us>=0 most>=1 remember_s>=1
--
-- most  orders; after that no further organisation is started
-- Returns how many orders it ended.
-- WITH closing
local now = clock(now_us)
if redis.call('EXISTS', mark_key) == 0 then return 0 end
local ended = 0
for _, org in ipairs(redis.call('ZRANGEBYSCORE', busy_key, '-inf', now, 'LIMIT', 0, most)) do
  if ended >= most then break end
  -- An organisation whose wallet is lost keeps its holds until it is rebuilt.
  if redis.call('EXISTS', P .. ':wallet:' .. org) == 1 then
    for _, hold in ipairs((expired_holds(org, now))) do
      close(order_of(org, hold.request), 'expiry', 'hold_expired', 0, 0, '', '[]', '', now, remember_s)
      ended = ended + 1
    end
    local first = redis.call('ZRANGE', P .. ':open:' .. org, 0, 0, 'WITHSCORES')[2]
    if first then redis.call('ZADD', busy_key, first, org) else redis.call('ZREM', busy_key, org) end
  end
end
return ended
