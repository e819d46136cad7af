-- Opens a hold, or says why not. Reads all, decides, writes all; a denial writes nothing.
--
-- An order that is placed again is not placed twice: one with an idempotency key, and one that an SDK repeats by itself
-- (`tries` counts from 1), is told which earlier order it is, and how that stands. That counts as a request, and no more.
-- KEYS  1 mark  2 wallet  3 key states  4 open holds  5 hold  6 events  7 busy  8 closed
--       9 once: the idempotency key's record  10 recent: orders that an SDK may repeat, by admission
--       11 retried: the last retry of an SDK that ran as new
-- ARGV  1 now_us (0: TIME)  2 latest_us  3 period start_us  4 period end_us  5 org  6 key id  7 request
--       8 images  9 amount  10 life_us  11 most open holds  12 stream backlog  13 remember_s  14 opened (JSON)
--       15 fingerprint of the order  16 1 with an idempotency key, else 0  17 once_s: how long the key counts
--       18 tries of the SDK before this one  19 recent_us: how long an SDK's retry finds its order  20 owner
-- reply code, now_us, available, requests: limit, remaining, reset_us, images: limit, remaining, reset_us, retry_us,
--       earlier order, its end (`open`, or `ending:amount:reason`), its owner
local ADMITTED, AWAY, LATE, OTHER_PERIOD, REVOKED, BALANCE = 1, 2, 3, 4, 5, 6
local BACKLOG, HOLDS, REQUESTS, IMAGES, EARLIER, REUSED = 7, 8, 9, 10, 11, 12

-- GCRA with a burst of a whole minute's allowance. Everything in µs, so exact.
-- Returns: over_us (0 or less: there is room), the time that would be stored, what remains and when all is back.
local function rate(now_us, tat_us, limit, cost)
  local interval = math.ceil(60000000 / limit)
  local window = interval * limit
  local from = math.max(tat_us, now_us)
  local to = from + interval * cost
  local over = to - now_us - window
  local kept = over > 0 and from or to
  return over, to, math.floor((window - (kept - now_us)) / interval), kept - now_us
end

-- The stored time of a limit. One that lies further ahead than any limit reaches is older than a clock that was set
-- back: it counts as none, so that nobody is locked out for longer than this.
local FURTHEST_US = 120000000
local function tat(stored, now_us)
  local at = tonumber(stored or 0)
  return at <= now_us + FURTHEST_US and at or now_us
end

arguments(20)
local now, latest = clock(whole(1, 0)), whole(2, 0)
local period_start, period_end = whole(3, 0), whole(4, 0)
local org, key_id, request = ARGV[5], ARGV[6], ARGV[7]
local images, amount, life = whole(8, 1), whole(9, 1), whole(10, 1)
local most_holds, backlog, remember = whole(11, 1), whole(12, 1), whole(13, 1)
local opened, fingerprint, keyed, once_s = ARGV[14], ARGV[15], whole(16, 0), whole(17, 1)
local tries, recent_us, owner = whole(18, 0), whole(19, 1), ARGV[20]

local function reply(code) return { code, now, 0, 0, 0, 0, 0, 0, 0, 0, '', '', '' } end

-- The order under the same idempotency key; a key whose order ran out, or was lost, is free.
local function under_key()
  local record = redis.call('GET', KEYS[9])
  if not record then return end
  local earlier, other = string.match(record, '^(%S+) (%S+)$')
  local stands = standing(org, earlier, now)
  if not stands or string.match(stands, '^expiry:') then return end
  return earlier, stands, other ~= fingerprint
end

local MOST_LOOKED_AT = 500

-- The first of the same orders of late that no retry of this count has claimed yet: those whose client is gone first.
-- What failed is not given again.
local function claimable()
  local kept, stands_kept
  for _, earlier in ipairs(redis.call('ZRANGEBYSCORE', KEYS[10], now - recent_us, '+inf', 'LIMIT', 0, MOST_LOOKED_AT)) do
    local stands = standing(org, earlier, now)
    local claims = redis.call('HMGET', P .. ':claims:' .. earlier, tries, 'gone')
    if stands and (stands == 'open' or string.match(stands, '^charge:')) and not claims[1] then
      if claims[2] then return earlier, stands end
      if not kept then kept, stands_kept = earlier, stands end
    end
  end
  return kept, stands_kept
end

local state = redis.call('HGET', KEYS[3], key_id)
local w = redis.call('HMGET', KEYS[2], 'available', 'requests_per_minute', 'images_per_minute', 'tat_requests', 'tat_images')
if redis.call('EXISTS', KEYS[1]) == 0 or not w[1] or not state then return reply(AWAY) end
if now > latest then return reply(LATE) end
if now < period_start or now >= period_end then return reply(OTHER_PERIOD) end
if redis.call('EXISTS', KEYS[5], KEYS[8]) > 0 then error('request id is in use') end

local expired, freed = expired_holds(org, now)
local available = tonumber(w[1]) + freed
local request_limit, image_limit = tonumber(w[2]), tonumber(w[3])
local requests_tat, images_tat = tat(w[4], now), tat(w[5], now)
local request_over, request_tat, request_left, request_reset = rate(now, requests_tat, request_limit, 1)
local image_over, image_tat, image_left, image_reset = rate(now, images_tat, image_limit, images)

local earlier, stands, differs
if keyed == 1 then earlier, stands, differs = under_key()
elseif tries > 0 then earlier, stands = claimable() end

local code, retry = ADMITTED, 0
if state ~= 'active' then code = REVOKED
elseif earlier and differs then code = REUSED
elseif earlier then
  code = EARLIER
  if request_over > 0 then code, retry = REQUESTS, request_over end
elseif amount > available then code = BALANCE
elseif redis.call('XLEN', KEYS[6]) >= backlog then code = BACKLOG
elseif redis.call('ZCARD', KEYS[4]) - #expired >= most_holds then code = HOLDS
elseif request_over > 0 then code, retry = REQUESTS, request_over
elseif image_over > 0 then code, retry = IMAGES, images <= image_limit and image_over or 0
end

if code == ADMITTED then
  for _, old in ipairs(expired) do
    close(org, old, 'expiry', 'hold_expired', 0, 0, '', '[]', '', now, remember)
  end
  available = available - amount
  local expires = now + life
  redis.call('HINCRBY', KEYS[2], 'available', -amount)
  redis.call('HINCRBY', KEYS[2], 'held', amount)
  redis.call('HSET', KEYS[2], 'tat_requests', request_tat, 'tat_images', image_tat)
  redis.call('HSET', KEYS[5], 'amount', amount, 'images', images, 'admitted_us', now, 'opened', opened, 'owner', owner)
  if keyed == 1 then
    redis.call('HSET', KEYS[5], 'once', KEYS[9])
    redis.call('SET', KEYS[9], request .. ' ' .. fingerprint, 'EX', once_s)
  else
    redis.call('ZREMRANGEBYSCORE', KEYS[10], '-inf', now - recent_us)
    redis.call('ZADD', KEYS[10], now, request)
    redis.call('PEXPIRE', KEYS[10], math.ceil(recent_us / 1000))
    if tries > 0 then redis.call('SET', KEYS[11], request, 'EX', once_s) end
    -- A retry that runs as new can be repeated by a later try only: one of the same count belongs to another order.
    for count = 1, tries do
      redis.call('HSET', P .. ':claims:' .. request, count, now)
      redis.call('PEXPIRE', P .. ':claims:' .. request, math.ceil(recent_us / 1000))
    end
  end
  redis.call('ZADD', KEYS[4], expires, request)
  redis.call('ZADD', KEYS[7], 'GT', expires, org)
else
  if code == EARLIER then
    redis.call('HSET', KEYS[2], 'tat_requests', request_tat)
    if keyed == 0 then
      redis.call('HSET', P .. ':claims:' .. earlier, tries, now)
      redis.call('PEXPIRE', P .. ':claims:' .. earlier, math.ceil(recent_us / 1000))
    end
  end
  -- Not taken, so what is left is as before. A denial by the other limit must not show this one as used.
  if request_over <= 0 and code ~= EARLIER then request_left = request_left + 1; request_reset = math.max(requests_tat - now, 0) end
  if image_over <= 0 then image_left = image_left + images; image_reset = math.max(images_tat - now, 0) end
end
local holder = earlier and redis.call('HGET', P .. ':hold:' .. earlier, 'owner') or ''
return { code, now, available, request_limit, request_left, request_reset, image_limit, image_left, image_reset, retry,
  earlier or '', stands or '', holder }
