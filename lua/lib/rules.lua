-- The fraud rules: what wallets of a tier may do. Tier 0 has no limits and costs nothing here.
-- A movement by a wallet with a tier is an attempt: the attempts of its device and its IP are counted whatever becomes
-- of it. What the wallet itself used (USAGE) is counted once it is accepted.
-- Sliding windows are two counters: what was counted in the window before is taken to be spread evenly over it, so the
-- estimate is off by at most that window's count.
local tiers, attempts, known_devices, changed_devices

local begin_rules, placed_in_time, limits_of, read_rules, begin_attempt, broken_rule, count_usage, write_rules

do -- so that what only this file uses does not count against Lua's 200 locals

local WALLETS_OF_DEVICE = 119 -- 'w'

-- The day and the hour since 1970 UTC, and the share of the hour that is still to come.
local this_day, this_hour, hour_left

-- attempts[field] and known_devices[slot] (packed KNOWN_DEVICEs) are nil until they are read, once per call; an unused
-- field is false.
function begin_rules()
  tiers, attempts, known_devices, changed_devices = {}, {}, {}, {}
  this_day, this_hour = floor(now_ms / DAY_MS), floor(now_ms / HOUR_MS)
  hour_left = 1 - (now_ms / HOUR_MS - this_hour)
end

-- The limits, with the number of each of their windows that is now, and the share of it that is still to come.
function placed_in_time(limits)
  local at, attempts_at = now_ms / limits.window_ms, now_ms / limits.attempts_window_ms
  limits.window_now, limits.attempts_now = floor(at), floor(attempts_at)
  limits.window_left, limits.attempts_left = 1 - (at - floor(at)), 1 - (attempts_at - floor(attempts_at))
  return limits
end

-- The limits of a tier; nil if it has none.
function limits_of(number)
  local limits = tiers[number]
  if limits == nil then
    local packed = redis.call('HGET', tiers_key(shard_tag), pack('<H', number))
    if packed and #packed ~= TIER_LIMITS_SIZE then corrupt('tier: size') end
    limits = packed and placed_in_time(unpack_limits(packed, corrupt)) or false
    tiers[number] = limits
  end
  return limits or nil
end

-- Reads the devices that the wallets of slots know.
local function read_known_devices(slots)
  local keys, missing, prefix = {}, {}, known_prefix(shard_tag)
  for n = 1, #slots do keys[n] = prefix .. wallet_ids[slots[n]] end
  for from = 1, #keys, CHUNK do
    local found = redis.call('MGET', unpack(keys, from, min(from + CHUNK - 1, #keys)))
    for j = 1, #found do
      local n = from + j - 1
      if not found[j] then missing[#missing + 1] = keys[n] end
      local packed = found[j] or ''
      if #packed % KNOWN_DEVICE_SIZE ~= 0 or #packed > KNOWN_DEVICES * KNOWN_DEVICE_SIZE then corrupt('known: size') end
      known_devices[slots[n]] = packed
    end
  end
  check_missing(missing, #missing, 'known')
end

-- A counter of attempts: {packed wallets} of a device, or {window, before, count} of a device or an IP.
local function unpack_attempts(field, packed)
  if byte(field) == WALLETS_OF_DEVICE then
    if #packed % 8 ~= 0 or #packed > 8 * MAX_DEVICE_WALLETS then corrupt('attempts: size') end
    return { wallets = packed, changed = false }
  end
  if #packed ~= ATTEMPTS_SIZE then corrupt('attempts: size') end
  local window, before, count = unpack_from(ATTEMPTS_FORMAT, packed)
  if not (is_count(window) and is_count(before) and is_count(count)) then corrupt('attempts: count') end
  return { window = window, before = before, count = count, changed = false }
end

-- Reads the counters of attempts under fields: those of today, and soon after midnight of yesterday where today has
-- none yet, since the window before may lie there. The wallets of a device are counted by the day.
local function read_attempts(fields)
  local found, missing = {}, {}
  read_fields(attempts_key(shard_tag, this_day), fields, #fields, found)
  for n = 1, #fields do
    local field = fields[n]
    if not found[field] and byte(field) ~= WALLETS_OF_DEVICE then missing[#missing + 1] = field end
    attempts[field] = false
  end
  local yesterday = attempts_key(shard_tag, this_day - 1)
  if #missing > 0 and redis.call('EXISTS', yesterday) == 1 then read_fields(yesterday, missing, #missing, found) end
  for field, packed in pairs(found) do attempts[field] = unpack_attempts(field, packed) end
end

-- The keys of a request's counters, once for a tier: nil where it has no such rule.
local function set_fields(terms, limits)
  local device, ip = terms.device, terms.ip
  terms.limits, terms.device_field, terms.wallets_field, terms.ip_field = limits, nil, nil, nil
  if device and limits.device_attempts < MAX_AMOUNT then terms.device_field = 'd' .. device .. limits.attempts_window end
  if device and limits.device_wallets < MAX_AMOUNT then terms.wallets_field = 'w' .. device end
  if ip and limits.ip_attempts < MAX_AMOUNT then terms.ip_field = 'i' .. ip .. limits.attempts_window end
end

-- Reads what the rules need of the batch at once. What turns out later to be needed too is read then.
function read_rules()
  local slots, fields, seen = {}, {}, {}
  local function need(field)
    if not seen[field] then
      seen[field] = true
      fields[#fields + 1] = field
    end
  end
  for i = 1, request_count do
    local debit, terms = debits[i], attachments[i]
    local level = debit and tier[debit]
    if level and level ~= 0 and terms then
      local limits = limits_of(level) or corrupt('tier: missing')
      set_fields(terms, limits)
      if terms.device_field then need(terms.device_field) end
      if terms.wallets_field then need(terms.wallets_field) end
      if terms.ip_field then need(terms.ip_field) end
      if terms.device and limits.new_device_amount < MAX_AMOUNT and not seen[debit] then
        seen[debit] = true
        slots[#slots + 1] = debit
      end
    end
  end
  if #slots > 0 then read_known_devices(slots) end
  if #fields > 0 then read_attempts(fields) end
end

-- When a sliding count of before and count will have room for one more amount within limit; 0 if never. A millisecond
-- late, so that it is true however the division rounds.
local function retry_time(window, window_ms, before, count, amount, limit)
  local room_left = limit - amount
  if room_left < 0 then return 0 end
  if count <= room_left then -- enough of the window before has to slide out
    return ceil((window + max(0, 1 - (room_left - count) / max(before, 1))) * window_ms) + 1
  end
  return ceil((window + 1 + max(0, 1 - room_left / count)) * window_ms) + 1
end

-- Counts an attempt; returns how many there were before in the sliding window, and the counter. window: the number of
-- the one that is now, left: the share of it that is to come, and so the share of the one before that still counts.
local function count_attempt(field, window, left)
  if attempts[field] == nil then read_attempts({ field }) end
  local a = attempts[field] or { window = 0, before = 0, count = 0, changed = true }
  attempts[field] = a
  if a.window ~= window then
    a.before = a.window == window - 1 and a.count or 0
    a.window, a.count = window, 0
  end
  local used = a.before * left + a.count
  a.count, a.changed = a.count + 1, true
  return used, a
end

-- Counts a wallet of a device today; returns how many others there were, or nil if it was one of them.
local function count_device_wallet(field, id, limit)
  if attempts[field] == nil then read_attempts({ field }) end
  local a = attempts[field] or { wallets = '', changed = false }
  attempts[field] = a
  local wallets = a.wallets
  for at = 1, #wallets, 8 do
    if sub(wallets, at, at + 7) == id then return nil end
  end
  local used = #wallets / 8
  if used < limit then a.wallets, a.changed = wallets .. id, true end
  return used
end

-- What the attempt under way found: what was used before it, and the counters; nil where no rule asks.
local device_used, device_counter, ip_used, ip_counter, wallets_used

-- Begins an attempt of a wallet with limits: counts it, whatever becomes of it. broken_rule judges it.
function begin_attempt(slot, limits, terms)
  device_used, ip_used, wallets_used = nil, nil, nil
  if not terms then return end
  if terms.limits ~= limits then set_fields(terms, limits) end
  if terms.device_field then
    device_used, device_counter = count_attempt(terms.device_field, limits.attempts_now, limits.attempts_left)
  end
  if terms.ip_field then
    ip_used, ip_counter = count_attempt(terms.ip_field, limits.attempts_now, limits.attempts_left)
  end
  if terms.wallets_field then
    wallets_used = count_device_wallet(terms.wallets_field, wallet_ids[slot], limits.device_wallets)
  end
end

-- The usage of a wallet, brought to this moment: counters of a day, hour or window that is over are moved or cleared.
local function usage_now(slot, limits)
  local u, window = usage[slot], limits.window_now
  if u.day ~= this_day then u.day, u.day_count, u.day_amount = this_day, 0, 0 end
  if u.hour ~= this_hour then
    u.hour_before = u.hour == this_hour - 1 and u.hour_amount or 0
    u.hour, u.hour_amount = this_hour, 0
  end
  if u.window ~= window then
    u.window_before = u.window == window - 1 and u.window_count or 0
    u.window, u.window_count = window, 0
  end
  return u
end

-- When the wallet first used the device with success, and where it stands in the list; nil if it is not there.
local function known_device(slot, device)
  local list = known_devices[slot]
  if not list then
    read_known_devices({ slot })
    list = known_devices[slot]
  end
  for at = #list - KNOWN_DEVICE_SIZE + 1, 1, -KNOWN_DEVICE_SIZE do
    local known, since_ms = unpack_from(KNOWN_DEVICE_FORMAT, list, at)
    if known == device then
      if not is_count(since_ms) then corrupt('known: since_ms') end
      return since_ms, at
    end
  end
end

-- The verdict on the attempt under way: the lowest number among the rules that decline, else among those that review.
local broken, broken_used, broken_retry_at_ms, broken_reviewed

local function breaks(limits, number, used, retry_at_ms)
  local review = floor(limits.review / 2 ^ number) % 2 == 1
  if not broken or broken_reviewed and not review then
    broken, broken_used, broken_reviewed = number, min(used, MAX_AMOUNT), review
    broken_retry_at_ms = min(retry_at_ms, MAX_AMOUNT)
  end
end

local function judge_amounts(u, limits, amount)
  if amount > limits.max_amount then breaks(limits, RULE_MAX_AMOUNT, 0, 0) end
  if u.day_amount + amount > limits.day_amount and limits.day_amount < MAX_AMOUNT then
    breaks(limits, RULE_DAY_AMOUNT, u.day_amount, amount > limits.day_amount and 0 or (u.day + 1) * DAY_MS)
  end
  if u.day_count + 1 > limits.day_count then
    breaks(limits, RULE_DAY_COUNT, u.day_count, limits.day_count < 1 and 0 or (u.day + 1) * DAY_MS)
  end
  local count = u.window_before * limits.window_left + u.window_count
  if count + 1 > limits.window_count then
    breaks(limits, RULE_WINDOW_COUNT, ceil(count),
      retry_time(u.window, limits.window_ms, u.window_before, u.window_count, 1, limits.window_count))
  end
  local sum = u.hour_before * hour_left + u.hour_amount
  if sum + amount > limits.hour_amount and limits.hour_amount < MAX_AMOUNT then
    breaks(limits, RULE_HOUR_AMOUNT, ceil(sum),
      retry_time(u.hour, HOUR_MS, u.hour_before, u.hour_amount, amount, limits.hour_amount))
  end
end

local function judge_attempts(u, limits)
  if device_used and device_used + 1 > limits.device_attempts then
    breaks(limits, RULE_DEVICE_ATTEMPTS, ceil(device_used), retry_time(device_counter.window,
      limits.attempts_window_ms, device_counter.before, device_counter.count, 1, limits.device_attempts))
  end
  if ip_used and ip_used + 1 > limits.ip_attempts then
    breaks(limits, RULE_IP_ATTEMPTS, ceil(ip_used), retry_time(ip_counter.window,
      limits.attempts_window_ms, ip_counter.before, ip_counter.count, 1, limits.ip_attempts))
  end
  if wallets_used and wallets_used >= limits.device_wallets then
    breaks(limits, RULE_DEVICE_WALLETS, wallets_used, limits.device_wallets < 1 and 0 or (u.day + 1) * DAY_MS)
  end
end

-- The rule that the attempt under way, a movement of amount, breaks; nil if none. With it what was used, when to retry
-- (0: waiting does not help), and whether it goes to review.
function broken_rule(slot, limits, amount, device)
  local u = usage_now(slot, limits)
  broken = nil
  judge_amounts(u, limits, amount)
  judge_attempts(u, limits)
  if device and amount > limits.new_device_amount then
    local since_ms = known_device(slot, device)
    if not since_ms then
      breaks(limits, RULE_NEW_DEVICE, 0, 0)
    elseif now_ms < since_ms + limits.new_device_ms then
      breaks(limits, RULE_NEW_DEVICE, 0, since_ms + limits.new_device_ms)
    end
  end
  if broken then return broken, broken_used, broken_retry_at_ms, broken_reviewed end
end

-- Notes that a wallet used a device with success: it goes to the end of the list.
local function remember_device(slot, device)
  local since_ms, at = known_device(slot, device)
  local list = known_devices[slot]
  if at and at + KNOWN_DEVICE_SIZE > #list then return end
  if at then list = sub(list, 1, at - 1) .. sub(list, at + KNOWN_DEVICE_SIZE) end
  if #list >= KNOWN_DEVICES * KNOWN_DEVICE_SIZE then list = sub(list, KNOWN_DEVICE_SIZE + 1) end
  known_devices[slot] = list .. pack(KNOWN_DEVICE_FORMAT, device, since_ms or now_ms)
  changed_devices[slot] = true
end

-- Counts an accepted movement. device: nil unless it was used successfully.
function count_usage(slot, limits, amount, device)
  local u = usage_now(slot, limits)
  u.day_amount, u.hour_amount = min(u.day_amount + amount, MAX_AMOUNT), min(u.hour_amount + amount, MAX_AMOUNT)
  u.day_count, u.window_count = u.day_count + 1, u.window_count + 1
  if device and limits.new_device_amount < MAX_AMOUNT then remember_device(slot, device) end
end

local function write_known_devices()
  local changes = {}
  for slot in pairs(changed_devices) do
    changes[#changes + 1] = known_prefix(shard_tag) .. wallet_ids[slot]
    changes[#changes + 1] = known_devices[slot]
  end
  for from = 1, #changes, CHUNK do redis.call('MSET', unpack(changes, from, min(from + CHUNK - 1, #changes))) end
end

-- A day's counters go by themselves when the next day is over.
local function write_attempts()
  local changes, n = {}, 0
  for field, a in pairs(attempts) do
    if a and a.changed then
      changes[n + 1] = field
      changes[n + 2] = a.wallets or pack(ATTEMPTS_FORMAT, a.window, a.before, a.count)
      n = n + 2
    end
  end
  if n == 0 then return end
  local key = attempts_key(shard_tag, this_day)
  call_in_chunks('HSET', key, changes, n)
  redis.call('PEXPIREAT', key, format('%.0f', (this_day + 2) * DAY_MS))
end

function write_rules()
  write_attempts()
  write_known_devices()
end

end
