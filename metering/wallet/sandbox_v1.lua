-- Admits a sandbox order, or says why not; a denial writes nothing. Usage counts for its key alone, apart from the
-- rates of live orders: by the key's own limits per minute, or else by the organisation's numbers. No money, no quota,
-- no hold and no event is touched.
--
-- An identical order under the same idempotency key is a duplicate; it counts as a request only.
-- KEYS  mark wallet access once
-- ARGV  now_us>=0 org request images>=1 model fingerprint keyed>=0 once_s>=1
-- REPLY code now_us available requests_limit requests_left requests_reset_us images_limit images_left images_reset_us
-- REPLY retry_us order:text admitted_s
--
-- access   rights of the API key     once   the idempotency key's record, the sandbox's own
-- keyed    1 with an idempotency key, else 0; it counts for once_s
-- order    the order's id; admitted_s: when it was admitted, in Unix seconds
local now = clock(now_us)

local key = redis.call('HMGET', access_key, 'state', 'expires_us', 'models', 'requests_per_minute', 'images_per_minute',
  'sandbox_tat_requests', 'sandbox_tat_images')
local of_org = redis.call('HMGET', wallet_key, 'available', 'requests_per_minute', 'images_per_minute', 'suspended')
local max_requests, max_images = tonumber(key[4] or of_org[2]), tonumber(key[5] or of_org[3])
if redis.call('EXISTS', mark_key) == 0 or not of_org[1] or not key[1] or not max_requests or not max_images then
  return answer({ code = AWAY, now_us = now })
end

local requests = rate(now, tat(key[6], now), max_requests, 1)
local pictures = rate(now, tat(key[7], now), max_images, images)
local earlier, admitted_s, other
if keyed == 1 then
  earlier, admitted_s, other = string.match(redis.call('GET', once_key) or '', '^(%S+) (%d+) (%S+)$')
end

local code, retry = ADMITTED, 0
if key[1] ~= 'active' then code = REVOKED
elseif key[2] and tonumber(key[2]) <= now then code = EXPIRED
elseif not allows(key[3], model) then code = MODEL
elseif earlier and other ~= fingerprint then code = REUSED
elseif earlier then
  code = DUPLICATE
  if requests.over > 0 then code, retry = REQUESTS, requests.over end
elseif of_org[4] then code = SUSPENDED
elseif requests.over > 0 and pictures.over < NEVER then code, retry = REQUESTS, math.max(requests.over, pictures.over)
elseif pictures.over > 0 then code, retry = IMAGES, pictures.over < NEVER and pictures.over or 0 end

local request_taken, image_taken = code == ADMITTED or code == DUPLICATE, code == ADMITTED
if request_taken then redis.call('HSET', access_key, 'sandbox_tat_requests', requests.to, 'used_us', now) end
if image_taken then
  redis.call('HSET', access_key, 'sandbox_tat_images', pictures.to)
  admitted_s = math.floor(now / 1000000)
  if keyed == 1 then redis.call('SET', once_key, request .. ' ' .. admitted_s .. ' ' .. fingerprint, 'EX', once_s) end
end

local requests_left, requests_reset = rate_after(requests, now, request_taken)
local images_left, images_reset = rate_after(pictures, now, image_taken)
return answer({ code = code, now_us = now, available = available_at(org, now),
  requests_limit = requests.limit, requests_left = requests_left, requests_reset_us = requests_reset,
  images_limit = pictures.limit, images_left = images_left, images_reset_us = images_reset,
  retry_us = retry, order = earlier or request, admitted_s = tonumber(admitted_s or 0) })
