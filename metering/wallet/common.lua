-- `script.py` puts this before every script of this folder, and after it what the script declares. `-- KEYS`, the first
-- of which is always the partition's mark, become locals NAME_key. `-- ARGV` become locals; those with `>=` are whole
-- numbers of at least that value, checked before the first write, because a script that fails half-way keeps what it
-- wrote. REST is the index at which `...` begins. Codes have names. For `-- REPLY` there is a function `answer` that
-- takes its fields by name. Every key of a script carries its hash tag.
--
-- Every function is made anew at each call of a script. So what few orders need is in `again.lua` and `closing.lua`,
-- and a line `-- WITH again` puts it where it is needed. Most expensive is a field that is read or written, then a
-- call, then a number that is read from a text: `text + 0` takes half as long as `tonumber`.
local P = string.match(KEYS[1], '^({p%d+})')

local MAX_EXACT = 9007199254740991

-- Reads an argument as a whole number.
local function whole(name, i, lowest)
  local n = ARGV[i] + 0
  if n % 1 ~= 0 or n < lowest or n > MAX_EXACT then
    error(name .. ' is not a whole number from ' .. lowest)
  end
  return n
end

-- Tests script the time; production sends 0, which means the server's time.
local function clock(given_us)
  if given_us > 0 then return given_us end
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2]
end

-- The name of the hash with what one of an organisation's keys may do and has used.
local function access_of(key_id) return P .. ':access:' .. key_id end

-- Orders without an idempotency key that a client may receive if it places the same again (rules 18, 38). `kind` is
-- what makes them equal: API key and fingerprint. Each kind has, sorted by the moment of admission,
--   recent          orders that are open or charged
--   claimed:COUNT   those of them that a retry of this count received, or that began as a later try
-- and `gone`: orders whose clients have all left without their answer, sorted by the moment when the last one left.
-- For each order, `claims` keeps the counts that received it (0: an order that is no retry), and in its field `gone`
-- that it is in there: run of the server, tries and moment. `asking`: who waits for it, or has it, once it was given
-- again.
local function kind_of(key_id, fingerprint) return key_id .. ':' .. fingerprint end
local function recent_of(kind) return P .. ':recent:' .. kind end
local function claimed_of(kind, count) return P .. ':claimed:' .. kind .. ':' .. count end
local function gone_of(kind) return P .. ':gone:' .. kind end
local function claims_of(request) return P .. ':claims:' .. request end
-- This is written together with the order's end, because the caller may die after any call. `is_new`: there is no such
-- list, so nothing in it is too old.
local function add_for(recent_us, now_us, name, score, request, is_new)
  if not is_new then redis.call('ZREMRANGEBYSCORE', name, '-inf', now_us - recent_us) end
  redis.call('ZADD', name, score, request)
  redis.call('PEXPIRE', name, math.ceil(recent_us / 1000))
end

-- An order that ended without a charge is given to nobody; one that was given to a new order is given to nobody else.
local function give_to_nobody(kind, request)
  redis.call('ZREM', recent_of(kind), request)
  redis.call('ZREM', gone_of(kind), request)
  for _, count in ipairs(redis.call('HKEYS', claims_of(request))) do
    if tonumber(count) then redis.call('ZREM', claimed_of(kind, count), request) end
  end
end

-- Checks whether a key may use this model. `models`: the allowed ones, between spaces; empty or absent for all.
local function allows(models, model)
  return (models or '') == '' or string.find(' ' .. models .. ' ', ' ' .. model .. ' ', 1, true) ~= nil
end

-- Returns how many images a hold counts as. A hold of the previous version names no key, and counts against no limit.
local function counted_images(images, key) return key and tonumber(images) or 0 end

-- Finds the expired holds of an organisation. They count nowhere, whether or not their end has been recorded. Returns
-- the holds, and the sum of their amounts.
local function expired_holds(org, now_us)
  local found, sum = {}, 0
  for _, request in ipairs(redis.call('ZRANGEBYSCORE', P .. ':open:' .. org, '-inf', now_us)) do
    local hold = redis.call('HMGET', P .. ':hold:' .. request, 'amount', 'images', 'key', 'day', 'month')
    local amount = tonumber(hold[1] or 0)
    found[#found + 1] = { request = request, amount = amount, images = counted_images(hold[2], hold[3]), key = hold[3],
      day = hold[4], month = hold[5] }
    sum = sum + amount
  end
  return found, sum
end

-- Returns what an organisation may spend: expired holds are available.
local function available_at(org, now_us)
  local _, freed = expired_holds(org, now_us)
  return tonumber(redis.call('HGET', P .. ':wallet:' .. org, 'available') or 0) + freed
end

-- Reads how much of its quotas an organisation, or one of its keys, has used. `name` is its wallet, or the key's
-- access. `flying`: images of open holds. For the day and the month: images delivered (`done`) and of open holds
-- (`open`); for the month the same in micro-MXN (`spent`). A period that has passed never comes back: if a clock was set back, it
-- counts in the later period, so that nobody gets a quota twice (rule 29). The second result has, from FURTHER on, the
-- values of `...`, further fields of the same hash: a separate read for each would cost as much again.
local FURTHER = 10
local function usage(name, day, month, ...)
  local v = redis.call('HMGET', name, 'flying', 'day', 'day_done', 'day_open', 'month', 'month_done', 'month_open',
    'spent_done', 'spent_open', ...)
  local new_day, new_month = (v[2] or '') < day, (v[5] or '') < month
  return { name = name, begins = new_day or new_month, flying = (v[1] or 0) + 0,
    day = new_day and day or v[2] or '', month = new_month and month or v[5] or '',
    day_done = new_day and 0 or (v[3] or 0) + 0, day_open = new_day and 0 or (v[4] or 0) + 0,
    month_done = new_month and 0 or (v[6] or 0) + 0, month_open = new_month and 0 or (v[7] or 0) + 0,
    spent_done = new_month and 0 or (v[8] or 0) + 0, spent_open = new_month and 0 or (v[9] or 0) + 0 }, v
end

-- Writes what is used, and further fields of the same hash with their values. Only what has changed is written: the
-- periods if one `begins`, and what was delivered in them if something was.
local function keep_usage(u, delivered, ...)
  if u.begins then
    redis.call('HSET', u.name, 'flying', u.flying, 'day', u.day, 'day_done', u.day_done, 'day_open', u.day_open,
      'month', u.month, 'month_done', u.month_done, 'month_open', u.month_open, 'spent_done', u.spent_done,
      'spent_open', u.spent_open, ...)
  elseif delivered then
    redis.call('HSET', u.name, 'flying', u.flying, 'day_done', u.day_done, 'day_open', u.day_open, 'month_done',
      u.month_done, 'month_open', u.month_open, 'spent_done', u.spent_done, 'spent_open', u.spent_open, ...)
  else
    redis.call('HSET', u.name, 'flying', u.flying, 'day_open', u.day_open, 'month_open', u.month_open, 'spent_open',
      u.spent_open, ...)
  end
end

-- Counts a hold that is opened (sign 1), or gives back what it took from its own day and month (sign -1).
local function hold_counts(u, sign, images, amount, day, month)
  u.flying = u.flying + sign * images
  if u.day == day then u.day_open = u.day_open + sign * images end
  if u.month == month then
    u.month_open = u.month_open + sign * images
    u.spent_open = u.spent_open + sign * amount
  end
end

-- Returns what the organisation's orders that ended without a known end, or were cancelled while the provider had them,
-- may have cost in this hour, in micro-MXN. `stored`: the field `unpaid` of its wallet.
local function unpaid_in_hour(stored, now_us)
  local hour, amount = string.match(stored or '', '^(%d+) (%d+)$')
  return hour and hour + 0 == math.floor(now_us / 3600000000) and amount + 0 or 0
end

-- GCRA with a burst of a whole minute's allowance. Everything is in µs, so it is exact. `over` is 0 or less if there
-- is room, and NEVER if no wait makes room. `to` is the time to store, `left` what remains, if this is taken.
local NEVER = math.huge
local function rate(now_us, tat_us, limit, cost)
  local interval = math.ceil(60000000 / limit)
  local window, from = interval * limit, math.max(tat_us, now_us)
  local to = from + interval * cost
  return { limit = limit, interval = interval, from = from, to = to, over = cost > limit and NEVER or to - now_us - window,
    left = math.floor((window - to + now_us) / interval) }
end

-- Returns what remains of a rate and when all is back: if this is `taken`, and if it is not.
local function rate_after(r, now_us, taken)
  if taken then return r.left, r.to - now_us end
  return math.floor((r.interval * r.limit - r.from + now_us) / r.interval), r.from - now_us
end

-- Reads the stored time of a limit. If it is further ahead than any limit reaches, it was stored before a clock was set
-- back: it counts as none, so that nobody is locked out for longer than this.
local FURTHEST_US = 120000000
local function tat(stored, now_us)
  local at = (stored or 0) + 0
  return at <= now_us + FURTHEST_US and at or now_us
end
