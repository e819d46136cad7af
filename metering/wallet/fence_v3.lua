-- Fences a partition for its rebuild, and takes the fence down. Only the holder of the fence may rebuild, and only its
-- end sets the mark: so what the holder read of the ledger stays true until then, for without the mark nothing is
-- admitted, settled or expired. A wipe takes the fence along, and whoever held it begins again.
-- A mark counts for nothing that was set on another run of a server, or on another server: after a restart or a failover
-- Redis may have lost what it had acknowledged, while the ledger has it. Nor does one that was made from another ledger
-- (rule 34). Whoever raises the fence has seen that, and says what it saw: a mark that is another by now stays.
-- KEYS  mark fence events home ledger
-- ARGV  who step change>=0 life_s>=1 run fingerprint seen_mark seen_home seen_ledger
--
-- step         'raise' or 'drop'
-- change       drop: the last one, and its fingerprint
-- life_s       raise: until a dead holder's fence falls
-- run          of the server on which the rebuild began
-- seen_…       raise: the mark, home and ledger that count for nothing, each empty where there was none
-- Returns a code.
assert(step == 'raise' or step == 'drop', 'unknown step')
assert(run ~= '', 'no run')

local projected = redis.call('EXISTS', mark_key) == 1
if step == 'drop' then
  if projected or redis.call('GET', fence_key) ~= who then return NOT_NOW end
  redis.call('SET', home_key, run)
  redis.call('SET', ledger_key, string.format('%.0f %s', change, fingerprint))
  redis.call('SET', mark_key, change)
  redis.call('DEL', fence_key)
  return DONE
end
if projected then
  for name, seen in pairs({ [mark_key] = seen_mark, [home_key] = seen_home, [ledger_key] = seen_ledger }) do
    if (redis.call('GET', name) or '') ~= seen then return NOT_NOW end
  end
end
-- Its proof goes with it; what the ledger committed last proves as much of this one as before.
redis.call('DEL', mark_key, ledger_key)
if redis.call('XLEN', events_key) > 0 then return UNDRAINED end
if redis.call('SET', fence_key, who, 'NX', 'EX', life_s) then return DONE end
return NOT_NOW
