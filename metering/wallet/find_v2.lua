-- Finds the status of an order; writes nothing.
-- KEYS  mark
-- ARGV  now_us>=0 org request
-- REPLY known ending:text owner:text key_id:text
--
-- known   0 or 1; ending: `open`, or `ending:amount:reason:org`, or empty
-- key_id  the key that placed it, or empty: not known
-- WITH again
local now = clock(now_us)
if redis.call('EXISTS', mark_key) == 0 then return answer({}) end
local hold = redis.call('HMGET', P .. ':hold:' .. request, 'owner', 'key')
return answer({ known = 1, ending = standing(org, request, now), owner = hold[1] or nil,
  key_id = hold[2] or placed_by(request) })
