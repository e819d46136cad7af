-- Lets an order of the sandbox pass, or says why not; a denial writes nothing. What it takes is counted for its key
-- alone, beside the rates of live orders: by the key's own limits per minute, or else by the organisation's numbers.
-- No money, no quota, no hold and no event is touched.
--
-- The same order under the same idempotency key is the same order again; that counts as a request, and no more.
-- KEYS  1 mark  2 wallet  3 the key's access  4 the idempotency key's record, of the sandbox's own
-- ARGV  1 now_us (0: TIME)  2 org  3 request  4 images  5 model  6 fingerprint of the order
--       7 1 with an idempotency key, else 0  8 once_s: how long the key counts
-- reply code, now_us, available, requests: limit, remaining, reset_us, images: limit, remaining, reset_us, retry_us,
--       which order it is, when that was admitted in Unix s
local ADMITTED, AWAY, REVOKED, REQUESTS, IMAGES, EARLIER, REUSED, EXPIRED, MODEL = 1, 2, 5, 9, 10, 11, 12, 13, 14
local SUSPENDED = 19

arguments(8)
local now, org, request = clock(whole(1, 0)), ARGV[2], ARGV[3]
local images, model, fingerprint = whole(4, 1), ARGV[5], ARGV[6]
local keyed, once_s = whole(7, 0), whole(8, 1)

local key = redis.call('HMGET', KEYS[3], 'state', 'expires_us', 'models', 'requests_per_minute', 'images_per_minute',
  'sandbox_tat_requests', 'sandbox_tat_images')
local of_org = redis.call('HMGET', KEYS[2], 'available', 'requests_per_minute', 'images_per_minute', 'suspended')
local max_requests, max_images = tonumber(key[4] or of_org[2]), tonumber(key[5] or of_org[3])
if redis.call('EXISTS', KEYS[1]) == 0 or not of_org[1] or not key[1] or not max_requests or not max_images then
  return { AWAY, now, 0, 0, 0, 0, 0, 0, 0, 0, '', 0 }
end

local requests = rate(now, tat(key[6], now), max_requests, 1)
local pictures = rate(now, tat(key[7], now), max_images, images)
local earlier, admitted_s, other
if keyed == 1 then
  earlier, admitted_s, other = string.match(redis.call('GET', KEYS[4]) or '', '^(%S+) (%d+) (%S+)$')
end

local code, retry = ADMITTED, 0
if key[1] ~= 'active' then code = REVOKED
elseif key[2] and tonumber(key[2]) <= now then code = EXPIRED
elseif not allows(key[3], model) then code = MODEL
elseif earlier and other ~= fingerprint then code = REUSED
elseif earlier then
  code = EARLIER
  if requests.over > 0 then code, retry = REQUESTS, requests.over end
elseif of_org[4] then code = SUSPENDED
elseif requests.over > 0 and pictures.over < NEVER then code, retry = REQUESTS, math.max(requests.over, pictures.over)
elseif pictures.over > 0 then code, retry = IMAGES, pictures.over < NEVER and pictures.over or 0 end

local request_taken, image_taken = code == ADMITTED or code == EARLIER, code == ADMITTED
if request_taken then redis.call('HSET', KEYS[3], 'sandbox_tat_requests', requests.to, 'used_us', now) end
if image_taken then
  redis.call('HSET', KEYS[3], 'sandbox_tat_images', pictures.to)
  admitted_s = math.floor(now / 1000000)
  if keyed == 1 then redis.call('SET', KEYS[4], request .. ' ' .. admitted_s .. ' ' .. fingerprint, 'EX', once_s) end
end

return { code, now, available_at(org, now),
  requests.limit, request_taken and requests.left or requests.kept_left, request_taken and requests.reset or requests.kept_reset,
  pictures.limit, image_taken and pictures.left or pictures.kept_left, image_taken and pictures.reset or pictures.kept_reset,
  retry, earlier or request, tonumber(admitted_s or 0) }
