-- Cancels a long order that no provider has begun; or notes that no further part of it may begin, and says what its
-- providers have, if each of them could confirm a cancel.
-- KEYS  mark wallet open hold events closed
-- ARGV  now_us>=0 org request remember_s>=1 max_unpaid>=0
-- REPLY code parts:text
--
-- parts       what its providers have, JSON lines, if the code is ASKED or RUNS
-- max_unpaid  as in admit: an organisation whose cancels and unknown ends may have cost us so much runs its orders to
--             their ends. Otherwise many that were placed at once could all be cancelled
-- WITH closing
local now = clock(now_us)
if redis.call('EXISTS', mark_key, wallet_key) < 2 then return answer({ code = AWAY }) end
local before = redis.call('GET', closed_key)
if before then return answer({ code = string.match(before, '^void:%d+:cancelled:') and CANCELLED or ENDED }) end
local order = order_of(org, request)
local expires = redis.call('ZSCORE', open_key, request)
if not order.amount or not expires or tonumber(expires) <= now then return answer({ code = ENDED }) end
if not order.long then return answer({ code = AWAITED }) end
local parts, firm = {}, false
local fields = redis.call('HGETALL', hold_key)
for i = 1, #fields, 2 do
  if string.match(fields[i], '^part:') then
    parts[#parts + 1] = fields[i + 1]
    firm = firm or not string.find(fields[i + 1], '"handle":"', 1, true)
  end
end
if #parts == 0 then
  local once = redis.call('HGET', hold_key, 'once')
  close(order, 'void', 'cancelled', 0, 0, '', '[]', '', now, remember_s)
  if once then redis.call('DEL', once) end
  return answer({ code = CANCELLED })
end
local of_org = order.of_org
local unpaid = unpaid_in_hour(redis.call('HGET', wallet_key, 'unpaid'), now)
if firm or unpaid >= max_unpaid + of_org.spent_done / 10 then return answer({ code = RUNS, parts = table.concat(parts, '\n') }) end
redis.call('HSET', hold_key, 'cancel', now)
return answer({ code = ASKED, parts = table.concat(parts, '\n') })
