-- The end of an order, and the notices that it may cause. A line `-- WITH closing` in a script is replaced by this.

-- Writes a notice for the organisation, into the same stream as its events; it has no number of its own.
local function notice(what, org, key, percent, limit, used, period, now_us)
  redis.call('XADD', P .. ':events', '*', 'notice', what, 'org', org, 'key', key, 'percent', percent, 'limit', limit,
    'used', used, 'period', period, 'at_us', now_us)
end

local THRESHOLDS = { 80, 100 }

-- Reads what is used as `usage` does, and with it, from FURTHER on, the limits that `tell_thresholds` looks at.
local function usage_of_quotas(name, day, month, ...)
  return usage(name, day, month, 'images_per_day', 'images_per_month', 'mxn_per_month', ...)
end

local function tell_threshold(u, what, limit, used, period, org, key, now_us)
  limit = limit + 0
  if used < limit * THRESHOLDS[1] / 100 then return end
  local field = 'told_' .. what
  local of_period, told = string.match(redis.call('HGET', u.name, field) or '', '^(%S+) (%d+)$')
  told = of_period == period and told + 0 or 0
  for _, percent in ipairs(THRESHOLDS) do
    if percent > told and used >= limit * percent / 100 then
      notice(what, org, key, percent, limit, used, period, now_us)
      redis.call('HSET', u.name, field, period .. ' ' .. percent)
    end
  end
end

-- Writes notices after a charge or a changed limit: which thresholds of its quotas are reached, each once in a period.
-- `v`: the second result of `usage_of_quotas`.
local function tell_thresholds(u, v, org, key, now_us)
  if v[10] then tell_threshold(u, 'images_per_day', v[10], u.day_done, u.day, org, key, now_us) end
  if v[11] then tell_threshold(u, 'images_per_month', v[11], u.month_done, u.month, org, key, now_us) end
  if v[12] then tell_threshold(u, 'mxn_per_month', v[12], u.spent_done, u.month, org, key, now_us) end
end

-- Writes a notice that the balance (credits less charges) fell under the mark `low`. Only credits raise it, so one notice
-- for each credit is enough to distinguish one crossing from the next.
local function tell_balance(org, low, before, after, now_us)
  if before < low or after >= low then return end
  notice('balance', org, '', 0, low, after, redis.call('HGET', P .. ':wallet:' .. org, 'credit_number'), now_us)
end

-- Reads an order's hold, and the wallet that it is taken from. Without a hold, `amount` is false; without a wallet,
-- `available` is false. `low`: the balance under which the organisation gets a notice.
local function order_of(org, request)
  local hold = redis.call('HMGET', P .. ':hold:' .. request, 'amount', 'images', 'key', 'day', 'month', 'tried',
    'admitted_us', 'opened', 'trace', 'until_us', 'owner', 'handed')
  local of_org, v = usage_of_quotas(P .. ':wallet:' .. org, hold[4] or '', hold[5] or '', 'available', 'held', 'charged',
    'number', 'low')
  return { org = org, request = request, amount = hold[1] and hold[1] + 0, images = hold[2] and hold[2] + 0,
    key = hold[3], day = hold[4], month = hold[5], tried = hold[6], admitted_us = hold[7], opened = hold[8],
    trace = hold[9], long = hold[10], owner = hold[11], handed = hold[12],
    of_org = of_org, quotas = v, available = v[13] and v[13] + 0, held = v[14] and v[14] + 0,
    charged = v[15] and v[15] + 0, number = v[16] and v[16] + 0, low = (v[17] or 0) + 0 }
end

-- Takes a hold that has ended off what is used, and counts what was delivered for it.
local function count_end(u, order, quantity, amount)
  hold_counts(u, -1, order.images, order.amount, order.day, order.month)
  if u.day == order.day then u.day_done = u.day_done + quantity end
  if u.month == order.month then
    u.month_done = u.month_done + quantity
    u.spent_done = u.spent_done + amount
  end
end

-- Ends an order; there is no other way. It moves the money, removes the hold, writes the event to the stream, and
-- remembers the end and what its owner may fetch again. Returns how far below zero the charge left the balance, credits
-- less charges, 0 if it did not; and what the organisation may spend, without expired holds.
--
-- `upstream_ids` and `upstream_usd` are absent or empty if the provider told none, and so is `route` if it was the first
-- one: then the event is without these fields.
--
-- A full Redis refuses a script's first write, if that takes room (rule 28). Here the first one makes room.
local function close(order, ending, reason, quantity, amount, usd_measured, images, result, now_us, remember_s,
    upstream_ids, upstream_usd, route)
  local org, request, key = order.org, order.request, order.key
  redis.call('ZREM', P .. ':open:' .. org, request)
  redis.call('DEL', P .. ':hold:' .. request)
  redis.call('HDEL', P .. ':jobs', request)
  if order.long then redis.call('HDEL', P .. ':long', request) end
  local fingerprint = ending ~= 'charge' and key and string.match(order.tried or '', '^%S+ (.+)$')
  if fingerprint then give_to_nobody(kind_of(key, fingerprint), request) end
  redis.call('SET', P .. ':closed:' .. request, ending .. ':' .. string.format('%.0f', amount) .. ':' .. reason .. ':' .. org,
    'EX', remember_s)
  if result ~= '' then
    redis.call('HSET', P .. ':result:' .. request, 'org', org, 'key', key or '', 'images', images, 'result', result)
    if order.long then redis.call('HSET', P .. ':result:' .. request, 'owner', order.owner) end
    redis.call('EXPIRE', P .. ':result:' .. request, remember_s)
  elseif key then
    redis.call('SET', P .. ':placed:' .. request, key, 'EX', remember_s)
  end
  local available, held = order.available + order.amount - amount, order.held - order.amount
  local charged, number, of_org = order.charged + amount, order.number + 1, order.of_org
  if key then
    local of_key, quotas = usage_of_quotas(access_of(key), order.day, order.month)
    count_end(of_org, order, quantity, amount)
    count_end(of_key, order, quantity, amount)
    local delivered = quantity > 0
    keep_usage(of_org, delivered, 'available', available, 'held', held, 'charged', charged, 'number', number)
    keep_usage(of_key, delivered)
    if delivered then
      tell_thresholds(of_org, order.quotas, org, '', now_us)
      tell_thresholds(of_key, quotas, org, key, now_us)
    end
  else
    redis.call('HSET', of_org.name, 'available', available, 'held', held, 'charged', charged, 'number', number)
  end
  local below = 0
  if amount > 0 then
    local balance = available + held
    tell_balance(org, order.low, balance + amount, balance, now_us)
    below = math.max(0, -balance)
  end
  local told = {}
  if (upstream_ids or '') ~= '' then told = { 'upstream_ids', upstream_ids } end
  if (upstream_usd or '') ~= '' then
    told[#told + 1] = 'upstream_usd'
    told[#told + 1] = upstream_usd
  end
  if (route or '') ~= '' then
    told[#told + 1] = 'route'
    told[#told + 1] = route
  end
  -- No part of the event: it tells the consumer to which trace its booking belongs.
  if order.trace then
    told[#told + 1] = 'trace'
    told[#told + 1] = order.trace
  end
  if order.handed then
    told[#told + 1] = 'handed'
    told[#told + 1] = order.handed
  end
  -- This comes after the notices that it causes: if the ledger has the event, it has the notices, too.
  redis.call('XADD', P .. ':events', '*', 'number', number, 'end', ending, 'reason', reason, 'quantity', quantity,
    'amount', amount, 'admitted_us', order.admitted_us, 'ended_us', now_us, 'opened', order.opened, 'images', images,
    'usd_measured', usd_measured, 'result', result, unpack(told))
  return below, available
end
