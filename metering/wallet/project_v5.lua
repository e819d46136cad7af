-- Sets what SQL knows about one organisation: limits, keys, and credits as "the sum up to number N". It is absolute and
-- versioned, so it may be repeated, doubled or late; no value is ever seeded by addition.
-- KEYS  mark wallet open fence
-- ARGV  org revision>=0 credit_number>=0 credits mode charged>=0 number>=0 who lost>=0 now_us>=0 low>=0 day month
-- ARGV  suspended>=0 limits ...
-- REPLY code below
--
-- mode       'follow' an existing wallet, open a 'new' one, 'rebuild' a lost one
-- charged    amount in the ledger; number: of its last event; lost: numbers below that which the ledger does not have
-- who        holds the fence
-- low        the balance under which the organisation gets a notice
-- day, month today's
-- suspended  1 if its orders are refused, else 0
-- limits     the names of all kinds, between spaces
-- ...        for the organisation: a number for each of `limits`, or empty for none, and then what the ledger has:
--            images of today, images and micro-MXN of the month; then for each key its id, state, models (between
--            spaces, or empty for all); then, each empty for its default: the moment of its end in Unix µs, the keys
--            whose orders it may read, its response format, its origins; and limits and use as above
-- below      how far below zero this call left the balance, credits less charges, if it was higher before; else 0
-- WITH closing
local MAY = { 'expires_us', 'reads', 'response_format', 'origins' }
local LIMITS = {}
for name in string.gmatch(limits, '%S+') do LIMITS[#LIMITS + 1] = name end
-- The number of arguments for the limits and the use of an organisation or a key, and the number for a whole key.
local SCOPE = #LIMITS + 3
local KEY = 3 + #MAY + SCOPE

if #ARGV < REST + SCOPE - 1 or (#ARGV - REST - SCOPE + 1) % KEY ~= 0 then error('a key without its state') end
local now = clock(now_us)
credits = tonumber(credits)
assert(credits and credits == math.floor(credits) and math.abs(credits) <= MAX_EXACT, 'credits is no whole number')
assert(mode == 'follow' or mode == 'new' or mode == 'rebuild', 'unknown mode')
local function check(at)
  for i = at, at + #LIMITS - 1 do
    if ARGV[i] ~= '' then whole('argument ' .. i, i, 1) end
  end
  for i = at + #LIMITS, at + SCOPE - 1 do whole('argument ' .. i, i, 0) end
end
check(REST)
for first = REST + SCOPE, #ARGV, KEY do check(first + KEY - SCOPE) end

local projected = redis.call('EXISTS', mark_key) == 1
local w = redis.call('HMGET', wallet_key, 'revision', 'credit_number', 'credits', 'charged')
local opening = mode ~= 'follow'
local held, open, below = 0, {}, 0
local function lowered(before, after)
  if after < 0 and after < before then below = -after end
end

if mode == 'rebuild' then
  -- The stream was empty when the fence was raised, so the ledger has every event, and has until the mark is back.
  if projected or redis.call('GET', fence_key) ~= who then return answer({ code = FENCED_OFF }) end
  for _, request in ipairs(redis.call('ZRANGE', open_key, 0, -1)) do
    local hold = redis.call('HMGET', P .. ':hold:' .. request, 'amount', 'images', 'key', 'day', 'month')
    -- A hold of a later day was opened by a clock that was ahead: it counts today, like everything that begins here.
    if hold[4] and hold[4] > day then
      hold[4], hold[5] = day, month
      redis.call('HSET', P .. ':hold:' .. request, 'day', day, 'month', month)
    end
    open[#open + 1] = { amount = tonumber(hold[1] or 0), images = counted_images(hold[2], hold[3]), key = hold[3],
      day = hold[4], month = hold[5] }
    held = held + open[#open].amount
  end
  -- Only for a charge or an adjustment that Redis had lost; a wiped wallet does not say what its balance was before.
  if w[1] then lowered(tonumber(w[3]) - tonumber(w[4]), credits - charged) end
  -- What the wallet had and the ledger does not have: a restored backup lost it, or it was set aside. It is reported
  -- until somebody has accepted it, and a number that was used once is given to no other event.
  local gone = redis.call('HMGET', wallet_key, 'number', 'gone_charged', 'gone_credits')
  local function less(had, already, has)
    return math.max(0, tonumber(had or 0) + tonumber(already or 0) - has)
  end
  local last = math.max(number, tonumber(gone[1] or 0))
  redis.call('HSET', wallet_key, 'available', credits - charged - held, 'held', held, 'charged', charged, 'number', last,
    'lost', lost + last - number, 'credits', credits, 'credit_number', credit_number,
    'gone_charged', less(w[4], gone[2], charged), 'gone_credits', less(w[3], gone[3], credits))
else
  if not projected then return answer({ code = AWAY }) end
  -- If there are holds, there was a wallet.
  if not w[1] and (mode == 'follow' or redis.call('EXISTS', open_key) == 1) then return answer({ code = LOST }) end
  if not w[1] then
    redis.call('HSET', wallet_key, 'available', credits, 'held', 0, 'charged', 0, 'number', 0, 'credits', credits,
      'credit_number', credit_number)
    lowered(0, credits)
  else
    opening = false
    redis.call('HSET', wallet_key, 'low', low)
    if tonumber(w[2]) < credit_number then
      redis.call('HINCRBY', wallet_key, 'available', credits - tonumber(w[3]))
      redis.call('HSET', wallet_key, 'credits', credits, 'credit_number', credit_number)
      tell_balance(org, low, tonumber(w[3]) - tonumber(w[4]), credits - tonumber(w[4]), now)
      lowered(tonumber(w[3]) - tonumber(w[4]), credits - tonumber(w[4]))
    end
    if tonumber(w[1]) > revision then return answer({ code = DONE, below = below }) end
  end
end

-- Sets limits, and if a wallet is rebuilt, what is used of them: as the ledger has it, and by the holds that are open.
local function set(name, at, key)
  for i, limit in ipairs(LIMITS) do
    local value = ARGV[at + i - 1]
    if value == '' then redis.call('HDEL', name, limit) else redis.call('HSET', name, limit, value) end
  end
  local before, quotas = usage_of_quotas(name, day, month)
  if not opening then return tell_thresholds(before, quotas, org, key or '', now) end
  local used = at + #LIMITS
  local u = { name = name, begins = true, flying = 0, day = day, day_done = tonumber(ARGV[used]), day_open = 0, month = month,
    month_done = tonumber(ARGV[used + 1]), month_open = 0, spent_done = tonumber(ARGV[used + 2]), spent_open = 0 }
  for _, hold in ipairs(open) do
    if not key or hold.key == key then hold_counts(u, 1, hold.images, hold.amount, hold.day, hold.month) end
  end
  keep_usage(u)
  tell_thresholds(u, quotas, org, key or '', now)
end

redis.call('HSET', wallet_key, 'revision', revision, 'low', low)
if suspended == 1 then redis.call('HSET', wallet_key, 'suspended', 1) else redis.call('HDEL', wallet_key, 'suspended') end
set(wallet_key, REST)
for i = REST + SCOPE, #ARGV, KEY do
  local access = access_of(ARGV[i])
  local told, usual = { 'state', ARGV[i + 1], 'models', ARGV[i + 2] }, {}
  for j, name in ipairs(MAY) do
    local value = ARGV[i + 2 + j]
    if value == '' then usual[#usual + 1] = name else told[#told + 1], told[#told + 2] = name, value end
  end
  redis.call('HSET', access, unpack(told))
  if #usual > 0 then redis.call('HDEL', access, unpack(usual)) end
  set(access, i + KEY - SCOPE, ARGV[i])
end
return answer({ code = DONE, below = below })
