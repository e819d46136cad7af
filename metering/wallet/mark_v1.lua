-- Moves the mark of a partition that is projected, and what proves from which ledger, in one step.
-- KEYS  1 mark  2 ledger
-- ARGV  1 last change  2 its proof: the change's number and fingerprint, and an order's end that is committed, if any
-- reply 1, or 0 where there is no mark to be moved
arguments(2)
whole(1, 0)
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('SET', KEYS[2], ARGV[2])
redis.call('SET', KEYS[1], ARGV[1])
return 1
