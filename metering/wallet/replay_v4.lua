-- Charges an order that a journal says is answered 200, whatever became of its hold (rule 8). At most once: an order
-- that is charged stays as it is. The event is the order's own, with the times of the journal's record.
--
-- An order whose idempotency key, or whose SDK's retry, was served by another charged order in the meantime is recorded
-- at zero (rule 19).
-- KEYS  1 mark  2 wallet  3 open holds  4 hold  5 events  6 closed  7 once  8 retried
-- ARGV  1 now_us (0: TIME)  2 org  3 request  4 quantity  5 amount  6 remember_s  7 images (JSON)
--       8 USD that the provider measured (or empty)  9 opened (JSON)  10 admitted_us  11 ended_us  12 result (JSON)
--       13 0 without an idempotency key, 1 with one, 2 without one and the client was gone before the answer
--       14 key id  15 day  16 month: where the order counts
--       17 up to which of the organisation's events the ledger has all, and not this one's, or -1: a rebuild has left it
--       out, and what is remembered of its charge counts for nothing  18 fingerprint of the order  19 recent_us
-- reply code, now_us, available, 1 where this call charged it, how far below zero that left the balance
local CHARGED, AWAY, SERVED = 1, 3, 5
local THERE, KEYED, GONE = 0, 1, 2

arguments(19)
local now, org, request = clock(whole(1, 0)), ARGV[2], ARGV[3]
local quantity, amount, remember = whole(4, 1), whole(5, 1), whole(6, 1)
local admitted, ended, placed, lost = whole(10, 1), whole(11, 1), whole(13, 0), whole(17, -1)
local recent_us = whole(19, 1)

-- The charged order that was given in this one's place. Without a key that is so only where the client was gone before
-- its answer: a 200 that may have arrived is charged. A retry stands for one lost order, so it is used up.
local function served()
  if placed == THERE then return false end
  local record = redis.call('GET', placed == KEYED and KEYS[7] or KEYS[8])
  local other = record and string.match(record, '^(%S+)')
  if not other or other == request then return false end
  if not string.match(standing(org, other, now) or '', '^charge:') then return false end
  if placed == GONE then redis.call('DEL', KEYS[8]) end
  return true
end

local before = redis.call('GET', KEYS[6])
local again = P .. ':again:' .. request
if lost >= 0 and before and string.match(before, '^(%a+):') == 'charge' then
  -- Another may have done so with the same proof at this moment: then its event's number is above it.
  if tonumber(redis.call('GET', again) or 0) <= lost then before = nil else lost = -1 end
end
if before and string.match(before, '^(%a+):') == 'charge' then return { CHARGED, now, available_at(org, now), 0, 0 } end
if redis.call('EXISTS', KEYS[1], KEYS[2]) < 2 then return { AWAY, now, 0, 0, 0 } end

if string.match(before or '', ':served_again:') then return { SERVED, now, available_at(org, now), 0, 0 } end
local instead = lost < 0 and served()
local known = before or redis.call('EXISTS', KEYS[4]) == 1

if redis.call('EXISTS', KEYS[4]) == 0 then
  -- The hold is gone: run out, voided by another, or lost with a Redis that forgot.
  if instead then
    -- Its end is told already, or was lost; a second one would be none to the ledger. That it was served is remembered:
    -- another replay must not find the retry used up, and charge.
    local ending = string.match(before or '', '^%a+') or 'void'
    redis.call('SET', KEYS[6], ending .. ':0:served_again:' .. org, 'EX', remember)
    return { SERVED, now, available_at(org, now), 0, 0 }
  end
  -- One of nothing stands in for it. One of a later day was admitted by a clock that was ahead: it counts today.
  local day, month = unpack(redis.call('HMGET', KEYS[2], 'day', 'month'))
  if not day or day > ARGV[15] then day, month = ARGV[15], ARGV[16] end
  redis.call('HSET', KEYS[4], 'amount', 0, 'images', 0, 'admitted_us', ARGV[10], 'opened', ARGV[9], 'key', ARGV[14],
    'day', day, 'month', month)
end
if instead then
  close(org, request, 'void', 'served_again', 0, 0, '', '[]', '', ended, remember)
  return { SERVED, now, available_at(org, now), 0, 0 }
end
if placed == KEYED then
  -- A wiped Redis had forgotten the key, and the order may be in the making once more. That one ends here, uncharged:
  -- asked for again, the key gives this one.
  local record = redis.call('GET', KEYS[7])
  local other = record and string.match(record, '^(%S+)')
  if other and other ~= request and standing(org, other, now) == 'open' then
    close(org, other, 'void', 'served_again', 0, 0, '', '[]', '', now, remember)
  end
  local fingerprint = string.match(ARGV[9], '"once":"%S+ (%S+)"')
  if fingerprint then redis.call('SET', KEYS[7], request .. ' ' .. fingerprint, 'EX', remember) end
end
if lost >= 0 then
  redis.call('SET', again, tonumber(redis.call('HGET', KEYS[2], 'number')) + 1, 'EX', remember)
  local gone = tonumber(redis.call('HGET', KEYS[2], 'gone_charged') or 0)
  if gone > 0 then redis.call('HINCRBY', KEYS[2], 'gone_charged', -math.min(gone, amount)) end
end
if placed ~= KEYED and known then
  -- It is given again to whoever places the same: as one that had run out it was given to nobody.
  local kind = kind_of(ARGV[14], ARGV[18])
  local gone, given = unpack(redis.call('HMGET', claims_of(request), 'gone', 0))
  if not given then add_for(recent_us, now, recent_of(kind), admitted, request) end
  local gone_us = string.match(gone or '', ' (%d+)$')
  if gone_us then add_for(recent_us, now, gone_of(kind), gone_us, request) end
end
local below = close(org, request, 'charge', 'delivered', quantity, amount, ARGV[8], ARGV[7], ARGV[12], ended, remember)
return { CHARGED, now, available_at(org, now), 1, below }
