-- Reads one organisation's wallet at one moment; writes nothing. Expired holds count as available.
-- KEYS  mark wallet access
-- ARGV  now_us>=0 org key_id
-- REPLY known now_us available held charged credits credit_number number key_state:text lost unpaid
--
-- key_id  or empty; then access is of no key
-- known   0 or 1: the wallet exists, and so does the key if one is named; number: of its last event
local now = clock(now_us)
local w = redis.call('HMGET', wallet_key, 'available', 'held', 'charged', 'credits', 'credit_number', 'number', 'lost',
  'unpaid_total')
if redis.call('EXISTS', mark_key) == 0 or not w[1] then return answer({ now_us = now }) end
local _, freed = expired_holds(org, now)
local state
if key_id ~= '' then
  local key = redis.call('HMGET', access_key, 'state', 'expires_us')
  if not key[1] then return answer({ now_us = now }) end
  state = key[1]
  if state == 'active' and key[2] and tonumber(key[2]) <= now then state = 'expired' end
end
return answer({ known = 1, now_us = now, available = tonumber(w[1]) + freed, held = tonumber(w[2]) - freed,
  charged = tonumber(w[3]), credits = tonumber(w[4]), credit_number = tonumber(w[5]), number = tonumber(w[6]),
  key_state = state, lost = tonumber(w[7] or 0), unpaid = tonumber(w[8] or 0) })
