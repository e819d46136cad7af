-- Gives a long order to another gateway, once: its owner has died, or has let it go (rule 35). From then on the old owner
-- can neither settle nor void it.
-- KEYS  mark hold open long
-- ARGV  now_us>=0 org request dead heir handed
--
-- dead    the owner that is replaced; heir: the new one
-- handed  `incarnation:number` of the journal under which it goes on
-- Returns the moment at which the hold ends; 1 if nothing that was noted of the order can have been forgotten, else 0;
-- then all fields of the hold with their values. Nothing if it is not his.
-- WITH again
local now = clock(now_us)
local held_by, before, long, run = unpack(redis.call('HMGET', hold_key, 'owner', 'handed', 'until_us', 'run'))
local ends = redis.call('ZSCORE', open_key, request)
if held_by ~= dead or not long or not ends or tonumber(ends) <= now then return {} end
if redis.call('EXISTS', mark_key) == 0 then return {} end
local is_whole = (not run or run == server_reign()) and 1 or 0
redis.call('HSET', hold_key, 'owner', heir, 'handed', before and (before .. ' ' .. handed) or handed)
redis.call('HSET', long_key, request, org .. ' ' .. heir)
return { ends, is_whole, unpack(redis.call('HGETALL', hold_key)) }
