-- Charges an open, living hold for what was delivered and gives back the rest. Asked again, it gives the same answer.
-- KEYS  1 mark  2 wallet  3 open holds  4 hold  5 events  6 closed
-- ARGV  1 now_us (0: TIME)  2 latest_us  3 org  4 request  5 quantity  6 amount  7 remember_s  8 images (JSON)
--       9 USD that the provider measured (or empty: then the amount is quantity × unit price)  10 result (JSON)
-- reply code, now_us, available, charged, how far below zero this call left the balance
local CHARGED, REFUSED, AWAY, LATE = 1, 2, 3, 4

arguments(10)
local now, latest = clock(whole(1, 0)), whole(2, 0)
local org, request = ARGV[3], ARGV[4]
local quantity, amount, remember = whole(5, 1), whole(6, 1), whole(7, 1)

local function reply(code, charged, below) return { code, now, available_at(org, now), charged, below or 0 } end

local before = redis.call('GET', KEYS[6])
if before then
  local ending, charged = string.match(before, '^(%a+):(%d+)')
  if ending == 'charge' then return reply(CHARGED, tonumber(charged)) end
  return reply(REFUSED, 0)
end
if redis.call('EXISTS', KEYS[1], KEYS[2]) < 2 then return { AWAY, now, 0, 0, 0 } end
if now > latest then return reply(LATE, 0) end

local hold = redis.call('HMGET', KEYS[4], 'amount', 'images')
local expires = redis.call('ZSCORE', KEYS[3], request)
if not hold[1] or not expires or tonumber(expires) <= now then return reply(REFUSED, 0) end
local unit = tonumber(hold[1]) / tonumber(hold[2])
if quantity > tonumber(hold[2]) then error('charge is above the hold') end
if amount > quantity * unit then error('charge is above quantity × unit price') end
if ARGV[9] == '' and amount ~= quantity * unit then error('charge is not quantity × unit price') end

local below = close(org, request, 'charge', 'delivered', quantity, amount, ARGV[9], ARGV[8], ARGV[10], now, remember)
return reply(CHARGED, amount, below)
