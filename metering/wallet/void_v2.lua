-- Ends an order without a charge. It never overtakes a charge: an order that was charged stays so, and the reply says it.
-- It frees the idempotency key under which the order was placed, unless nobody knows what became of it upstream.
-- KEYS  1 mark  2 wallet  3 open holds  4 hold  5 events  6 closed
-- ARGV  1 now_us (0: TIME)  2 org  3 request  4 reason  5 remember_s  6 1 where it frees its idempotency key, else 0
--       7 recent_us: how long the next try of its SDK is awaited  8 1 where who waits is told to try again, else 0
-- reply code, now_us, available
local VOIDED, CHARGED, UNKNOWN, AWAY = 1, 2, 3, 4

arguments(8)
local now, remember, frees = clock(whole(1, 0)), whole(5, 1), whole(6, 0)
local recent_us, told = whole(7, 1), whole(8, 0)
local org, request, reason = ARGV[2], ARGV[3], ARGV[4]

local before = redis.call('GET', KEYS[6])
if before then
  return { string.match(before, '^(%a+):') == 'charge' and CHARGED or VOIDED, now, available_at(org, now) }
end
if redis.call('EXISTS', KEYS[1], KEYS[2]) < 2 then return { AWAY, now, 0 } end
if redis.call('EXISTS', KEYS[4]) == 0 then return { UNKNOWN, now, available_at(org, now) } end
local once, key_id, tried = unpack(redis.call('HMGET', KEYS[4], 'once', 'key', 'tried'))
close(org, request, 'void', reason, 0, 0, '', '[]', '', now, remember)
if frees == 1 and once then redis.call('DEL', once) end
local tries, fingerprint = string.match(tried or '', '^(%d+) (.+)$')
if tries then
  local gone, last = false, tonumber(tries)
  for _, claim in ipairs(redis.call('HKEYS', claims_of(request))) do
    if claim == 'gone' then gone = true else last = math.max(last, tonumber(claim)) end
  end
  -- Who waits is the last try that it was given to. One that left and was not back yet comes whatever would be said.
  if told == 1 or gone then await_try(key_id, last + 1, fingerprint, now, recent_us) end
end
return { VOIDED, now, available_at(org, now) }
