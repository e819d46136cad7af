-- Puts kept events back into their stream, the oldest first, because the ledger that had committed them was restored
-- from a backup. An event that the ledger still has is booked once, by its id. The partition loses its mark, so it is
-- rebuilt from the ledger once the ledger has these events.
-- KEYS  mark fence events kept committed
-- ARGV  until_id most>=1
--
-- committed  events that the ledger committed last
-- until_id   the last entry that goes back: entries kept after it have been booked since
-- Returns how many went back. Fewer than `most` means that this was the last call.
local found = redis.call('XRANGE', kept_key, '-', until_id, 'COUNT', most)
for _, entry in ipairs(found) do
  local fields = entry[2]
  fields[#fields], fields[#fields - 1] = nil, nil
  redis.call('XDEL', kept_key, entry[1])  -- first, because it makes room for the next line
  redis.call('XADD', events_key, '*', unpack(fields))
end
local known = #found < most and redis.call('DEL', committed_key) or 0
if #found + known > 0 then redis.call('DEL', mark_key, fence_key) end
return #found
