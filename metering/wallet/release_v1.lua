-- Lets a long order go, for another gateway to take over.
-- KEYS  mark hold long
-- ARGV  org request owner kept>=0
--
-- kept  how many parts of it can be gone on with, as its owner knows: if as many are noted, nothing has been forgotten
-- Returns 1; 0 if it is not this owner's.
-- WITH again
if redis.call('HGET', hold_key, 'owner') ~= owner then return 0 end
redis.call('HSET', hold_key, 'owner', '-', 'taken', 1)
local noted = 0
for _, field in ipairs(redis.call('HKEYS', hold_key)) do
  if string.sub(field, 1, 5) == 'part:' then noted = noted + 1 end
end
if noted == kept then redis.call('HSET', hold_key, 'run', server_run()) end
redis.call('HSET', long_key, request, org .. ' -')
return 1
