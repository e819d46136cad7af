-- Prepended to every script of this folder, and after it what the script declares (`script.py`): `-- KEYS`, the first of
-- which is always the partition's mark, as locals NAME_key; `-- ARGV` as locals, those with `>=` as whole numbers from
-- that one on, checked before the first write, for a script that fails half-way keeps what it wrote; REST, where `...`
-- begins; codes by name; and for `-- REPLY` a function `answer` that takes its fields by name. Every key of a script
-- carries its hash tag.
local P = string.match(KEYS[1], '^({p%d+})')

local MAX_EXACT = 9007199254740991

-- An argument as a whole number.
local function whole(name, i, lowest)
  local n = tonumber(ARGV[i])
  if not n or n ~= math.floor(n) or n < lowest or n > MAX_EXACT then
    error(name .. ' is not a whole number from ' .. lowest)
  end
  return n
end

-- Tests script the time; production sends 0 and gets the server's.
local function clock(given_us)
  if given_us > 0 then return given_us end
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2]
end

-- What one of an organisation's keys may do, and what it has used.
local function access_of(key_id) return P .. ':access:' .. key_id end

-- The tries of an SDK that are awaited because the one before was refused or failed, so that they repeat no order which
-- was placed before: how many there are of the same order and count, and since when. A hash for each API key.
local MAX_AWAITED = 1000
local function awaited_of(key_id) return P .. ':awaited:' .. key_id end

local function awaited(key_id, count, fingerprint, now_us, recent_us)
  local stored = redis.call('HGET', awaited_of(key_id), count .. ' ' .. fingerprint) or ''
  local n, since_us = string.match(stored, '^(%d+) (%d+)$')
  if not n or tonumber(since_us) < now_us - recent_us then return 0, 0 end
  return tonumber(n), tonumber(since_us)
end

local function set_awaited(key_id, count, fingerprint, n, since_us)
  local field = count .. ' ' .. fingerprint
  if n == 0 then redis.call('HDEL', awaited_of(key_id), field)
  else redis.call('HSET', awaited_of(key_id), field, string.format('%d %.0f', n, since_us)) end
end

-- One more. Of a key with very many different orders the earlier are forgotten.
local function await_try(key_id, count, fingerprint, now_us, recent_us)
  local n = awaited(key_id, count, fingerprint, now_us, recent_us)
  if redis.call('HLEN', awaited_of(key_id)) >= MAX_AWAITED then redis.call('DEL', awaited_of(key_id)) end
  set_awaited(key_id, count, fingerprint, n + 1, now_us)
  redis.call('PEXPIRE', awaited_of(key_id), math.ceil(recent_us / 1000))
end

-- Orders without an idempotency key that may be given to whoever places the same again (rules 18, 38). `kind` is what
-- makes them the same: API key and fingerprint. Of each kind there are, by the moment of its admission,
--   recent          those that live or are charged
--   claimed:COUNT   of these, those that a retry of this count was given, or that began as a later one
-- and `gone`: those whose clients have all left without their answer, by the moment at which the last one did.
-- Of each order, `claims` keeps the counts that it was given to (0: to an order that is no retry), and under `gone` that
-- it is there: run of the server, tries and moment. `asking`: who waits for it, or has it, once it was given again.
local MAX_PASSED_OVER = 32

local function kind_of(key_id, fingerprint) return key_id .. ':' .. fingerprint end
local function recent_of(kind) return P .. ':recent:' .. kind end
local function claimed_of(kind, count) return P .. ':claimed:' .. kind .. ':' .. count end
local function gone_of(kind) return P .. ':gone:' .. kind end
local function claims_of(request) return P .. ':claims:' .. request end
local function asking_of(request) return P .. ':asking:' .. request end

-- What a restart or a failover forgot, nobody can know: what was noted under another run of the server is given to no
-- new order, for it may have been given before.
local function server_run() return string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') end

-- Written together with its end: whoever asked may die behind any call.
local function add_for(recent_us, now_us, name, score, request)
  redis.call('ZREMRANGEBYSCORE', name, '-inf', now_us - recent_us)
  redis.call('ZADD', name, score, request)
  redis.call('PEXPIRE', name, math.ceil(recent_us / 1000))
end

-- An order that ended without a charge is given to nobody, and one that was given to a new order to nobody else.
local function give_to_nobody(kind, request)
  redis.call('ZREM', recent_of(kind), request)
  redis.call('ZREM', gone_of(kind), request)
  for _, count in ipairs(redis.call('HKEYS', claims_of(request))) do
    if tonumber(count) then redis.call('ZREM', claimed_of(kind, count), request) end
  end
end

-- May a key use this model? `models`: those that it may, between spaces; empty or absent for all.
local function allows(models, model)
  return (models or '') == '' or string.find(' ' .. models .. ' ', ' ' .. model .. ' ', 1, true) ~= nil
end

-- How many images a hold counts as. One that the version before opened counts against no limit: it names no key.
local function counted_images(images, key) return key and tonumber(images) or 0 end

-- The holds of an organisation that have run out. They count nowhere, whether or not somebody has written their end
-- down. Returns the holds, and the sum of their amounts.
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

-- What an organisation may spend: expired holds are available.
local function available_at(org, now_us)
  local _, freed = expired_holds(org, now_us)
  return tonumber(redis.call('HGET', P .. ':wallet:' .. org, 'available') or 0) + freed
end

-- How an order of this organisation stands: 'open', or as it is remembered `ending:amount:reason:org`, or nothing.
local function standing(org, request, now_us)
  local closed = redis.call('GET', P .. ':closed:' .. request)
  if closed then
    local owner = string.match(closed, '^%a+:%d+:[^:]*:(.+)$')
    return (not owner or owner == org) and closed or nil
  end
  local expires = redis.call('ZSCORE', P .. ':open:' .. org, request)
  return expires and tonumber(expires) > now_us and 'open' or nil
end

-- The key by which an order was placed that has ended, or empty: beside its result where it has one.
local function placed_by(request)
  return redis.call('HGET', P .. ':result:' .. request, 'key') or redis.call('GET', P .. ':placed:' .. request) or ''
end

-- The same of an order that may be given again: while it is made, or charged. What failed is not.
local function givable(org, request, now_us)
  local stands = standing(org, request, now_us)
  return stands and (stands == 'open' or string.match(stands, '^charge:')) and stands
end

-- How much of its quotas an organisation, or one of its keys, has used. `name` is its wallet, or the key's access.
-- `flying`: images of open holds. Of the day and of the month: images delivered (`done`) and of open holds (`open`);
-- of the month the same in micro-MXN (`spent`). A period that has passed is never gone back to: a clock that was set
-- back counts in the later one, so that nobody gets a quota twice (rule 29). Second, the values of `...`, further fields
-- of the same hash: each read of its own would cost as much again.
local function usage(name, day, month, ...)
  local v = redis.call('HMGET', name, 'flying', 'day', 'day_done', 'day_open', 'month', 'month_done', 'month_open',
    'spent_done', 'spent_open', ...)
  local u = { name = name, flying = tonumber(v[1] or 0), day = v[2] or '', month = v[5] or '' }
  if u.day < day then
    u.day, u.day_done, u.day_open = day, 0, 0
  else
    u.day_done, u.day_open = tonumber(v[3]), tonumber(v[4])
  end
  if u.month < month then
    u.month, u.month_done, u.month_open, u.spent_done, u.spent_open = month, 0, 0, 0, 0
  else
    u.month_done, u.month_open, u.spent_done, u.spent_open = tonumber(v[6]), tonumber(v[7]), tonumber(v[8]), tonumber(v[9])
  end
  return u, { unpack(v, 10) }
end

-- Writes it, and further fields of the same hash with their values.
local function keep_usage(u, ...)
  redis.call('HSET', u.name, 'flying', u.flying, 'day', u.day, 'day_done', u.day_done, 'day_open', u.day_open, 'month',
    u.month, 'month_done', u.month_done, 'month_open', u.month_open, 'spent_done', u.spent_done, 'spent_open',
    u.spent_open, ...)
end

-- A hold is opened (sign 1), or gives back what it had taken (sign -1) of its own day and month.
local function hold_counts(u, sign, images, amount, day, month)
  u.flying = u.flying + sign * images
  if u.day == day then u.day_open = u.day_open + sign * images end
  if u.month == month then
    u.month_open = u.month_open + sign * images
    u.spent_open = u.spent_open + sign * amount
  end
end

-- GCRA with a burst of a whole minute's allowance. Everything in µs, so exact. `over` is 0 or less where there is room,
-- and NEVER where no wait makes any; what remains, and when all is back, both if this is taken and if it is not.
local NEVER = math.huge
local function rate(now_us, tat_us, limit, cost)
  local interval = math.ceil(60000000 / limit)
  local window = interval * limit
  local from = math.max(tat_us, now_us)
  local to = from + interval * cost
  local function left(at) return math.floor((window - (at - now_us)) / interval) end
  return { limit = limit, over = cost > limit and NEVER or to - now_us - window, to = to, left = left(to),
    reset = to - now_us, kept_left = left(from), kept_reset = from - now_us }
end

-- The stored time of a limit. One that lies further ahead than any limit reaches is older than a clock that was set
-- back: it counts as none, so that nobody is locked out for longer than this.
local FURTHEST_US = 120000000
local function tat(stored, now_us)
  local at = tonumber(stored or 0)
  return at <= now_us + FURTHEST_US and at or now_us
end

-- Something that the organisation should be told, in the same stream as its events; it has no number of its own.
local function notice(what, org, key, percent, limit, used, period, now_us)
  redis.call('XADD', P .. ':events', '*', 'notice', what, 'org', org, 'key', key, 'percent', percent, 'limit', limit,
    'used', used, 'period', period, 'at_us', now_us)
end

local THRESHOLDS = { 80, 100 }

-- After a charge, or a changed limit: which thresholds of its quotas are reached now, each once in a period.
local function tell_thresholds(u, org, key, now_us)
  local v = redis.call('HMGET', u.name, 'images_per_day', 'images_per_month', 'mxn_per_month', 'told_images_per_day',
    'told_images_per_month', 'told_mxn_per_month')
  local quotas = {
    { what = 'images_per_day', limit = v[1], told = v[4], used = u.day_done, period = u.day },
    { what = 'images_per_month', limit = v[2], told = v[5], used = u.month_done, period = u.month },
    { what = 'mxn_per_month', limit = v[3], told = v[6], used = u.spent_done, period = u.month },
  }
  for _, q in ipairs(quotas) do
    if q.limit then
      local limit = tonumber(q.limit)
      local period, told = string.match(q.told or '', '^(%S+) (%d+)$')
      told = period == q.period and tonumber(told) or 0
      for _, percent in ipairs(THRESHOLDS) do
        if percent > told and q.used >= limit * percent / 100 then
          notice(q.what, org, key, percent, limit, q.used, q.period, now_us)
          redis.call('HSET', u.name, 'told_' .. q.what, q.period .. ' ' .. percent)
        end
      end
    end
  end
end

-- The balance (credits less charges) fell under the mark. It rises by credits alone, so once a credit is enough to tell
-- one crossing from the next.
local function tell_balance(org, before, after, now_us)
  local v = redis.call('HMGET', P .. ':wallet:' .. org, 'low', 'credit_number')
  local low = tonumber(v[1] or 0)
  if before >= low and after < low then notice('balance', org, '', 0, low, after, v[2], now_us) end
end

-- The one way in which an order ends: money to its place, the hold gone, the event in the stream, the end remembered,
-- and what its owner may fetch again. Returns how far below zero its charge left the balance, credits less charges: 0
-- where it did not.
local function close(org, request, ending, reason, quantity, amount, usd_measured, images, result, now_us, remember_s)
  local hold = redis.call('HMGET', P .. ':hold:' .. request, 'amount', 'admitted_us', 'opened', 'images', 'key', 'day',
    'month', 'tried')
  local held, asked, key, day, month = tonumber(hold[1]), tonumber(hold[4]), hold[5], hold[6], hold[7]
  local fingerprint = string.match(hold[8] or '', '^%S+ (.+)$')
  local wallet = P .. ':wallet:' .. org
  redis.call('ZREM', P .. ':open:' .. org, request)
  redis.call('DEL', P .. ':hold:' .. request)
  redis.call('HDEL', P .. ':jobs', request)
  if key and fingerprint and ending ~= 'charge' then give_to_nobody(kind_of(key, fingerprint), request) end
  redis.call('HINCRBY', wallet, 'held', -held)
  local charged = redis.call('HINCRBY', wallet, 'charged', amount)
  redis.call('HINCRBY', wallet, 'available', held - amount)
  local number = redis.call('HINCRBY', wallet, 'number', 1)
  redis.call('SET', P .. ':closed:' .. request, ending .. ':' .. string.format('%.0f', amount) .. ':' .. reason .. ':' .. org,
    'EX', remember_s)
  if result ~= '' then
    redis.call('HSET', P .. ':result:' .. request, 'org', org, 'key', key or '', 'images', images, 'result', result)
    redis.call('EXPIRE', P .. ':result:' .. request, remember_s)
  elseif key then
    redis.call('SET', P .. ':placed:' .. request, key, 'EX', remember_s)
  end
  for _, name in ipairs(key and { wallet, access_of(key) } or {}) do
    local u = usage(name, day, month)
    hold_counts(u, -1, asked, held, day, month)
    if u.day == day then u.day_done = u.day_done + quantity end
    if u.month == month then
      u.month_done = u.month_done + quantity
      u.spent_done = u.spent_done + amount
    end
    keep_usage(u)
    if quantity > 0 then tell_thresholds(u, org, name == wallet and '' or key, now_us) end
  end
  local below = 0
  if amount > 0 then
    local after = tonumber(redis.call('HGET', wallet, 'credits')) - charged
    tell_balance(org, after + amount, after, now_us)
    below = math.max(0, -after)
  end
  -- After what it led to being told: where the ledger has the event, it has the notices, too.
  redis.call('XADD', P .. ':events', '*', 'number', number, 'end', ending, 'reason', reason, 'quantity', quantity,
    'amount', amount, 'admitted_us', hold[2], 'ended_us', now_us, 'opened', hold[3], 'images', images,
    'usd_measured', usd_measured, 'result', result)
  return below
end
