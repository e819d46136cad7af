-- Lets a long order go, for another gateway to take over.
-- KEYS  mark hold long
-- ARGV  org request owner known
--
-- known  the parts that a provider has or may have, as its owner knows, between spaces: if all are noted, nothing has
--        been forgotten
-- Returns 1; 0 if it is not this owner's.
-- WITH again
if redis.call('HGET', hold_key, 'owner') ~= owner then return 0 end
local run, all_noted = server_reign(), true
for part in string.gmatch(known, '%d+') do
  all_noted = all_noted and redis.call('HEXISTS', hold_key, 'part:' .. part) == 1
end
redis.call('HSET', hold_key, 'owner', '-', 'taken', 1)
if all_noted then redis.call('HSET', hold_key, 'run', run) end
redis.call('HSET', long_key, request, org .. ' -')
return 1
