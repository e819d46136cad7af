-- One organisation's wallet at one moment; writes nothing. Holds that ran out count as available.
-- KEYS  1 mark  2 wallet  3 the key's access
-- ARGV  1 now_us (0: TIME)  2 org  3 key id (or empty)
-- reply known (0 or 1: the wallet, and the key that is named), now_us, available, held, charged, credits, last credit,
--       last event, key state, lost events
arguments(3)
local now = clock(whole(1, 0))
local w = redis.call('HMGET', KEYS[2], 'available', 'held', 'charged', 'credits', 'credit_number', 'number', 'lost')
if redis.call('EXISTS', KEYS[1]) == 0 or not w[1] then return { 0, now, 0, 0, 0, 0, 0, 0, '', 0 } end
local _, freed = expired_holds(ARGV[2], now)
local state = ''
if ARGV[3] ~= '' then
  local key = redis.call('HMGET', KEYS[3], 'state', 'expires_us')
  if not key[1] then return { 0, now, 0, 0, 0, 0, 0, 0, '', 0 } end
  state = key[1]
  if state == 'active' and key[2] and tonumber(key[2]) <= now then state = 'expired' end
end
return { 1, now, tonumber(w[1]) + freed, tonumber(w[2]) - freed, tonumber(w[3]), tonumber(w[4]), tonumber(w[5]),
  tonumber(w[6]), state, tonumber(w[7] or 0) }
