-- Fences a partition for its rebuild, and takes the fence down. Only the holder of the fence may rebuild, and only its
-- end sets the mark: so what the holder read of the ledger stays true until then, for without the mark nothing is
-- admitted, settled or expired. A wipe takes the fence along, and whoever held it begins again.
-- A mark counts for nothing that was set on another run of a server, or on another server: after a restart or a failover
-- Redis may have lost what it had acknowledged, while the ledger has it. Nor does one that was made from another ledger
-- (rule 34). Whoever raises the fence has seen that, and says what it saw: a mark that is another by now stays.
-- KEYS  1 mark  2 fence  3 events  4 home  5 ledger
-- ARGV  1 who  2 step: 'raise' or 'drop'  3 last change (drop)  4 seconds until a dead holder's fence falls (raise)
--       5 the run of the server on which the rebuild began  6 fingerprint of the last change (drop)
--       7 to 9 the mark, home and ledger that count for nothing, each empty where there was none (raise)
-- reply code
local DONE, NOT_NOW, UNDRAINED = 1, 2, 3

arguments(9)
local who, step, run = ARGV[1], ARGV[2], ARGV[5]
local change, life = whole(3, 0), whole(4, 1)
assert(step == 'raise' or step == 'drop', 'unknown step')
assert(run ~= '', 'no run')

local projected = redis.call('EXISTS', KEYS[1]) == 1
if step == 'drop' then
  if projected or redis.call('GET', KEYS[2]) ~= who then return NOT_NOW end
  redis.call('SET', KEYS[4], run)
  redis.call('SET', KEYS[5], ARGV[3] .. ' ' .. ARGV[6])
  redis.call('SET', KEYS[1], ARGV[3])
  redis.call('DEL', KEYS[2])
  return DONE
end
if projected then
  for i, name in ipairs({ KEYS[1], KEYS[4], KEYS[5] }) do
    if (redis.call('GET', name) or '') ~= ARGV[6 + i] then return NOT_NOW end
  end
end
-- Its proof goes with it; what the ledger committed last proves as much of this one as before.
redis.call('DEL', KEYS[1], KEYS[5])
if redis.call('XLEN', KEYS[3]) > 0 then return UNDRAINED end
if redis.call('SET', KEYS[2], who, 'NX', 'EX', life) then return DONE end
return NOT_NOW
