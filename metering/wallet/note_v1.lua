-- Stores, with an open hold, the upstream job to cancel if the hold's owner dies. `close` deletes it.
-- KEYS  mark hold jobs
-- ARGV  request record
--
-- record  one line of JSON
-- Returns 1: stored; 0: there is no such hold.
if redis.call('EXISTS', hold_key) == 0 then return 0 end
local before = redis.call('HGET', jobs_key, request)
redis.call('HSET', jobs_key, request, before and (before .. '\n' .. record) or record)
return 1
