-- Removes committed entries from a partition's stream, in one step. Events are kept for a while, so that a ledger that
-- was restored from a backup can be fed with them again (rule 30).
--
-- The same commit may come twice, if its answer was lost: the second one does nothing.
-- KEYS  mark fence events kept committed last_commit
-- ARGV  group name keep_ms>=0 max_bytes>=0 proof proofs>=1 ...
--
-- committed    events that the ledger committed last; last_commit: the last commit of this consumer
-- name         of this commit
-- keep_ms      how long events are kept; max_bytes: of all kept events, 0: keep none
-- proof        the last event of this commit, as proof that the ledger has it, or empty; `proofs` are remembered
-- ...          for each entry its id, and what it is: 0 no event, 1 one that the ledger had, 2 one that is new to it
-- Returns 1 if an event was new to the ledger and not in the stream: nobody else has booked it, so Redis was wiped
-- meanwhile, and a wallet may have been rebuilt without it. Then the mark is deleted, so the partition is rebuilt again
-- from the ledger. A rebuild that is under way loses its fence, and starts again.
local NEW, EVENT, REMEMBER_S, OVERHEAD, MAX_DROPPED, TAKEN_S = 2, 1, 86400, 100, 500, 600
local taken = P .. ':taken'

if (#ARGV - REST) % 2 == 0 then error('an entry without what it is') end
for i = REST + 1, #ARGV, 2 do whole('argument ' .. i, i, 0) end
if #ARGV >= REST and redis.call('GET', last_commit_key) == name then return 0 end

-- The last field of each kept entry is the number of bytes ever kept up to it, itself included.
local function sum_of(entry) return entry and tonumber(entry[2][#entry[2]]) or 0 end
local sum = max_bytes > 0 and sum_of(redis.call('XREVRANGE', kept_key, '+', '-', 'COUNT', 1)[1]) or 0
local keeping = max_bytes > 0

local lost = 0
for i = REST, #ARGV, 2 do
  local id, what = ARGV[i], tonumber(ARGV[i + 1])
  local entry = redis.call('XRANGE', events_key, id, id)[1]
  if not entry and what == NEW and redis.call('SISMEMBER', taken, id) == 0 then lost = 1 end
  -- This consumer removes an event that another one booked and will still report as new. `taken` remembers this, so
  -- that the other report does not count as a lost stream.
  if entry and what == EVENT then
    redis.call('SADD', taken, id)
    redis.call('EXPIRE', taken, TAKEN_S)
  end
  if entry and what >= EVENT and keeping then
    local fields, size = entry[2], OVERHEAD
    for _, part in ipairs(fields) do size = size + #part end
    fields[#fields + 1] = 'kept_sum'
    fields[#fields + 1] = string.format('%.0f', sum + size)
    -- This is the first write, so it is the one that a full Redis refuses. Then the kept entries are deleted to make
    -- room.
    local added = redis.pcall('XADD', kept_key, '*', unpack(fields))
    keeping = type(added) ~= 'table'
    if keeping then sum = sum + size end
  end
  redis.call('XDEL', events_key, id)
  redis.call('XACK', events_key, group, id)
end

if not keeping then
  redis.call('DEL', kept_key)
else
  local t = redis.call('TIME')
  local now_ms = t[1] * 1000 + math.floor(t[2] / 1000)
  redis.call('XTRIM', kept_key, 'MINID', string.format('%.0f', now_ms - keep_ms))
  for _ = 1, MAX_DROPPED do
    local first = redis.call('XRANGE', kept_key, '-', '+', 'COUNT', 1)[1]
    if not first or sum - sum_of(first) < max_bytes then break end
    redis.call('XDEL', kept_key, first[1])
  end
end
if proof ~= '' then
  redis.call('LPUSH', committed_key, proof)
  redis.call('LTRIM', committed_key, 0, proofs - 1)
end
if lost == 1 then redis.call('DEL', mark_key, fence_key) end
if #ARGV >= REST then redis.call('SET', last_commit_key, name, 'EX', REMEMBER_S) end
return lost
