-- Opens a hold, or says why not. It reads everything, decides, then writes everything; a denial takes nothing.
--
-- A duplicate is not placed twice. An order is a duplicate if it repeats an idempotency key, if an SDK retries it by
-- itself (`tries` counts from 1), or if it follows an equal order whose clients have all left without their answer. The
-- reply names the earlier order and its status. A duplicate counts as a request, and no more.
-- An SDK's retry of a refused order is no duplicate: a denial that asks for a retry notes that, and nothing more.
-- KEYS  mark wallet access open hold events busy closed once recent retried
-- ARGV  now_us>=0 latest_us>=0 from_us>=0 quoted_until_us>=0 org key_id request images>=1 amount>=1 life_us>=1
-- ARGV  max_holds>=1 backlog>=1 remember_s>=1 opened fingerprint keyed>=0 once_s>=1 tries>=-1 recent_us>=1 owner
-- ARGV  trace model day month long deadline_us>=0 slow>=0 max_unpaid>=0
-- REPLY code now_us available requests_limit requests_left requests_reset_us images_limit images_left images_reset_us
-- REPLY retry_us earlier:text ending:text owner:text whose:text limit used
--
-- from_us, quoted_until_us: an order that is admitted at another moment must be quoted again, because it has another day, rate
--           or price
-- access    what the API key may do           retried   the last retry of an SDK that ran as new
-- once      the idempotency key's record      recent    orders that may be given again, by admission
-- opened    JSON, for the event               keyed     1 with an idempotency key, else 0; it counts for once_s
-- tries     of the SDK before this one, -1 if no SDK counts them
-- recent_us how long an SDK's retry finds its order
-- trace     W3C's `traceparent` of its request, or empty; its event has it
-- long      the order itself, as JSON, if it is a long one (rule 35); else empty. It is made until `deadline_us` after
--           its admission
-- slow      1 if the order takes longer than its client may wait: then it can only be a duplicate
-- max_unpaid what the organisation's orders without a known end may have cost in an hour, beside a tenth of what it has
--           spent in the month
-- retry_us  if a quota refused it, the wait for the rates, at least 1; 0: no wait helps
-- ending    of the earlier order: `open`, or `ending:amount:reason:org`; owner: the earlier order's
-- whose     limit refused it: `org`, `key` or empty; limit: its name; used: how much of it is used
local now = clock(now_us)

local kind = kind_of(key_id, fingerprint)

-- Reads the limits of an organisation, or of one of its keys, that are set; what counts against them; and the values of
-- four further fields of its hash.
local function scope(which, name, today, this_month, a, b, c, d)
  local u, v = usage(name, today, this_month, a, b, c, d, 'requests_per_minute', 'images_per_minute', 'tat_requests',
    'tat_images', 'in_flight', 'images_per_day', 'images_per_month', 'mxn_per_month')
  return { which = which, use = u,
    requests = v[14] and rate(now, tat(v[16], now), v[14] + 0, 1),
    images = v[15] and rate(now, tat(v[17], now), v[15] + 0, images),
    in_flight = v[18] and v[18] + 0, day = v[19] and v[19] + 0, month = v[20] and v[20] + 0,
    budget = v[21] and v[21] + 0 }, v[10], v[11], v[12], v[13]
end

local of_org, available, held, suspended, unpaid = scope('org', wallet_key, day, month, 'available', 'held', 'suspended',
  'unpaid')
-- Both count in the same periods: if a clock was set back, in those of the organisation.
local of_key, state, ends_us, models = scope('key', access_key, of_org.use.day, of_org.use.month, 'state', 'expires_us',
  'models', 'used_us')
if redis.call('EXISTS', mark_key) == 0 or not available or not state then
  return answer({ code = AWAY, now_us = now })
end
if now > latest_us then return answer({ code = LATE, now_us = now }) end
if now < from_us or now >= quoted_until_us then return answer({ code = QUOTE_OVER, now_us = now }) end
-- One question for four keys that hardly any order has: was an equal order placed of late, or left without its answer?
local first_of_kind = redis.call('EXISTS', hold_key, closed_key, recent_key, gone_of(kind)) == 0
if not first_of_kind and redis.call('EXISTS', hold_key, closed_key) > 0 then error('request id is in use') end

local expired, freed = expired_holds(org, now)
available, held = available + freed, held - freed
for _, hold in ipairs(expired) do
  hold_counts(of_org.use, -1, hold.images, hold.amount, hold.day, hold.month)
  if hold.key == key_id then hold_counts(of_key.use, -1, hold.images, hold.amount, hold.day, hold.month) end
end

-- Chooses between two rates: the one that refuses, with the longer wait; if none refuses, the one with less left.
local function tighter(name)
  local a, b = of_org[name], of_key[name]
  if not a or not b then return a or b, a and 'org' or 'key' end
  local second = b.left < a.left
  if a.over > 0 or b.over > 0 then second = b.over > a.over end
  return second and b or a, second and 'key' or 'org'
end

-- Limits of rates are never absent, unless no gateway has registered the plans yet.
if not of_org.requests or not of_org.images then return answer({ code = AWAY, now_us = now }) end

local requests, requests_of = tighter('requests')
local pictures, pictures_of = tighter('images')
-- If the order is refused in any case, no search is made. An SDK's awaited retry repeats only what its clients left.
local barred = state ~= 'active' and REVOKED or ends_us and ends_us + 0 <= now and EXPIRED
  or not allows(models, model) and MODEL
local earlier, stands, differs
local awaited_tries, since_us, unlooked = 0, 0, false
if not barred and (keyed == 1 or tries > 0 or not first_of_kind) then
  -- WITH again

  -- Finds the order under the same idempotency key; a key whose order expired, or was lost, is free.
  local function under_key()
    local record = redis.call('GET', once_key)
    if not record then return end
    local earlier, other = string.match(record, '^(%S+) (%S+)$')
    local stands = standing(org, earlier, now)
    if not stands or string.match(stands, '^expiry:') then return end
    return earlier, stands, other ~= fingerprint
  end

  -- Finds the first order whose clients have all left without their answer. An SDK's retry receives one that no retry
  -- of its count received. Any other order does not say that it is a retry, so it receives only what certainly nobody
  -- received.
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

  -- Finds the first recent order that no retry of this count received. The claimed orders are a subset of the recent
  -- ones, in the same sequence: up to the first missing one both lists are equal, so a binary search finds it.
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
        add_for(recent_us, now, claimed, admitted, earlier)  -- claimed by a gateway of the previous version
      else
        return earlier, stands
      end
    end
  end

  if keyed == 1 then earlier, stands, differs = under_key()
  else
    if tries > 0 then awaited_tries, since_us = awaited(key_id, tries, fingerprint, now, recent_us) end
    unlooked = tries > 0 and awaited_tries == 0 and requests.over > 0
    if not unlooked then earlier, stands = abandoned() end
    if not unlooked and not earlier and tries > 0 and awaited_tries == 0 then earlier, stands = unclaimed() end
  end
end

-- How long it must wait for the rates, whatever else refuses it; for ever if the order alone is above any limit.
local function wait()
  for _, s in ipairs({ of_org, of_key }) do
    local most = math.min(s.in_flight or NEVER, s.day or NEVER, s.month or NEVER)
    if images > most or amount > (s.budget or NEVER) then return NEVER end
  end
  return math.max(requests.over, pictures.over)
end

local code, retry, whose, limit, used = ADMITTED, 0, nil, 0, 0

local function by_rate(verdict, limiting, scope_of, until_room)
  code, whose, limit = verdict, scope_of, limiting.limit
  if until_room < NEVER then retry = until_room end
end

-- Refuses by the first of both limits that has no room for `cost` beside what is used; one that can never have room
-- goes first.
local function by_quota(verdict, name, used_by_org, used_by_key, cost)
  local of_o, of_k = of_org[name], of_key[name]
  if of_o and used_by_org + cost > of_o then whose, limit, used = 'org', of_o, used_by_org end
  if of_k and used_by_key + cost > of_k and (not whose or cost > of_k) then
    whose, limit, used = 'key', of_k, used_by_key
  end
  if whose then
    local until_room = wait()
    code, retry = verdict, until_room < NEVER and math.max(until_room, 1) or 0
  end
  return whose
end

-- What is used, by the organisation and by its key.
local o, k = of_org.use, of_key.use

if barred then code = barred
elseif earlier and differs then code = REUSED
elseif earlier or unlooked then
  code = DUPLICATE
  if requests.over > 0 then by_rate(REQUESTS, requests, requests_of, requests.over) end
elseif slow == 1 then code = SLOW
elseif suspended then code = SUSPENDED  -- a duplicate is paid, so it is given again even now
elseif amount > available then code = BALANCE
elseif by_quota(BUDGET, 'budget', o.spent_done + o.spent_open, k.spent_done + k.spent_open, amount) then
elseif unpaid_in_hour(unpaid, now) >= max_unpaid + o.spent_done / 10 then
  code, retry = UNPAID, 3600000000 - now % 3600000000
elseif redis.call('XLEN', events_key) >= backlog then code = BACKLOG
-- The refusal that lasts longest goes first, so that the wait in the reply is long enough.
elseif by_quota(MONTH, 'month', o.month_done + o.month_open, k.month_done + k.month_open, images) then
elseif by_quota(DAY, 'day', o.day_done + o.day_open, k.day_done + k.day_open, images) then
-- Each hold is of an image at least, so while fewer are in flight nobody has to count the holds.
elseif o.flying >= max_holds and redis.call('ZCARD', open_key) - #expired >= max_holds then code = HOLDS
elseif requests.over > 0 and pictures.over < NEVER then by_rate(REQUESTS, requests, requests_of, wait())
elseif pictures.over > 0 then by_rate(IMAGES, pictures, pictures_of, wait())
else by_quota(IN_FLIGHT, 'in_flight', o.flying, k.flying, images) end

-- The fields of a scope that hold the time of a rate, each with its new value.
local function moved(s, images_too)
  if not s.requests then
    if images_too and s.images then return 'tat_images', s.images.to end
  elseif images_too and s.images then return 'tat_requests', s.requests.to, 'tat_images', s.images.to
  else return 'tat_requests', s.requests.to end
end

local request_taken, image_taken = false, false
-- WRITES
request_taken, image_taken = code == ADMITTED or code == DUPLICATE, code == ADMITTED
if code == ADMITTED then
  local run
  if long ~= '' then
    -- WITH again
    run = server_reign()
  end
  if expired[1] then
    -- WITH closing
    for _, old in ipairs(expired) do
      close(order_of(org, old.request), 'expiry', 'hold_expired', 0, 0, '', '[]', '', now, remember_s)
    end
  end
  available = available - amount
  local expires = now + life_us
  hold_counts(o, 1, images, amount, o.day, o.month)
  hold_counts(k, 1, images, amount, k.day, k.month)
  keep_usage(o, false, 'available', available, 'held', held + amount, moved(of_org, true))
  keep_usage(k, false, 'used_us', now, moved(of_key, true))
  redis.call('HSET', hold_key, 'amount', amount, 'images', images, 'admitted_us', now, 'opened', opened, 'owner', owner,
    'key', key_id, 'day', o.day, 'month', o.month,
    keyed == 1 and 'once' or 'tried', keyed == 1 and once_key or tries .. ' ' .. fingerprint,
    unpack(trace ~= '' and { 'trace', trace } or {}))
  if long ~= '' then
    redis.call('HSET', hold_key, 'long', long, 'until_us', now + deadline_us, 'run', run)
    redis.call('HSET', P .. ':long', request, org .. ' ' .. owner)
  end
  if keyed == 1 then
    redis.call('SET', once_key, request .. ' ' .. fingerprint, 'EX', once_s)
  else
    add_for(recent_us, now, recent_key, now, request, first_of_kind)
    if tries > 0 and awaited_tries == 0 then redis.call('SET', retried_key, request, 'EX', once_s) end
    -- Only a later try can repeat a retry that runs as new: one of the same count belongs to another order.
    for count = 1, tries do
      redis.call('HSET', claims_of(request), count, now)
      redis.call('PEXPIRE', claims_of(request), math.ceil(recent_us / 1000))
      add_for(recent_us, now, claimed_of(kind, count), now, request)
    end
  end
  redis.call('ZADD', open_key, expires, request)
  -- An order that ends later does not move it: with very many organisations, that would cost more than any other write.
  redis.call('ZADD', busy_key, 'LT', expires, org)
elseif code == DUPLICATE then
  redis.call('HSET', wallet_key, moved(of_org))
  redis.call('HSET', access_key, 'used_us', now, moved(of_key))
  if keyed == 0 then
    -- WITH again

    -- Notes that from now on `request` waits for the earlier order, too.
    local function claim(earlier)
      local claims, asking = claims_of(earlier), asking_of(earlier)
      local gone = redis.call('HGET', claims, 'gone')
      if not gone and redis.call('EXISTS', asking) == 0 then redis.call('SADD', asking, earlier) end
      redis.call('SADD', asking, request)
      redis.call('PEXPIRE', asking, math.ceil(recent_us / 1000))
      redis.call('HDEL', claims, 'gone')
      redis.call('ZREM', gone_of(kind), earlier)
      if tries <= 0 then
        -- It belongs to this order from now on. The SDK of the client that left may still retry: that is no duplicate.
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

    claim(earlier)
  end
end

if keyed == 0 and not earlier and not unlooked then
  local by_a_rate = (code == REQUESTS or code == IMAGES) and retry > 0
  local by_room = code == HOLDS or code == BACKLOG or code == IN_FLIGHT and images <= limit
  local comes_again = tries >= 0 and (by_a_rate or by_room)
  if awaited_tries > 0 or comes_again then
    -- WITH again
    if awaited_tries > 0 then set_awaited(key_id, tries, fingerprint, awaited_tries - 1, since_us) end
    if comes_again then await_try(key_id, tries + 1, fingerprint, now, recent_us) end
  end
end
-- WRITTEN

-- What was not taken stays as it was.
local requests_left, requests_reset = rate_after(requests, now, request_taken)
local images_left, images_reset = rate_after(pictures, now, image_taken)
local holder = earlier and redis.call('HGET', P .. ':hold:' .. earlier, 'owner') or nil
return answer({ code = code, now_us = now, available = available,
  requests_limit = requests.limit, requests_left = requests_left, requests_reset_us = requests_reset,
  images_limit = pictures.limit, images_left = images_left, images_reset_us = images_reset,
  retry_us = retry, earlier = earlier, ending = stands, owner = holder, whose = whose, limit = limit, used = used })
