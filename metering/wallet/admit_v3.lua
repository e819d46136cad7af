-- Opens a hold, or says why not. Reads all, decides, writes all; a denial takes nothing.
--
-- An order that is placed again is not placed twice: one with an idempotency key, one that an SDK repeats by itself
-- (`tries` counts from 1), and one that follows another whose clients have all left without their answer, is told which
-- earlier order it is, and how that stands. That counts as a request, and no more.
-- What an SDK tries again because it was refused is none of those: a denial that has it come again says so, and no more.
-- KEYS  1 mark  2 wallet  3 the key's access  4 open holds  5 hold  6 events  7 busy  8 closed
--       9 once: the idempotency key's record  10 recent: orders that may be given again, by admission
--       11 retried: the last retry of an SDK that ran as new
-- ARGV  1 now_us (0: TIME)  2 latest_us  3 period start_us  4 period end_us  5 org  6 key id  7 request
--       8 images  9 amount  10 life_us  11 most open holds  12 stream backlog  13 remember_s  14 opened (JSON)
--       15 fingerprint of the order  16 1 with an idempotency key, else 0  17 once_s: how long the key counts
--       18 tries of the SDK before this one, -1 where none counts them
--       19 recent_us: how long an SDK's retry finds its order  20 owner  21 model  22 day  23 month
-- reply code, now_us, available, requests: limit, remaining, reset_us, images: limit, remaining, reset_us, retry_us (of a
--       quota the rates' part, at least 1; 0: no wait helps), earlier order, its end (`open`, or `ending:amount:reason`), its owner,
--       whose limit refused it (`org`, `key` or empty), that limit, how much of it is used
local ADMITTED, AWAY, LATE, OTHER_PERIOD, REVOKED, BALANCE = 1, 2, 3, 4, 5, 6
local BACKLOG, HOLDS, REQUESTS, IMAGES, EARLIER, REUSED = 7, 8, 9, 10, 11, 12
local EXPIRED, MODEL, BUDGET, DAY, MONTH, FLIGHT, SUSPENDED = 13, 14, 15, 16, 17, 18, 19

arguments(23)
local now, latest = clock(whole(1, 0)), whole(2, 0)
local period_start, period_end = whole(3, 0), whole(4, 0)
local org, key_id, request = ARGV[5], ARGV[6], ARGV[7]
local images, amount, life = whole(8, 1), whole(9, 1), whole(10, 1)
local max_holds, backlog, remember = whole(11, 1), whole(12, 1), whole(13, 1)
local opened, fingerprint, keyed, once_s = ARGV[14], ARGV[15], whole(16, 0), whole(17, 1)
local tries, recent_us, owner = whole(18, -1), whole(19, 1), ARGV[20]
local model, day, month = ARGV[21], ARGV[22], ARGV[23]

local function reply(code) return { code, now, 0, 0, 0, 0, 0, 0, 0, 0, '', '', '', '', 0, 0 } end

-- The order under the same idempotency key; a key whose order ran out, or was lost, is free.
local function under_key()
  local record = redis.call('GET', KEYS[9])
  if not record then return end
  local earlier, other = string.match(record, '^(%S+) (%S+)$')
  local stands = standing(org, earlier, now)
  if not stands or string.match(stands, '^expiry:') then return end
  return earlier, stands, other ~= fingerprint
end

local kind = kind_of(key_id, fingerprint)

-- The first whose clients have all left without their answer. An SDK's retry is given one that none of its count was;
-- any other order, which does not say that it repeats one, only what certainly nobody was given.
local function abandoned()
  local left = redis.call('ZRANGEBYSCORE', gone_of(kind), now - recent_us, '+inf', 'LIMIT', 0, MAX_PASSED_OVER)
  local run = left[1] and tries <= 0 and server_run()
  for _, earlier in ipairs(left) do
    local stands = givable(org, earlier, now)
    local gone, claimed = unpack(redis.call('HMGET', claims_of(earlier), 'gone', tries))
    if not stands then give_to_nobody(kind, earlier)
    elseif tries > 0 and not claimed then return earlier, stands
    elseif tries <= 0 and string.match(gone or '', '^%w+') == run then return earlier, stands end
  end
end

-- The first of late that no retry of this count was given. What is claimed is a part of what is recent, in the same
-- order: up to the first that is missing both are equal, place by place, so that it is found by halving.
local function unclaimed()
  local recent, claimed = KEYS[10], claimed_of(kind, tries)
  for _ = 1, MAX_PASSED_OVER do
    local from = redis.call('ZCOUNT', recent, '-inf', string.format('(%.0f', now - recent_us))
    local oldest = redis.call('ZRANGE', recent, from, from, 'WITHSCORES')[2]
    if not oldest then return end
    local older = redis.call('ZCOUNT', claimed, '-inf', '(' .. oldest)
    local low, high = 0, redis.call('ZCARD', claimed) - older
    while low < high do
      local middle = math.floor((low + high) / 2)
      local one = redis.call('ZRANGE', recent, from + middle, from + middle)[1]
      local same = one == redis.call('ZRANGE', claimed, older + middle, older + middle)[1]
      if same then low = middle + 1 else high = middle end
    end
    local earlier, admitted = unpack(redis.call('ZRANGE', recent, from + low, from + low, 'WITHSCORES'))
    if not earlier then return end
    local stands = givable(org, earlier, now)
    if not stands then
      give_to_nobody(kind, earlier)
    elseif redis.call('HEXISTS', claims_of(earlier), tries) == 1 then
      add_for(recent_us, now, claimed, admitted, earlier)  -- by a gateway of the version before
    else
      return earlier, stands
    end
  end
end

-- From now on `request` asks for it, too.
local function claim(earlier)
  local claims, asking = claims_of(earlier), asking_of(earlier)
  local gone = redis.call('HGET', claims, 'gone')
  if not gone and redis.call('EXISTS', asking) == 0 then redis.call('SADD', asking, earlier) end
  redis.call('SADD', asking, request)
  redis.call('PEXPIRE', asking, math.ceil(recent_us / 1000))
  redis.call('HDEL', claims, 'gone')
  redis.call('ZREM', gone_of(kind), earlier)
  if tries <= 0 then
    -- It is this order's from now on. A retry by the SDK of the one that left comes all the same, and repeats nothing.
    give_to_nobody(kind, earlier)
    redis.call('HSET', claims, 0, now)
    local left = string.match(gone, '^%w+ (%d+)')
    if left then await_try(key_id, left + 1, fingerprint, now, recent_us) end
  else
    redis.call('HSET', claims, tries, now)
    local admitted = redis.call('ZSCORE', KEYS[10], earlier)
    if admitted then add_for(recent_us, now, claimed_of(kind, tries), admitted, earlier) end
  end
  redis.call('PEXPIRE', claims, math.ceil(recent_us / 1000))
end

-- An organisation's limits, or those of one of its keys, as far as they are set; what counts against them; and the
-- values of `...`, further fields of its hash.
local function scope(which, name, today, this_month, ...)
  local u, v = usage(name, today, this_month, 'requests_per_minute', 'images_per_minute', 'tat_requests', 'tat_images',
    'in_flight', 'images_per_day', 'images_per_month', 'mxn_per_month', ...)
  return { which = which, use = u,
    requests = v[1] and rate(now, tat(v[3], now), tonumber(v[1]), 1),
    images = v[2] and rate(now, tat(v[4], now), tonumber(v[2]), images),
    in_flight = tonumber(v[5]), day = tonumber(v[6]), month = tonumber(v[7]), budget = tonumber(v[8]) }, { unpack(v, 9) }
end

local of_org, wallet = scope('org', KEYS[2], day, month, 'available', 'held', 'suspended')
-- Both count in the same periods: where a clock was set back, in those of the organisation.
local of_key, key = scope('key', KEYS[3], of_org.use.day, of_org.use.month, 'state', 'expires_us', 'models')
local scopes = { of_org, of_key }
if redis.call('EXISTS', KEYS[1]) == 0 or not wallet[1] or not key[1] then return reply(AWAY) end
if now > latest then return reply(LATE) end
if now < period_start or now >= period_end then return reply(OTHER_PERIOD) end
if redis.call('EXISTS', KEYS[5], KEYS[8]) > 0 then error('request id is in use') end

local expired, freed = expired_holds(org, now)
local available, held = tonumber(wallet[1]) + freed, tonumber(wallet[2]) - freed
for _, hold in ipairs(expired) do
  hold_counts(of_org.use, -1, hold.images, hold.amount, hold.day, hold.month)
  if hold.key == key_id then hold_counts(of_key.use, -1, hold.images, hold.amount, hold.day, hold.month) end
end

-- Of two rates the one that refuses, by the longer wait; or else the one that is nearer to its end.
local function tighter(name)
  local a, b = scopes[1][name], scopes[2][name]
  if not a or not b then return a or b, a and 'org' or 'key' end
  local second = b.left < a.left
  if a.over > 0 or b.over > 0 then second = b.over > a.over end
  return second and b or a, second and 'key' or 'org'
end

-- The first of both that has no room for `cost` beside what is used; before it one that never has.
local function refuses(limit, used, cost)
  local first
  for _, s in ipairs(scopes) do
    if s[limit] and used(s.use) + cost > s[limit] and (not first or cost > s[limit]) then first = s end
  end
  if first then return first.which, first[limit], used(first.use) end
end

-- Limits of rates are never absent, unless no gateway has told yet what the plans are.
if not of_org.requests or not of_org.images then return reply(AWAY) end

local requests, requests_of = tighter('requests')
local pictures, pictures_of = tighter('images')
-- For what is refused in any case nothing is looked for. An SDK's retry that is awaited repeats only what was left.
local barred = key[1] ~= 'active' and REVOKED or key[2] and tonumber(key[2]) <= now and EXPIRED
  or not allows(key[3], model) and MODEL
local earlier, stands, differs
local awaited_tries, since_us, unlooked = 0, 0, false
if not barred then
  if keyed == 1 then earlier, stands, differs = under_key()
  else
    if tries > 0 then awaited_tries, since_us = awaited(key_id, tries, fingerprint, now, recent_us) end
    unlooked = tries > 0 and awaited_tries == 0 and requests.over > 0
    if not unlooked then earlier, stands = abandoned() end
    if not unlooked and not earlier and tries > 0 and awaited_tries == 0 then earlier, stands = unclaimed() end
  end
end

-- How long the rates have it wait, whatever else refuses; for ever where the order alone is above any limit.
local wait = math.max(requests.over, pictures.over)
for _, s in ipairs(scopes) do
  local most = math.min(s.in_flight or NEVER, s.day or NEVER, s.month or NEVER)
  if images > most or amount > (s.budget or NEVER) then wait = NEVER end
end

local code, retry, whose, limit, used = ADMITTED, 0, nil, 0, 0

local function by_rate(verdict, limiting, scope_of, until_room)
  code, whose, limit = verdict, scope_of, limiting.limit
  if until_room < NEVER then retry = until_room end
end

local function by_quota(verdict, name, used_of, cost)
  whose, limit, used = refuses(name, used_of, cost)
  if whose then code, retry = verdict, wait < NEVER and math.max(wait, 1) or 0 end
  return whose
end

if barred then code = barred
elseif earlier and differs then code = REUSED
elseif earlier or unlooked then
  code = EARLIER
  if requests.over > 0 then by_rate(REQUESTS, requests, requests_of, requests.over) end
elseif wallet[3] then code = SUSPENDED  -- what was placed before is paid, and given again all the same
elseif amount > available then code = BALANCE
elseif by_quota(BUDGET, 'budget', function(u) return u.spent_done + u.spent_open end, amount) then
elseif redis.call('XLEN', KEYS[6]) >= backlog then code = BACKLOG
-- What refuses for longest goes first, so that the wait that is told is enough.
elseif by_quota(MONTH, 'month', function(u) return u.month_done + u.month_open end, images) then
elseif by_quota(DAY, 'day', function(u) return u.day_done + u.day_open end, images) then
elseif redis.call('ZCARD', KEYS[4]) - #expired >= max_holds then code = HOLDS
elseif requests.over > 0 and pictures.over < NEVER then by_rate(REQUESTS, requests, requests_of, wait)
elseif pictures.over > 0 then by_rate(IMAGES, pictures, pictures_of, wait)
else by_quota(FLIGHT, 'in_flight', function(u) return u.flying end, images) end

-- The fields of a scope in which the time of a rate moves on.
local function moved(s, names)
  local fields = {}
  for name, field in pairs(names) do
    if s[name] then
      fields[#fields + 1], fields[#fields + 2] = field, s[name].to
    end
  end
  return fields
end

if code == ADMITTED then
  for _, old in ipairs(expired) do
    close(org, old.request, 'expiry', 'hold_expired', 0, 0, '', '[]', '', now, remember)
  end
  available = available - amount
  local expires = now + life
  local rates = { requests = 'tat_requests', images = 'tat_images' }
  for _, s in ipairs(scopes) do hold_counts(s.use, 1, images, amount, s.use.day, s.use.month) end
  keep_usage(of_org.use, 'available', available, 'held', held + amount, unpack(moved(of_org, rates)))
  keep_usage(of_key.use, 'used_us', now, unpack(moved(of_key, rates)))
  redis.call('HSET', KEYS[5], 'amount', amount, 'images', images, 'admitted_us', now, 'opened', opened, 'owner', owner,
    'key', key_id, 'day', of_org.use.day, 'month', of_org.use.month,
    keyed == 1 and 'once' or 'tried', keyed == 1 and KEYS[9] or tries .. ' ' .. fingerprint)
  if keyed == 1 then
    redis.call('SET', KEYS[9], request .. ' ' .. fingerprint, 'EX', once_s)
  else
    add_for(recent_us, now, KEYS[10], now, request)
    if tries > 0 and awaited_tries == 0 then redis.call('SET', KEYS[11], request, 'EX', once_s) end
    -- A retry that runs as new can be repeated by a later try only: one of the same count belongs to another order.
    for count = 1, tries do
      redis.call('HSET', claims_of(request), count, now)
      redis.call('PEXPIRE', claims_of(request), math.ceil(recent_us / 1000))
      add_for(recent_us, now, claimed_of(kind, count), now, request)
    end
  end
  redis.call('ZADD', KEYS[4], expires, request)
  -- Not moved by one that ends later: where very many organisations order, that would cost more than any other write.
  redis.call('ZADD', KEYS[7], 'LT', expires, org)
elseif code == EARLIER then
  local rates = { requests = 'tat_requests' }
  redis.call('HSET', KEYS[2], unpack(moved(of_org, rates)))
  redis.call('HSET', KEYS[3], 'used_us', now, unpack(moved(of_key, rates)))
  if keyed == 0 then claim(earlier) end
end

if keyed == 0 and not earlier and not unlooked then
  if awaited_tries > 0 then set_awaited(key_id, tries, fingerprint, awaited_tries - 1, since_us) end
  local by_a_rate = (code == REQUESTS or code == IMAGES) and retry > 0
  local by_room = code == HOLDS or code == BACKLOG or code == FLIGHT and images <= limit
  if tries >= 0 and (by_a_rate or by_room) then await_try(key_id, tries + 1, fingerprint, now, recent_us) end
end

-- What was not taken is left as before.
local request_taken, image_taken = code == ADMITTED or code == EARLIER, code == ADMITTED
local holder = earlier and redis.call('HGET', P .. ':hold:' .. earlier, 'owner') or ''
return { code, now, available,
  requests.limit, request_taken and requests.left or requests.kept_left, request_taken and requests.reset or requests.kept_reset,
  pictures.limit, image_taken and pictures.left or pictures.kept_left, image_taken and pictures.reset or pictures.kept_reset,
  retry, earlier or '', stands or '', holder, whose or '', limit or 0, used or 0 }
