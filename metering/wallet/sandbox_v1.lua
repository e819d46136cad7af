-- Lets an order of the sandbox pass, or says why not; a denial writes nothing. What it takes is counted for its key
-- alone, beside the rates of live orders: by the key's own limits per minute, or else by the organisation's numbers.
-- No money, no quota, no hold and no event is touched.
--
-- The same order under the same idempotency key is the same order again; that counts as a request, and no more.
-- KEYS  mark wallet access once
-- ARGV  now_us>=0 org request images>=1 model fingerprint keyed>=0 once_s>=1
-- REPLY code now_us available requests_limit requests_left requests_reset_us images_limit images_left images_reset_us
-- REPLY retry_us order:text admitted_s
--
-- access   what the API key may do      once   the idempotency key's record, of the sandbox's own
-- keyed    1 with an idempotency key, else 0; it counts for once_s
-- order    which it is, and when that was admitted, in Unix seconds
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

return answer({ code = code, now_us = now, available = available_at(org, now),
  requests_limit = requests.limit, requests_left = request_taken and requests.left or requests.kept_left,
  requests_reset_us = request_taken and requests.reset or requests.kept_reset,
  images_limit = pictures.limit, images_left = image_taken and pictures.left or pictures.kept_left,
  images_reset_us = image_taken and pictures.reset or pictures.kept_reset,
  retry_us = retry, order = earlier or request, admitted_s = tonumber(admitted_s or 0) })
