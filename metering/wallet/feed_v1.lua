-- Puts kept events back into their stream, the oldest first: the ledger that had committed them was restored from a
-- backup. One that it has after all is booked once, by its id. The partition loses its mark: it is rebuilt from the
-- ledger once that has them, whatever was made of it without them.
-- KEYS  mark fence events kept committed
-- ARGV  until_id most>=1
--
-- committed  what the ledger committed last
-- until_id   the last entry that goes back: what is kept meanwhile has been booked since
-- Returns how many went back; fewer than the most: it was the last call.
local found = redis.call('XRANGE', kept_key, '-', until_id, 'COUNT', most)
for _, entry in ipairs(found) do
  local fields = entry[2]
  fields[#fields], fields[#fields - 1] = nil, nil
  redis.call('XDEL', kept_key, entry[1])  -- first: it makes the room that the next line needs
  redis.call('XADD', events_key, '*', unpack(fields))
end
local known = #found < most and redis.call('DEL', committed_key) or 0
if #found + known > 0 then redis.call('DEL', mark_key, fence_key) end
return #found
