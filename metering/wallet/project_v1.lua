-- Sets what SQL knows of one organisation: limits, key states, and credits as "the sum up to number N". Absolute and
-- versioned, so it may be repeated, doubled or late; nothing is ever seeded by addition.
-- KEYS  1 mark  2 wallet  3 key states  4 open holds  5 fence
-- ARGV  1 org  2 revision  3 credit number  4 credits  5 requests_per_minute  6 images_per_minute
--       7 mode: 'follow' an existing wallet, open a 'new' one, 'rebuild' a lost one
--       8 charged in the ledger  9 last event in the ledger  10 who holds the fence
--       11 numbers below it that the ledger does not have  12… key id, state, key id, state …
-- reply code
local DONE, AWAY, LOST, FENCED_OFF = 1, 2, 3, 4

if #ARGV < 11 or #ARGV % 2 == 0 then error('a key without its state') end
local org, mode = ARGV[1], ARGV[7]
local revision, credit_number = whole(2, 0), whole(3, 0)
local credits = tonumber(ARGV[4])
local requests, images = whole(5, 1), whole(6, 1)
local charged, number, lost = whole(8, 0), whole(9, 0), whole(11, 0)
assert(credits and credits == math.floor(credits) and math.abs(credits) <= MAX_EXACT, 'credits is no whole number')
assert(mode == 'follow' or mode == 'new' or mode == 'rebuild', 'unknown mode')

local projected = redis.call('EXISTS', KEYS[1]) == 1
local w = redis.call('HMGET', KEYS[2], 'revision', 'credit_number', 'credits')

if mode == 'rebuild' then
  -- The fence was raised over an empty stream, so the ledger has every event, and it stays so until the mark is back.
  if projected or redis.call('GET', KEYS[5]) ~= ARGV[10] then return FENCED_OFF end
  local held = 0
  for _, request in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
    held = held + tonumber(redis.call('HGET', P .. ':hold:' .. request, 'amount') or 0)
  end
  redis.call('HSET', KEYS[2], 'available', credits - charged - held, 'held', held, 'charged', charged, 'number', number,
    'lost', lost, 'credits', credits, 'credit_number', credit_number)
else
  if not projected then return AWAY end
  if not w[1] and mode == 'follow' then return LOST end
  if not w[1] then
    redis.call('HSET', KEYS[2], 'available', credits, 'held', 0, 'charged', 0, 'number', 0, 'credits', credits,
      'credit_number', credit_number)
  else
    if tonumber(w[2]) < credit_number then
      redis.call('HINCRBY', KEYS[2], 'available', credits - tonumber(w[3]))
      redis.call('HSET', KEYS[2], 'credits', credits, 'credit_number', credit_number)
    end
    if tonumber(w[1]) > revision then return DONE end
  end
end
redis.call('HSET', KEYS[2], 'revision', revision, 'requests_per_minute', requests, 'images_per_minute', images)
for i = 12, #ARGV, 2 do
  redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1])
end
return DONE
