-- How an order stands; writes nothing.
-- KEYS  1 mark
-- ARGV  1 now_us (0: TIME)  2 org  3 request
-- reply known (0 or 1), `open` or `ending:amount:reason` or empty, its owner, the key that placed it (or empty: not known)
arguments(3)
local now = clock(whole(1, 0))
if redis.call('EXISTS', KEYS[1]) == 0 then return { 0, '', '', '' } end
local hold = redis.call('HMGET', P .. ':hold:' .. ARGV[3], 'owner', 'key')
return { 1, standing(ARGV[2], ARGV[3], now) or '', hold[1] or '', hold[2] or placed_by(ARGV[3]) }
