-- Finds the status of an order; writes nothing.
-- KEYS  mark
-- ARGV  now_us>=0 org request
-- REPLY known ending:text owner:text key_id:text long begun held admitted_us model:text
--
-- known   0 or 1; ending: `open`, or `ending:amount:reason:org`, or empty
-- key_id  the key that placed it, or empty: not known
-- long    1 if it is an open long order; begun: 1 if a part of it was given to a provider; held: its amount; model: its name
-- WITH again
local now = clock(now_us)
if redis.call('EXISTS', mark_key) == 0 then return answer({}) end
local hold = redis.call('HMGET', P .. ':hold:' .. request, 'owner', 'key', 'until_us', 'begun', 'amount', 'admitted_us', 'opened')
local stands = standing(org, request, now)
-- Nobody can charge a long order that has run out, although its end is not recorded yet.
if not stands and hold[3] and redis.call('ZSCORE', P .. ':open:' .. org, request) then
  stands = 'expiry:0:hold_expired:' .. org
end
return answer({ known = 1, ending = stands, owner = hold[1] or nil,
  key_id = hold[2] or placed_by(request), long = hold[3] and 1, begun = hold[4] and 1, held = hold[5] and hold[5] + 0,
  admitted_us = hold[6] and hold[6] + 0, model = hold[7] and string.match(hold[7], '"model":"([^"\\]*)"') })
