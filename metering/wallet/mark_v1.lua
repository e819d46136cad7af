-- Moves the mark of a projected partition, together with the proof of its ledger, in one step.
-- KEYS  mark ledger
-- ARGV  change>=0 proof
--
-- change  the last one
-- proof   the change's number and fingerprint, and an order's end that is committed, if any
-- Returns 1, or 0 if there is no mark.
if redis.call('EXISTS', mark_key) == 0 then return 0 end
redis.call('SET', ledger_key, proof)
redis.call('SET', mark_key, change)
return 1
