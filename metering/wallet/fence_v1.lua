-- Fences a partition for its rebuild, and takes the fence down. Only the holder of the fence may rebuild, and only its
-- end sets the mark: so what the holder read of the ledger stays true until then, for without the mark nothing is
-- admitted, settled or expired. A wipe takes the fence along, and whoever held it begins again.
-- KEYS  1 mark  2 fence  3 events
-- ARGV  1 who  2 step: 'raise' or 'drop'  3 last change (drop)  4 seconds until a dead holder's fence falls (raise)
-- reply code
local DONE, NOT_NOW, UNDRAINED = 1, 2, 3

arguments(4)
local who, step = ARGV[1], ARGV[2]
local change, life = whole(3, 0), whole(4, 1)
assert(step == 'raise' or step == 'drop', 'unknown step')

if redis.call('EXISTS', KEYS[1]) == 1 then return NOT_NOW end
if step == 'drop' then
  if redis.call('GET', KEYS[2]) ~= who then return NOT_NOW end
  redis.call('SET', KEYS[1], ARGV[3])
  redis.call('DEL', KEYS[2])
  return DONE
end
if redis.call('XLEN', KEYS[3]) > 0 then return UNDRAINED end
if redis.call('SET', KEYS[2], who, 'NX', 'EX', life) then return DONE end
return NOT_NOW
