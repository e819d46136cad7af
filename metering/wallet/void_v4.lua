-- Ends an order without a charge. It never overtakes a charge: a charged order stays charged, and the reply says so. It
-- frees the order's idempotency key, unless the order's upstream outcome is unknown.
-- KEYS  mark wallet open hold events closed
-- ARGV  now_us>=0 org request reason remember_s>=1 frees>=0 recent_us>=1 comes_again>=0 upstream_ids upstream_usd
-- ARGV  owner unpaid>=0 route
-- REPLY code now_us available
--
-- frees        1 if it frees its idempotency key, else 0
-- recent_us    how long the next try of its SDK is expected
-- upstream_ids  of the provider's requests, JSON, or empty; upstream_usd: its figure for all of them, or empty
-- owner        who ends it, or empty: nobody who could have been replaced (rule 35)
-- unpaid       1 if the provider may bill it, 2 if its customer may have brought that about, else 0
-- route         the second one, JSON, if it went by that; else empty
-- comes_again  1 if the waiting client is told to retry, else 0
-- WITH closing
-- WITH again
local now = clock(now_us)

local function reply(code) return answer({ code = code, now_us = now, available = available_at(org, now) }) end

local before = redis.call('GET', closed_key)
if before then
  return reply(string.match(before, '^(%a+):') == 'charge' and CHARGED or VOIDED)
end
if redis.call('EXISTS', mark_key, wallet_key) < 2 then return answer({ code = AWAY, now_us = now }) end
local order, once = order_of(org, request), redis.call('HGET', hold_key, 'once')
if not order.amount then return reply(UNKNOWN) end
if order.long and owner ~= '' and order.owner ~= owner then return reply(NOT_OWNER) end
-- Its gateway has not heard of it, but the client was told of it when it came again: whoever finds it goes on with it.
if order.long and reason == 'admission_unread' and redis.call('HEXISTS', hold_key, 'taken') == 1 then
  -- The gateway that admitted it has begun none of it, whatever Redis may have forgotten.
  if order.owner == owner and not order.handed then redis.call('HSET', hold_key, 'run', server_reign()) end
  return reply(NOT_OWNER)
end
local ends_us = redis.call('ZSCORE', open_key, request)
if unpaid > 0 and (not order.long or redis.call('HEXISTS', hold_key, 'begun') == 1) then
  if unpaid == 2 then
    local in_hour = unpaid_in_hour(redis.call('HGET', wallet_key, 'unpaid'), now) + order.amount
    redis.call('HSET', wallet_key, 'unpaid', string.format('%d %.0f', math.floor(now / 3600000000), in_hour))
  end
  redis.call('HINCRBY', wallet_key, 'unpaid_total', string.format('%.0f', order.amount))
end
close(order, 'void', reason, 0, 0, '', '[]', '', now, remember_s, upstream_ids, upstream_usd, route)
if frees == 1 and once then redis.call('DEL', once)
-- A long order that ended as unknown keeps its key only as long as its hold would have lived (rule 35).
elseif order.long and once and ends_us then
  if tonumber(ends_us) > now then redis.call('PEXPIREAT', once, math.ceil(ends_us / 1000)) else redis.call('DEL', once) end
end
local tries, fingerprint = string.match(order.tried or '', '^(%d+) (.+)$')
if tries then
  local gone, last = false, tonumber(tries)
  for _, claim in ipairs(redis.call('HKEYS', claims_of(request))) do
    if claim == 'gone' then gone = true else last = math.max(last, tonumber(claim)) end
  end
  -- The waiting client is the last try that got the order. A try that left and was not back yet retries in any case.
  if comes_again == 1 or gone then await_try(order.key, last + 1, fingerprint, now, recent_us) end
end
return reply(VOIDED)
