-- Ends an order without a charge. It never overtakes a charge: an order that was charged stays so, and the reply says it.
-- It frees the idempotency key under which the order was placed, unless nobody knows what became of it upstream.
-- KEYS  mark wallet open hold events closed
-- ARGV  now_us>=0 org request reason remember_s>=1 frees>=0 recent_us>=1 comes_again>=0
-- REPLY code now_us available
--
-- frees        1 where it frees its idempotency key, else 0
-- recent_us    how long the next try of its SDK is awaited
-- comes_again  1 where who waits is told to try again, else 0
local now = clock(now_us)

local function reply(code) return answer({ code = code, now_us = now, available = available_at(org, now) }) end

local before = redis.call('GET', closed_key)
if before then
  return reply(string.match(before, '^(%a+):') == 'charge' and CHARGED or VOIDED)
end
if redis.call('EXISTS', mark_key, wallet_key) < 2 then return answer({ code = AWAY, now_us = now }) end
if redis.call('EXISTS', hold_key) == 0 then return reply(UNKNOWN) end
local once, key_id, tried = unpack(redis.call('HMGET', hold_key, 'once', 'key', 'tried'))
close(org, request, 'void', reason, 0, 0, '', '[]', '', now, remember_s)
if frees == 1 and once then redis.call('DEL', once) end
local tries, fingerprint = string.match(tried or '', '^(%d+) (.+)$')
if tries then
  local gone, last = false, tonumber(tries)
  for _, claim in ipairs(redis.call('HKEYS', claims_of(request))) do
    if claim == 'gone' then gone = true else last = math.max(last, tonumber(claim)) end
  end
  -- Who waits is the last try that it was given to. One that left and was not back yet comes whatever would be said.
  if comes_again == 1 or gone then await_try(key_id, last + 1, fingerprint, now, recent_us) end
end
return reply(VOIDED)
