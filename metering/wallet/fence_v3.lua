-- Fences a partition for its rebuild, and removes the fence. Only the holder of the fence may rebuild, and only its end
-- sets the mark. Without the mark nothing is admitted, settled or expired, so what the holder read from the ledger
-- stays true until then. A wipe deletes the fence, and its holder starts again. A mark does not count if it was set on
-- another run of a server, or on another server: after a restart or a failover Redis may have lost what it had
-- acknowledged, while the ledger has it. It does not count either if it was made from another ledger (rule 34). The
-- caller that raises the fence has seen such a mark, and sends what it saw: a mark that is different by now stays.
-- KEYS  mark fence events home ledger
-- ARGV  who step change>=0 life_s>=1 run fingerprint seen_mark seen_home seen_ledger
--
-- step         'raise' or 'drop'
-- change       drop: the last one, and its fingerprint
-- life_s       raise: when a dead holder's fence expires
-- run          of the server on which the rebuild began
-- seen_…       raise: the mark, home and ledger that do not count, each empty if there was none
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
-- The proof is deleted with its mark. `committed` stays: it proves as much about this ledger as before.
redis.call('DEL', mark_key, ledger_key)
if redis.call('XLEN', events_key) > 0 then return UNDRAINED end
if redis.call('SET', fence_key, who, 'NX', 'EX', life_s) then return DONE end
return NOT_NOW
