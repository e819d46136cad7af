-- Opens a hold, or says why not. Reads all, decides, writes all; a denial takes nothing.
--
-- An order that is placed again is not placed twice: one with an idempotency key, one that an SDK repeats by itself
-- (`tries` counts from 1), and one that follows another whose clients have all left without their answer, is told which
-- earlier order it is, and how that stands. That counts as a request, and no more.
-- What an SDK tries again because it was refused is none of those: a denial that has it come again says so, and no more.
-- KEYS  mark wallet access open hold events busy closed once recent retried
-- ARGV  now_us>=0 latest_us>=0 period_start_us>=0 period_end_us>=0 org key_id request images>=1 amount>=1 life_us>=1
-- ARGV  max_holds>=1 backlog>=1 remember_s>=1 opened fingerprint keyed>=0 once_s>=1 tries>=-1 recent_us>=1 owner
-- ARGV  model day month
-- REPLY code now_us available requests_limit requests_left requests_reset_us images_limit images_left images_reset_us
-- REPLY retry_us earlier:text ending:text owner:text whose:text limit used
--
-- access    what the API key may do           retried   the last retry of an SDK that ran as new
-- once      the idempotency key's record      recent    orders that may be given again, by admission
-- opened    JSON, for the event               keyed     1 with an idempotency key, else 0; it counts for once_s
-- tries     of the SDK before this one, -1 where none counts them
-- recent_us how long an SDK's retry finds its order
-- retry_us  of a quota the rates' part, at least 1; 0: no wait helps
-- ending    of the earlier order: `open`, or `ending:amount:reason:org`; owner: the earlier order's
-- whose     limit refused it: `org`, `key` or empty; that limit, and how much of it is used
local now = clock(now_us)

-- The order under the same idempotency key; a key whose order ran out, or was lost, is free.
local function under_key()
  local record = redis.call('GET', once_key)
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
  local recent, claimed = recent_key, claimed_of(kind, tries)
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
    local admitted = redis.call('ZSCORE', recent_key, earlier)
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

local of_org, wallet = scope('org', wallet_key, day, month, 'available', 'held', 'suspended')
-- Both count in the same periods: where a clock was set back, in those of the organisation.
local of_key, key = scope('key', access_key, of_org.use.day, of_org.use.month, 'state', 'expires_us', 'models')
local scopes = { of_org, of_key }
if redis.call('EXISTS', mark_key) == 0 or not wallet[1] or not key[1] then return answer({ code = AWAY, now_us = now }) end
if now > latest_us then return answer({ code = LATE, now_us = now }) end
if now < period_start_us or now >= period_end_us then return answer({ code = OTHER_PERIOD, now_us = now }) end
if redis.call('EXISTS', hold_key, closed_key) > 0 then error('request id is in use') end

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
if not of_org.requests or not of_org.images then return answer({ code = AWAY, now_us = now }) end

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
  code = DUPLICATE
  if requests.over > 0 then by_rate(REQUESTS, requests, requests_of, requests.over) end
elseif wallet[3] then code = SUSPENDED  -- what was placed before is paid, and given again all the same
elseif amount > available then code = BALANCE
elseif by_quota(BUDGET, 'budget', function(u) return u.spent_done + u.spent_open end, amount) then
elseif redis.call('XLEN', events_key) >= backlog then code = BACKLOG
-- What refuses for longest goes first, so that the wait that is told is enough.
elseif by_quota(MONTH, 'month', function(u) return u.month_done + u.month_open end, images) then
elseif by_quota(DAY, 'day', function(u) return u.day_done + u.day_open end, images) then
elseif redis.call('ZCARD', open_key) - #expired >= max_holds then code = HOLDS
elseif requests.over > 0 and pictures.over < NEVER then by_rate(REQUESTS, requests, requests_of, wait)
elseif pictures.over > 0 then by_rate(IMAGES, pictures, pictures_of, wait)
else by_quota(IN_FLIGHT, 'in_flight', function(u) return u.flying end, images) end

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
    close(org, old.request, 'expiry', 'hold_expired', 0, 0, '', '[]', '', now, remember_s)
  end
  available = available - amount
  local expires = now + life_us
  local rates = { requests = 'tat_requests', images = 'tat_images' }
  for _, s in ipairs(scopes) do hold_counts(s.use, 1, images, amount, s.use.day, s.use.month) end
  keep_usage(of_org.use, 'available', available, 'held', held + amount, unpack(moved(of_org, rates)))
  keep_usage(of_key.use, 'used_us', now, unpack(moved(of_key, rates)))
  redis.call('HSET', hold_key, 'amount', amount, 'images', images, 'admitted_us', now, 'opened', opened, 'owner', owner,
    'key', key_id, 'day', of_org.use.day, 'month', of_org.use.month,
    keyed == 1 and 'once' or 'tried', keyed == 1 and once_key or tries .. ' ' .. fingerprint)
  if keyed == 1 then
    redis.call('SET', once_key, request .. ' ' .. fingerprint, 'EX', once_s)
  else
    add_for(recent_us, now, recent_key, now, request)
    if tries > 0 and awaited_tries == 0 then redis.call('SET', retried_key, request, 'EX', once_s) end
    -- A retry that runs as new can be repeated by a later try only: one of the same count belongs to another order.
    for count = 1, tries do
      redis.call('HSET', claims_of(request), count, now)
      redis.call('PEXPIRE', claims_of(request), math.ceil(recent_us / 1000))
      add_for(recent_us, now, claimed_of(kind, count), now, request)
    end
  end
  redis.call('ZADD', open_key, expires, request)
  -- Not moved by one that ends later: where very many organisations order, that would cost more than any other write.
  redis.call('ZADD', busy_key, 'LT', expires, org)
elseif code == DUPLICATE then
  local rates = { requests = 'tat_requests' }
  redis.call('HSET', wallet_key, unpack(moved(of_org, rates)))
  redis.call('HSET', access_key, 'used_us', now, unpack(moved(of_key, rates)))
  if keyed == 0 then claim(earlier) end
end

if keyed == 0 and not earlier and not unlooked then
  if awaited_tries > 0 then set_awaited(key_id, tries, fingerprint, awaited_tries - 1, since_us) end
  local by_a_rate = (code == REQUESTS or code == IMAGES) and retry > 0
  local by_room = code == HOLDS or code == BACKLOG or code == IN_FLIGHT and images <= limit
  if tries >= 0 and (by_a_rate or by_room) then await_try(key_id, tries + 1, fingerprint, now, recent_us) end
end

-- What was not taken is left as before.
local request_taken, image_taken = code == ADMITTED or code == DUPLICATE, code == ADMITTED
local holder = earlier and redis.call('HGET', P .. ':hold:' .. earlier, 'owner') or nil
return answer({ code = code, now_us = now, available = available,
  requests_limit = requests.limit, requests_left = request_taken and requests.left or requests.kept_left,
  requests_reset_us = request_taken and requests.reset or requests.kept_reset,
  images_limit = pictures.limit, images_left = image_taken and pictures.left or pictures.kept_left,
  images_reset_us = image_taken and pictures.reset or pictures.kept_reset,
  retry_us = retry, earlier = earlier, ending = stands, owner = holder, whose = whose, limit = limit, used = used })
