-- Prepended to every script of this folder. KEYS[1] is always the partition's mark, so that the partition is known;
-- every key of a script carries its hash tag.
local P = string.match(KEYS[1], '^({p%d+})')

local MAX_EXACT = 9007199254740991

-- How many arguments there must be. An absent one would fail a write half-way.
local function arguments(count)
  if #ARGV ~= count then error('wants ' .. count .. ' arguments, has ' .. #ARGV) end
end

-- An argument as a whole number. Called for every number before the first write: a script that fails half-way keeps
-- what it wrote.
local function whole(i, lowest)
  local n = tonumber(ARGV[i])
  if not n or n ~= math.floor(n) or n < lowest or n > MAX_EXACT then
    error('argument ' .. i .. ' is not a whole number from ' .. lowest)
  end
  return n
end

-- Tests script the time; production sends 0 and gets the server's.
local function clock(given_us)
  if given_us > 0 then return given_us end
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2]
end

-- The holds of an organisation that have run out, as {request, amount}, and their sum. They count nowhere, whether
-- or not somebody has written their end down.
local function expired_holds(org, now_us)
  local found, sum = {}, 0
  for _, request in ipairs(redis.call('ZRANGEBYSCORE', P .. ':open:' .. org, '-inf', now_us)) do
    local amount = tonumber(redis.call('HGET', P .. ':hold:' .. request, 'amount') or 0)
    found[#found + 1] = request
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

-- The one way in which an order ends: money to its place, the hold gone, the event in the stream, the end remembered,
-- and what its owner may fetch again.
local function close(org, request, ending, reason, quantity, amount, usd_measured, images, result, now_us, remember_s)
  local hold = redis.call('HMGET', P .. ':hold:' .. request, 'amount', 'admitted_us', 'opened')
  local held = tonumber(hold[1])
  local wallet = P .. ':wallet:' .. org
  redis.call('ZREM', P .. ':open:' .. org, request)
  redis.call('DEL', P .. ':hold:' .. request)
  redis.call('HDEL', P .. ':jobs', request)
  redis.call('HINCRBY', wallet, 'held', -held)
  redis.call('HINCRBY', wallet, 'charged', amount)
  redis.call('HINCRBY', wallet, 'available', held - amount)
  local number = redis.call('HINCRBY', wallet, 'number', 1)
  redis.call('XADD', P .. ':events', '*', 'number', number, 'end', ending, 'reason', reason, 'quantity', quantity,
    'amount', amount, 'admitted_us', hold[2], 'ended_us', now_us, 'opened', hold[3], 'images', images,
    'usd_measured', usd_measured, 'result', result)
  redis.call('SET', P .. ':closed:' .. request, ending .. ':' .. string.format('%.0f', amount) .. ':' .. reason .. ':' .. org,
    'EX', remember_s)
  if result ~= '' then
    redis.call('HSET', P .. ':result:' .. request, 'org', org, 'images', images, 'result', result)
    redis.call('EXPIRE', P .. ':result:' .. request, remember_s)
  end
end
