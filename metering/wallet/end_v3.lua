-- During a rebuild, ends a hold whose order has already ended in the ledger. Such a hold came back with a Redis that
-- had lost the order's end. It must not be settled again.
-- KEYS  mark fence open hold closed jobs long
-- ARGV  who org request ending reason remember_s>=1 frees>=0
--
-- who    holds the fence
-- frees  1 if it frees its idempotency key, else 0
if redis.call('EXISTS', mark_key) == 1 or redis.call('GET', fence_key) ~= who then return end
local once = redis.call('HGET', hold_key, 'once')
-- Another order may have been placed under the key since; the ledger knows.
if frees == 1 and once and string.match(redis.call('GET', once) or '', '^%S+') == request then redis.call('DEL', once) end
redis.call('ZREM', open_key, request)
redis.call('DEL', hold_key)
redis.call('HDEL', jobs_key, request)
redis.call('HDEL', long_key, request)
-- Only the ledger knows the amount.
redis.call('SET', closed_key, ending .. ':0:' .. reason .. ':' .. org, 'EX', remember_s)
