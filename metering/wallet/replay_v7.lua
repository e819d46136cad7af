-- Charges an order that a journal says is answered 200, whatever its hold's end (rule 8). It charges at most once: an
-- order that is charged stays unchanged. The event is the order's own, with the times of the journal's record.
--
-- If another charged order has meanwhile been given for its idempotency key or its SDK's retry, the order is recorded
-- at zero (rule 19).
-- KEYS  mark wallet open hold events closed once retried
-- ARGV  now_us>=0 org request quantity>=1 amount>=1 remember_s>=1 images usd_measured opened admitted_us>=1 ended_us>=1
-- ARGV  result placed>=0 key_id day month lost_up_to>=-1 fingerprint recent_us>=1 trace
-- ARGV  upstream_ids upstream_usd route
-- REPLY code now_us available below
--
-- usd_measured  by the provider, or empty
-- upstream_ids  of the provider's requests, JSON, or empty; upstream_usd: its figure for all of them, or empty
-- route         the second one, JSON, if it went by that; else empty
-- placed        0 without an idempotency key, 1 with one, 2 without one and the client was gone before the answer
-- day, month    to which the order is booked
-- trace         W3C's `traceparent` of its request, or empty; its event has it
-- lost_up_to    event number up to which the ledger has all of the organisation's events except this order's, or -1.
--               A rebuild has left this charge out, so Redis' memory of it does not count
-- below         how far below zero this call left the balance, if it charged
-- WITH closing
-- WITH again
local THERE, KEYED, GONE = 0, 1, 2
local now, lost = clock(now_us), lost_up_to

local function reply(code, below)
  return answer({ code = code, now_us = now, available = available_at(org, now), below = below })
end

-- The charged order that was given instead of this one. Without a key, this counts only if the client was gone before
-- its answer: a 200 that may have arrived is charged. A retry replaces one lost order, so it is used up.
local function served()
  if placed == THERE then return false end
  local record = redis.call('GET', placed == KEYED and once_key or retried_key)
  local other = record and string.match(record, '^(%S+)')
  if not other or other == request then return false end
  if not string.match(standing(org, other, now) or '', '^charge:') then return false end
  if placed == GONE then redis.call('DEL', retried_key) end
  return true
end

local before = redis.call('GET', closed_key)
local again = P .. ':again:' .. request
if lost >= 0 and before and string.match(before, '^(%a+):') == 'charge' then
  -- Another call may have used the same proof at this moment: then its event's number is above it.
  if tonumber(redis.call('GET', again) or 0) <= lost then before = nil else lost = -1 end
end
if before and string.match(before, '^(%a+):') == 'charge' then return reply(CHARGED) end
if redis.call('EXISTS', mark_key, wallet_key) < 2 then return answer({ code = AWAY, now_us = now }) end

if string.match(before or '', ':served_again:') then return reply(SERVED) end
local instead = lost < 0 and served()
local known = before or redis.call('EXISTS', hold_key) == 1

if redis.call('EXISTS', hold_key) == 0 then
  -- The hold is gone: expired, voided by another, or lost with a Redis that forgot.
  if instead then
    -- Its end is in the stream already, or was lost; the ledger would not accept a second one. `served_again` is
    -- stored, so that another replay does not find the retry used up, and charge.
    local ending = string.match(before or '', '^%a+') or 'void'
    redis.call('SET', closed_key, ending .. ':0:served_again:' .. org, 'EX', remember_s)
    return reply(SERVED)
  end
  -- A hold of zero replaces it. A hold of a later day was admitted by a clock that was ahead: it counts today.
  local counts_day, counts_month = unpack(redis.call('HMGET', wallet_key, 'day', 'month'))
  if not counts_day or counts_day > day then counts_day, counts_month = day, month end
  redis.call('HSET', hold_key, 'amount', 0, 'images', 0, 'admitted_us', admitted_us, 'opened', opened, 'key', key_id,
    'day', counts_day, 'month', counts_month, unpack(trace ~= '' and { 'trace', trace } or {}))
end
if instead then
  close(order_of(org, request), 'void', 'served_again', 0, 0, '', '[]', '', ended_us, remember_s, upstream_ids,
    upstream_usd, route)
  return reply(SERVED)
end
if placed == KEYED then
  -- A wiped Redis had forgotten the key, so the order may be under way a second time. That second order ends here,
  -- uncharged: the key then gives this one.
  local record = redis.call('GET', once_key)
  local other = record and string.match(record, '^(%S+)')
  if other and other ~= request and standing(org, other, now) == 'open' then
    close(order_of(org, other), 'void', 'served_again', 0, 0, '', '[]', '', now, remember_s)
  end
  local fingerprint = string.match(opened, '"once":"%S+ (%S+)"')
  if fingerprint then redis.call('SET', once_key, request .. ' ' .. fingerprint, 'EX', remember_s) end
end
if lost >= 0 then
  redis.call('SET', again, tonumber(redis.call('HGET', wallet_key, 'number')) + 1, 'EX', remember_s)
  local gone = tonumber(redis.call('HGET', wallet_key, 'gone_charged') or 0)
  if gone > 0 then redis.call('HINCRBY', wallet_key, 'gone_charged', -math.min(gone, amount)) end
end
if placed ~= KEYED and known then
  -- It may be given to the next identical order: while it counted as expired it was given to nobody.
  local kind = kind_of(key_id, fingerprint)
  local gone, given = unpack(redis.call('HMGET', claims_of(request), 'gone', 0))
  if not given then add_for(recent_us, now, recent_of(kind), admitted_us, request) end
  local gone_us = string.match(gone or '', ' (%d+)$')
  if gone_us then add_for(recent_us, now, gone_of(kind), gone_us, request) end
end
local below = close(order_of(org, request), 'charge', 'delivered', quantity, amount, usd_measured, images, result, ended_us,
  remember_s, upstream_ids, upstream_usd, route)
return reply(NOW, below)
