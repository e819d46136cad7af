-- Puts kept events back into their stream, the oldest first: the ledger that had committed them was restored from a
-- backup. One that it has after all is booked once, by its id. The partition loses its mark: it is rebuilt from the
-- ledger once that has them, whatever was made of it without them.
-- KEYS  1 mark  2 fence  3 events  4 kept  5 what the ledger committed last
-- ARGV  1 the last entry that goes back: what is kept meanwhile has been booked since  2 most entries of one call
-- reply how many went back; fewer than the most: it was the last call
arguments(2)
local most = whole(2, 1)
local found = redis.call('XRANGE', KEYS[4], '-', ARGV[1], 'COUNT', most)
for _, entry in ipairs(found) do
  local fields = entry[2]
  fields[#fields], fields[#fields - 1] = nil, nil
  redis.call('XDEL', KEYS[4], entry[1])  -- first: it makes the room that the next line needs
  redis.call('XADD', KEYS[3], '*', unpack(fields))
end
local known = #found < most and redis.call('DEL', KEYS[5]) or 0
if #found + known > 0 then redis.call('DEL', KEYS[1], KEYS[2]) end
return #found
