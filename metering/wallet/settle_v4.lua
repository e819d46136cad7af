-- Charges an open, living hold for what was delivered and gives back the rest. A repetition gives the same answer.
-- KEYS  mark wallet open hold events closed
-- ARGV  now_us>=0 latest_us>=0 org request quantity>=1 amount>=1 remember_s>=1 images usd_measured result
-- ARGV  upstream_ids upstream_usd owner route
-- REPLY code now_us available charged below
--
-- images        JSON; result, too
-- usd_measured  by the provider, or empty: then the amount is quantity × unit price
-- upstream_ids  of the provider's requests, JSON, or empty; upstream_usd: its figure for all of them, or empty
-- route         the second one, JSON, if it went by that; else empty
-- below         how far below zero this call left the balance
-- owner         who settles it: a long order that another has taken over is not his any more (rule 35)
-- WITH closing
local now = clock(now_us)

local function reply(code, charged, below)
  return answer({ code = code, now_us = now, available = available_at(org, now), charged = charged, below = below })
end

local before, mark = unpack(redis.call('MGET', closed_key, mark_key))
if before then
  local ending, charged = string.match(before, '^(%a+):(%d+)')
  if ending == 'charge' then
    local by = redis.call('HGET', P .. ':result:' .. request, 'owner')
    if by and by ~= owner then return reply(NOT_OWNER) end
    return reply(CHARGED, tonumber(charged))
  end
  return reply(REFUSED)
end
local order = order_of(org, request)
if not mark or not order.available then return answer({ code = AWAY, now_us = now }) end
if now > latest_us then return reply(LATE) end

local expires = redis.call('ZSCORE', open_key, request)
if order.long and order.owner ~= owner then return reply(NOT_OWNER) end
if not order.amount or not expires or tonumber(expires) <= now then return reply(REFUSED) end
local unit = order.amount / order.images
if quantity > order.images then error('charge is above the hold') end
if amount > quantity * unit then error('charge is above quantity × unit price') end
if usd_measured == '' and amount ~= quantity * unit then error('charge is not quantity × unit price') end

local _, freed = expired_holds(org, now)
local below, available = close(order, 'charge', 'delivered', quantity, amount, usd_measured, images, result, now, remember_s,
  upstream_ids, upstream_usd, route)
return answer({ code = CHARGED, now_us = now, available = available + freed, charged = amount, below = below })
