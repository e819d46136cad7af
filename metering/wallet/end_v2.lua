-- Ends, during a rebuild, a hold whose order the ledger has ended already: it came back with a Redis that had lost the
-- order's end, and nobody may settle it again.
-- KEYS  1 mark  2 fence  3 open holds  4 hold  5 closed  6 jobs
-- ARGV  1 who holds the fence  2 org  3 request  4 ending  5 its reason  6 remember_s
--       7 1 where it frees its idempotency key, else 0
arguments(7)
local org, request, remember, frees = ARGV[2], ARGV[3], whole(6, 1), whole(7, 0)
if redis.call('EXISTS', KEYS[1]) == 1 or redis.call('GET', KEYS[2]) ~= ARGV[1] then return end
local once = redis.call('HGET', KEYS[4], 'once')
-- Another order may have been placed under it since; the ledger knows.
if frees == 1 and once and string.match(redis.call('GET', once) or '', '^%S+') == request then redis.call('DEL', once) end
redis.call('ZREM', KEYS[3], request)
redis.call('DEL', KEYS[4])
redis.call('HDEL', KEYS[6], request)
-- The amount is the ledger's to know.
redis.call('SET', KEYS[5], ARGV[4] .. ':0:' .. ARGV[5] .. ':' .. org, 'EX', remember)
