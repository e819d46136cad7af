-- Takes what the ledger has committed out of a partition's stream, in one step. Events are kept beside it for a while, so
-- that a ledger that was restored from a backup can be fed with them again (rule 30).
--
-- The same commit may come twice, for an answer that was not read: then it does nothing.
-- KEYS  1 mark  2 fence  3 events  4 kept  5 what the ledger committed last  6 the last commit of this consumer
-- ARGV  1 group  2 name of this commit  3 how long events are kept, in ms  4 most bytes of them (0: none are kept)
--       5 the last event of this commit, as proof that the ledger has it (or empty)  6 how many proofs are remembered
--       then for each entry its id, and what it is: 0 no event, 1 an event that the ledger had, 2 one that is new to it
-- reply 1 where an event was new to the ledger and not in the stream: nobody else has booked it, so Redis was wiped
--       meanwhile, and a wallet may have been rebuilt without it. Without its mark the partition is rebuilt again, from
--       the ledger; a rebuild that is under way loses its fence, and begins again.
local NEW, EVENT, REMEMBER_S, OVERHEAD, MAX_DROPPED, TAKEN_S = 2, 1, 86400, 100, 500, 600
local taken = P .. ':taken'

if #ARGV < 6 or #ARGV % 2 ~= 0 then error('an entry without what it is') end
local group, name, keep_ms, most, proof, proofs = ARGV[1], ARGV[2], whole(3, 0), whole(4, 0), ARGV[5], whole(6, 1)
for i = 8, #ARGV, 2 do whole(i, 0) end
if #ARGV > 6 and redis.call('GET', KEYS[6]) == name then return 0 end

-- Each kept entry ends with the number of bytes that were ever kept up to it, itself included.
local function sum_of(entry) return entry and tonumber(entry[2][#entry[2]]) or 0 end
local sum = most > 0 and sum_of(redis.call('XREVRANGE', KEYS[4], '+', '-', 'COUNT', 1)[1]) or 0
local keeping = most > 0

local lost = 0
for i = 7, #ARGV, 2 do
  local id, what = ARGV[i], tonumber(ARGV[i + 1])
  local entry = redis.call('XRANGE', KEYS[3], id, id)[1]
  if not entry and what == NEW and redis.call('SISMEMBER', taken, id) == 0 then lost = 1 end
  -- Another consumer, which had it in hand too, has told so first: what it knew, this one booked.
  if entry and what == EVENT then
    redis.call('SADD', taken, id)
    redis.call('EXPIRE', taken, TAKEN_S)
  end
  if entry and what >= EVENT and keeping then
    local fields, size = entry[2], OVERHEAD
    for _, part in ipairs(fields) do size = size + #part end
    fields[#fields + 1] = 'kept_sum'
    fields[#fields + 1] = string.format('%.0f', sum + size)
    -- The first write of all, which a Redis that is full refuses: then what is kept makes room for what is not yet.
    local added = redis.pcall('XADD', KEYS[4], '*', unpack(fields))
    keeping = type(added) ~= 'table'
    if keeping then sum = sum + size end
  end
  redis.call('XDEL', KEYS[3], id)
  redis.call('XACK', KEYS[3], group, id)
end

if not keeping then
  redis.call('DEL', KEYS[4])
else
  local t = redis.call('TIME')
  local now_ms = t[1] * 1000 + math.floor(t[2] / 1000)
  redis.call('XTRIM', KEYS[4], 'MINID', string.format('%.0f', now_ms - keep_ms))
  for _ = 1, MAX_DROPPED do
    local first = redis.call('XRANGE', KEYS[4], '-', '+', 'COUNT', 1)[1]
    if not first or sum - sum_of(first) < most then break end
    redis.call('XDEL', KEYS[4], first[1])
  end
end
if proof ~= '' then
  redis.call('LPUSH', KEYS[5], proof)
  redis.call('LTRIM', KEYS[5], 0, proofs - 1)
end
if lost == 1 then redis.call('DEL', KEYS[1], KEYS[2]) end
if #ARGV > 6 then redis.call('SET', KEYS[6], name, 'EX', REMEMBER_S) end
return lost
