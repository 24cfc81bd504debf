-- The fraud rules: what wallets of a tier may do. Tier 0 has no limits and costs nothing here.
-- A movement by a wallet with a tier is an attempt: the attempts of its device and its IP are counted whatever becomes
-- of it. What the wallet itself used (USAGE) is counted once it is accepted.
-- Sliding windows are two counters: what was counted in the window before is taken to be spread evenly over it, so the
-- estimate is off by at most that window's count.
local tiers, attempts, known_devices, changed_devices

local begin_rules, placed_in_time, limits_of, read_rules, begin_attempt, broken_rule, count_usage, write_rules

do -- so that what only this file uses does not count against Lua's 200 locals

-- Behind the fields of ATTEMPTS, in the list of a counter.
local ATTEMPTS_WALLETS, ATTEMPTS_CHANGED = 4, 5
local IS_NEW = 'new' -- of what changed: no counter of today or yesterday was there

-- The day and the hour since 1970 UTC, and the milliseconds of the hour that are still to come.
local this_day, this_hour, hour_left

-- Counters by request; the fields of attempts that changed.
local counters_of, changed_attempts

-- attempts[field] and known_devices[slot] (packed KNOWN_DEVICEs) are nil until they are read, once per call; an unused
-- field is false.
function begin_rules()
  tiers, attempts, known_devices, changed_devices = {}, {}, {}, {}
  counters_of, changed_attempts = {}, {}
  this_day, this_hour = floor(now_ms / DAY_MS), floor(now_ms / HOUR_MS)
  hour_left = HOUR_MS - now_ms % HOUR_MS
end

-- The limits, with the number of each of their windows that is now, and the milliseconds of it that are still to come:
-- the share of the window before that still counts is multiplied before it is divided, so that whole numbers stay whole.
function placed_in_time(limits)
  local window_ms, attempts_ms = limits.window_ms, limits.attempts_window_ms
  limits.window_now, limits.attempts_now = floor(now_ms / window_ms), floor(now_ms / attempts_ms)
  limits.window_left, limits.attempts_left = window_ms - now_ms % window_ms, attempts_ms - now_ms % attempts_ms
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

-- A counter of attempts: the list of ATTEMPTS' fields, what follows them (the packed ids of the wallets that used the
-- device today, for an IP ''), and whether it changed.
local function unpack_attempts(packed)
  local window, before, count = unpack_from(ATTEMPTS_FORMAT, packed)
  local wallets = sub(packed, ATTEMPTS_SIZE + 1)
  if window % 1 + before % 1 + count % 1 ~= 0 or window < 0 or before < 0 or count < 0
      or max(window, before, count) > MAX_AMOUNT then
    corrupt('attempts: count')
  end
  if #wallets % 8 ~= 0 or #wallets > 8 * MAX_DEVICE_WALLETS then corrupt('attempts: size') end
  return { window, before, count, wallets, false }
end

-- Reads the counters of attempts under fields: those of today, and soon after midnight of yesterday where today has
-- none yet, since the window before may lie there. The wallets of a device are counted by the day.
local function read_attempts(fields)
  local function read(key, wanted, missing)
    for from = 1, #wanted, CHUNK do
      local values = redis.call('HMGET', key, unpack(wanted, from, min(from + CHUNK - 1, #wanted)))
      for j = 1, #values do
        local field, packed = wanted[from + j - 1], values[j]
        if packed and #packed < ATTEMPTS_SIZE then corrupt('attempts: size') end
        local a = packed and unpack_attempts(packed)
        if not missing and a then a[ATTEMPTS_WALLETS] = '' end
        if missing and not a then missing[#missing + 1] = field end
        attempts[field] = a
      end
    end
  end
  local missing = {}
  read(attempts_key(shard_tag, this_day), fields, missing)
  local yesterday = attempts_key(shard_tag, this_day - 1)
  if #missing > 0 and redis.call('EXISTS', yesterday) == 1 then read(yesterday, missing) end
end

-- The counters that a request with terms has under limits: {limits, the field of its device, and that of its IP}; false
-- where the tier has no such rule. Windows of different lengths are counted apart.
local function counters(terms, limits)
  local device, ip = terms[TERMS_DEVICE], terms[TERMS_IP]
  return {
    limits,
    device and (limits.device_attempts < MAX_AMOUNT or limits.device_wallets < MAX_AMOUNT)
      and 'd' .. device .. limits.attempts_window,
    ip and limits.ip_attempts < MAX_AMOUNT and 'i' .. ip .. limits.attempts_window,
  }
end

-- Reads what the rules need of the batch at once. What turns out later to be needed too is read then.
function read_rules()
  local slots, fields, seen = {}, {}, {}
  for i = 1, request_count do
    local debit, terms = debits[i], attachments[i]
    local level = debit and terms and tier[debit]
    if level and level ~= 0 then
      local limits = limits_of(level) or corrupt('tier: missing')
      local mine = counters(terms, limits)
      counters_of[i] = mine
      for n = 2, 3 do
        local field = mine[n]
        if field and attempts[field] == nil then
          attempts[field] = false
          fields[#fields + 1] = field
        end
      end
      if terms[TERMS_DEVICE] and limits.new_device_amount < MAX_AMOUNT and not seen[debit] then
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
    return window * window_ms + ceil(window_ms * max(0, before + count - room_left) / max(before, 1)) + 1
  end
  return (window + 1) * window_ms + ceil(window_ms * (count - room_left) / count) + 1
end

-- Counts an attempt; returns how many there were before in the sliding window, and the counter.
local function count_attempt(field, limits)
  local window = limits.attempts_now
  if attempts[field] == nil then read_attempts({ field }) end
  local a = attempts[field]
  if not a then
    a = { 0, 0, 0, '', IS_NEW }
    attempts[field] = a
    changed_attempts[#changed_attempts + 1] = field
  elseif not a[ATTEMPTS_CHANGED] then
    a[ATTEMPTS_CHANGED] = true
    changed_attempts[#changed_attempts + 1] = field
  end
  if a[ATTEMPTS_WINDOW] ~= window then
    a[ATTEMPTS_BEFORE] = a[ATTEMPTS_WINDOW] == window - 1 and a[ATTEMPTS_COUNT] or 0
    a[ATTEMPTS_WINDOW], a[ATTEMPTS_COUNT] = window, 0
  end
  local count = a[ATTEMPTS_COUNT]
  a[ATTEMPTS_COUNT] = count + 1
  return a[ATTEMPTS_BEFORE] * limits.attempts_left / limits.attempts_window_ms + count, a
end

-- Counts a wallet of a device today; returns how many others there were, or nil if it was one of them.
local function count_device_wallet(a, id, limit)
  local wallets = a[ATTEMPTS_WALLETS]
  for at = 1, #wallets, 8 do
    if sub(wallets, at, at + 7) == id then return nil end
  end
  local used = #wallets / 8
  if used < limit and used < MAX_DEVICE_WALLETS then a[ATTEMPTS_WALLETS] = wallets .. id end
  return used
end

-- What the attempt under way found: what was used before it, and the counters; nil where no rule asks.
local device_used, device_counter, ip_used, ip_counter, wallets_used

-- Begins an attempt of a wallet with limits: counts it, whatever becomes of it. broken_rule judges it.
function begin_attempt(i, slot, limits, terms)
  device_used, ip_used, wallets_used = nil, nil, nil
  if not terms then return end
  local mine = counters_of[i]
  if not mine or mine[1] ~= limits then mine = counters(terms, limits) end -- its tier is new in this batch
  local device_field, ip_field = mine[2], mine[3]
  if device_field then
    device_used, device_counter = count_attempt(device_field, limits)
    wallets_used = count_device_wallet(device_counter, wallet_ids[slot], limits.device_wallets)
  end
  if ip_field then ip_used, ip_counter = count_attempt(ip_field, limits) end
end

-- The usage of a wallet, brought to this moment: counters of a day, hour or window that is over are moved or cleared.
local function usage_now(slot, limits)
  local u, window = usage[slot], limits.window_now
  if u[USAGE_DAY] ~= this_day then u[USAGE_DAY], u[USAGE_DAY_COUNT], u[USAGE_DAY_AMOUNT] = this_day, 0, 0 end
  if u[USAGE_HOUR] ~= this_hour then
    u[USAGE_HOUR_BEFORE] = u[USAGE_HOUR] == this_hour - 1 and u[USAGE_HOUR_AMOUNT] or 0
    u[USAGE_HOUR], u[USAGE_HOUR_AMOUNT] = this_hour, 0
  end
  if u[USAGE_WINDOW] ~= window then
    u[USAGE_WINDOW_BEFORE] = u[USAGE_WINDOW] == window - 1 and u[USAGE_WINDOW_COUNT] or 0
    u[USAGE_WINDOW], u[USAGE_WINDOW_COUNT] = window, 0
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

local function judge_amounts(u, limits, amount, single)
  if single > limits.max_amount and limits.max_amount < MAX_AMOUNT then breaks(limits, RULE_MAX_AMOUNT, 0, 0) end
  if u[USAGE_DAY_AMOUNT] + amount > limits.day_amount and limits.day_amount < MAX_AMOUNT then
    breaks(limits, RULE_DAY_AMOUNT, u[USAGE_DAY_AMOUNT], amount > limits.day_amount and 0 or (u[USAGE_DAY] + 1) * DAY_MS)
  end
  if u[USAGE_DAY_COUNT] + 1 > limits.day_count then
    breaks(limits, RULE_DAY_COUNT, u[USAGE_DAY_COUNT], limits.day_count < 1 and 0 or (u[USAGE_DAY] + 1) * DAY_MS)
  end
  local count = u[USAGE_WINDOW_BEFORE] * limits.window_left / limits.window_ms + u[USAGE_WINDOW_COUNT]
  if count + 1 > limits.window_count then
    breaks(limits, RULE_WINDOW_COUNT, ceil(count),
      retry_time(u[USAGE_WINDOW], limits.window_ms, u[USAGE_WINDOW_BEFORE], u[USAGE_WINDOW_COUNT], 1, limits.window_count))
  end
  local sum = u[USAGE_HOUR_BEFORE] * hour_left / HOUR_MS + u[USAGE_HOUR_AMOUNT]
  if sum + amount > limits.hour_amount and limits.hour_amount < MAX_AMOUNT then
    breaks(limits, RULE_HOUR_AMOUNT, ceil(sum),
      retry_time(u[USAGE_HOUR], HOUR_MS, u[USAGE_HOUR_BEFORE], u[USAGE_HOUR_AMOUNT], amount, limits.hour_amount))
  end
end

local function judge_attempts(u, limits)
  if device_used and device_used + 1 > limits.device_attempts then
    breaks(limits, RULE_DEVICE_ATTEMPTS, ceil(device_used), retry_time(device_counter[ATTEMPTS_WINDOW],
      limits.attempts_window_ms, device_counter[ATTEMPTS_BEFORE], device_counter[ATTEMPTS_COUNT], 1, limits.device_attempts))
  end
  if ip_used and ip_used + 1 > limits.ip_attempts then
    breaks(limits, RULE_IP_ATTEMPTS, ceil(ip_used), retry_time(ip_counter[ATTEMPTS_WINDOW],
      limits.attempts_window_ms, ip_counter[ATTEMPTS_BEFORE], ip_counter[ATTEMPTS_COUNT], 1, limits.ip_attempts))
  end
  if wallets_used and wallets_used >= limits.device_wallets then
    breaks(limits, RULE_DEVICE_WALLETS, wallets_used, limits.device_wallets < 1 and 0 or (u[USAGE_DAY] + 1) * DAY_MS)
  end
end

-- The rule that the attempt under way, a movement of amount, breaks; nil if none. single: what the largest single amount
-- is compared with, if that is more than amount. With it what was used, when to retry
-- (0: waiting does not help), and whether it goes to review.
function broken_rule(slot, limits, amount, device, single)
  local u = usage_now(slot, limits)
  broken = nil
  judge_amounts(u, limits, amount, single or amount)
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
  local list = known_devices[slot]
  if list and sub(list, -KNOWN_DEVICE_SIZE, -9) == device then return end
  local since_ms, at = known_device(slot, device)
  list = known_devices[slot]
  if at then list = sub(list, 1, at - 1) .. sub(list, at + KNOWN_DEVICE_SIZE) end
  if #list >= KNOWN_DEVICES * KNOWN_DEVICE_SIZE then list = sub(list, KNOWN_DEVICE_SIZE + 1) end
  known_devices[slot] = list .. pack(KNOWN_DEVICE_FORMAT, device, since_ms or now_ms)
  changed_devices[slot] = true
end

-- Counts an accepted movement, which broken_rule has judged. device: nil unless it was used successfully.
function count_usage(slot, limits, amount, device)
  local u = usage[slot]
  local of_day, of_hour = u[USAGE_DAY_AMOUNT] + amount, u[USAGE_HOUR_AMOUNT] + amount
  u[USAGE_DAY_AMOUNT] = of_day <= MAX_AMOUNT and of_day or MAX_AMOUNT
  u[USAGE_HOUR_AMOUNT] = of_hour <= MAX_AMOUNT and of_hour or MAX_AMOUNT
  u[USAGE_DAY_COUNT], u[USAGE_WINDOW_COUNT] = u[USAGE_DAY_COUNT] + 1, u[USAGE_WINDOW_COUNT] + 1
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

-- A day's counters go by themselves when the next day is over. most: how many a day may have; beyond that no new ones
-- are kept, so that nobody who invents devices can fill the memory or stop the payments of others.
local function write_attempts(most)
  if #changed_attempts == 0 then return end
  local key, changes, n = attempts_key(shard_tag, this_day), {}, 0
  local room_for_new = most - redis.call('HLEN', key)
  for at = 1, #changed_attempts do
    local field = changed_attempts[at]
    local a = attempts[field]
    if a[ATTEMPTS_CHANGED] == IS_NEW then room_for_new = room_for_new - 1 end
    if a[ATTEMPTS_CHANGED] ~= IS_NEW or room_for_new >= 0 then
      changes[n + 1] = field
      changes[n + 2] = pack(ATTEMPTS_FORMAT, a[ATTEMPTS_WINDOW], a[ATTEMPTS_BEFORE], a[ATTEMPTS_COUNT])
        .. a[ATTEMPTS_WALLETS]
      n = n + 2
    end
  end
  if n == 0 then return end
  call_in_chunks('HSET', key, changes, n)
  redis.call('PEXPIREAT', key, format('%.0f', (this_day + 2) * DAY_MS))
end

function write_rules(max_attempts)
  write_attempts(max_attempts)
  write_known_devices()
end

end
