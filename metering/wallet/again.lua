-- Orders that are asked for again: how they stand, who waits for them, which tries of an SDK are awaited. A line
-- `-- WITH again` in a script is replaced by this.

-- Returns the status of an order of this organisation: 'open', or the remembered `ending:amount:reason:org`, or nil.
local function standing(org, request, now_us)
  local closed = redis.call('GET', P .. ':closed:' .. request)
  if closed then
    local owner = string.match(closed, '^%a+:%d+:[^:]*:(.+)$')
    return (not owner or owner == org) and closed or nil
  end
  local expires = redis.call('ZSCORE', P .. ':open:' .. org, request)
  return expires and tonumber(expires) > now_us and 'open' or nil
end

-- Returns the API key that placed an order which has ended, or empty. It is stored beside the result, if there is one.
local function placed_by(request)
  return redis.call('HGET', P .. ':result:' .. request, 'key') or redis.call('GET', P .. ':placed:' .. request) or ''
end

-- Returns the status of an order that may be given again: it is open, or charged. A failed one is not given again.
local function givable(org, request, now_us)
  local stands = standing(org, request, now_us)
  return stands and (stands == 'open' or string.match(stands, '^charge:')) and stands
end

local function asking_of(request) return P .. ':asking:' .. request end

local MAX_PASSED_OVER = 32

-- Nobody can know what a restart or a failover forgot: an order noted under another run of the server is given to no
-- new order, because it may have been given before.
local function server_run() return string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') end

-- A server that was replaced, followed another one and comes back has the same run, and forgot as well. Its replication
-- has another name each time when it begins to lead. So this is what a long order's parts are known under.
local function server_reign()
  return server_run() .. (string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)') or '')
end

-- Awaited tries of an SDK: the try before was refused or failed, so they are no duplicates. A hash for each API key has
-- how many there are of the same order and count, and since when.
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

-- Adds one. If a key has very many different orders, the oldest are forgotten.
local function await_try(key_id, count, fingerprint, now_us, recent_us)
  local n = awaited(key_id, count, fingerprint, now_us, recent_us)
  if redis.call('HLEN', awaited_of(key_id)) >= MAX_AWAITED then redis.call('DEL', awaited_of(key_id)) end
  set_awaited(key_id, count, fingerprint, n + 1, now_us)
  redis.call('PEXPIRE', awaited_of(key_id), math.ceil(recent_us / 1000))
end
