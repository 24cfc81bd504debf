-- The fraud rules: what wallets of a tier may do. Tier 0 has no limits and costs nothing here.
-- A movement by a wallet with a tier is an attempt: the attempts of its device and its IP are counted whatever becomes
-- of it. What the wallet itself used (USAGE) is counted once it is accepted.
-- Sliding windows are two counters: what was counted in the window before is taken to be spread evenly over it, so the
-- estimate is off by at most that window's count.
local tiers, known_devices, changed_devices

local begin_rules, placed_in_time, limits_of, read_rules, begin_attempt, broken_rule, count_usage, write_rules
local is_within_limits

do -- so that what only this file uses does not count against Lua's 200 locals

-- The day and the hour since 1970 UTC, and the milliseconds of the hour that are still to come.
local this_day, this_hour, hour_left

-- The counters of attempts of a call, by numbers: the fields that they are kept under, their numbers by field, what is
-- kept (packed ATTEMPTS and, behind a device's, the ids of the wallets that used it today; false if there is none), and
-- what became of it: IS_NEW if there was none, neither today nor yesterday.
local counter_fields, counters_by_field, counters, counter_changes, counter_count = {}, nil, {}, {}, 0
local IS_CHANGED, IS_NEW = 1, 2

-- Of requests that say where they come from, by a wallet with limits: these, and the numbers of the counters of device
-- and IP, nil where the tier has no such rule. Windows of different lengths are counted apart.
local limits_at, device_counters, ip_counters

local NONE = {}

-- known_devices[slot] (packed KNOWN_DEVICEs) is nil, or false, until it is read.
function begin_rules()
  tiers, known_devices, changed_devices = {}, {}, {}
  counters_by_field, counter_count = nil, 0
  limits_at, device_counters, ip_counters = NONE, NONE, NONE
  this_day, this_hour = floor(now_ms / DAY_MS), floor(now_ms / HOUR_MS)
  hour_left = HOUR_MS - now_ms % HOUR_MS
end

-- The limits, with the number of each of their windows that is now, and the milliseconds of it that are still to come:
-- the share of the window before that still counts is multiplied before it is divided, so that whole numbers stay whole.
function placed_in_time(limits)
  local window_ms, attempts_ms = limits.window_ms, limits.attempts_window_ms
  limits.window_now, limits.attempts_now = floor(now_ms / window_ms), floor(now_ms / attempts_ms)
  limits.window_left, limits.attempts_left = window_ms - now_ms % window_ms, attempts_ms - now_ms % attempts_ms
  limits.counts_devices = limits.device_attempts < MAX_AMOUNT or limits.device_wallets < MAX_AMOUNT
  limits.counts_ips = limits.ip_attempts < MAX_AMOUNT
  limits.remembers_devices = limits.new_device_amount < MAX_AMOUNT
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

-- Reads the devices that the wallets of slots[1..count] know.
local function read_known_devices(slots, count)
  local keys, missing, n, prefix = {}, {}, 0, known_prefix(shard_tag)
  for at = 1, count do keys[at] = prefix .. wallet_ids[slots[at]] end
  for from = 1, count, CHUNK do
    local found = redis.call('MGET', unpack(keys, from, min(from + CHUNK - 1, count)))
    for j = 1, #found do
      local list, at = found[j], from + j - 1
      if not list then
        n = n + 1
        list, missing[n] = '', keys[at]
      elseif #list % KNOWN_DEVICE_SIZE ~= 0 or #list > KNOWN_DEVICES * KNOWN_DEVICE_SIZE then
        corrupt('known: size')
      end
      known_devices[slots[at]] = list
    end
  end
  check_missing(missing, n, 'known')
end

local function known_devices_of(slot)
  if not known_devices[slot] then read_known_devices({ slot }, 1) end
  return known_devices[slot]
end

local function check_attempts(window, before, count, size)
  if window % 1 + before % 1 + count % 1 ~= 0 or window < 0 or before < 0 or count < 0
      or max(window, before, count) > MAX_AMOUNT then
    corrupt('attempts: count')
  end
  if (size - ATTEMPTS_SIZE) % 8 ~= 0 or size > ATTEMPTS_SIZE + 8 * MAX_DEVICE_WALLETS then corrupt('attempts: size') end
end

-- Reads counters first..last: those of today, and soon after midnight of yesterday where today has none yet, since the
-- window before may lie there. The wallets of a device are counted by the day.
local function read_counters(first, last)
  local fields, missing = counter_fields, nil
  local key = attempts_key(shard_tag, this_day)
  for from = first, last, CHUNK do
    local found = redis.call('HMGET', key, unpack(fields, from, min(from + CHUNK - 1, last)))
    for j = 1, #found do
      local packed, n = found[j], from + j - 1
      counters[n], counter_changes[n] = packed, false
      if not packed then
        missing = missing or {}
        missing[#missing + 1] = fields[n]
      elseif #packed < ATTEMPTS_SIZE then
        corrupt('attempts: size')
      end
    end
  end
  if not missing then return end
  local yesterday, before = attempts_key(shard_tag, this_day - 1), {}
  if redis.call('EXISTS', yesterday) == 0 then return end
  read_fields(yesterday, missing, #missing, before)
  for field, packed in pairs(before) do
    if #packed < ATTEMPTS_SIZE then corrupt('attempts: size') end
    counters[counters_by_field[field]] = sub(packed, 1, ATTEMPTS_SIZE)
  end
end

-- The number of the counter under a field, read or to be read.
local function counter_of(field)
  local n = counters_by_field[field]
  if not n then
    n = counter_count + 1
    counter_count, counter_fields[n], counters_by_field[field] = n, field, n
  end
  return n
end

-- The same, read.
local function read_counter(field)
  counters_by_field = counters_by_field or {}
  local n = counters_by_field[field]
  if not n then
    n = counter_of(field)
    read_counters(n, n)
  end
  return n
end

-- Reads what the rules need of the batch at once. What turns out later to be needed too is read then.
function read_rules()
  local devices, ips, debits, tier, tiers = devices, ips, debits, tier, tiers
  local limits_of_requests, of_devices, of_ips = {}, {}, {}
  local known_devices, slots, slot_count = known_devices, {}, 0
  counters_by_field, limits_at, device_counters, ip_counters = {}, limits_of_requests, of_devices, of_ips
  for i = 1, request_count do
    local device, ip, debit = devices[i], ips[i], debits[i]
    local level = (device or ip) and debit and tier[debit]
    if level and level ~= 0 then
      local limits = tiers[level] or limits_of(level) or corrupt('tier: missing')
      limits_of_requests[i] = limits
      if device and limits.counts_devices then of_devices[i] = counter_of('d' .. device .. limits.attempts_window) end
      if ip and limits.counts_ips then of_ips[i] = counter_of('i' .. ip .. limits.attempts_window) end
      if device and limits.remembers_devices and known_devices[debit] == nil then
        slot_count = slot_count + 1
        known_devices[debit], slots[slot_count] = false, debit
      end
    end
  end
  if slot_count > 0 then read_known_devices(slots, slot_count) end
  if counter_count > 0 then read_counters(1, counter_count) end
end

-- A wallet's USAGE as a list, brought to this moment: counters of a day, hour or window that is over are moved or
-- cleared.
local function usage_now(slot, limits)
  local packed, window = usage[slot], limits.window_now
  local u = { unpack_from(USAGE_FORMAT, packed, #packed - (USAGE_SIZE - 1)) }
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

do

-- The limits that is_within_limits() had last.
local last_limits, max_amount, day_limit, day_count_limit, window_limit, window_ms, window_now, window_left
local hour_limit, attempts_ms, attempts_now, attempts_left, device_limit, ip_limit, device_wallets
local new_device_amount, new_device_ms, remembers_devices

local function get_ready(limits)
  last_limits = limits
  max_amount, day_limit, day_count_limit = limits.max_amount, limits.day_amount, limits.day_count
  window_limit, window_ms, window_now = limits.window_count, limits.window_ms, limits.window_now
  window_left, hour_limit, attempts_ms = limits.window_left, limits.hour_amount, limits.attempts_window_ms
  attempts_now, attempts_left, device_limit = limits.attempts_now, limits.attempts_left, limits.device_attempts
  ip_limit, device_wallets, new_device_amount = limits.ip_attempts, limits.device_wallets, limits.new_device_amount
  new_device_ms, remembers_devices = limits.new_device_ms, limits.remembers_devices
end

-- Whether a movement between wallets of which one has a tier is surely allowed by the rules. If so, it is counted: the
-- caller accepts it. If not, nothing has changed, and move() has to judge it. What is unusual (a debt that may be paid
-- now, another device than the last, a damaged counter) is left to it too. The checks are written out, and all of a record is unpacked into
-- registers and packed again, because this runs for every such movement.
function is_within_limits(i, debit, credit, amount)
  if usage[credit] and debt_of(credit) > 0 then return false end
  local level = tier[debit]
  if level == 0 then return true end
  local limits, unpack_from = tiers[level] or limits_of(level), unpack_from
  if not limits then return false end
  if limits ~= last_limits then get_ready(limits) end
  local packed = usage[debit]
  local day, day_count, hour, window_before, window_count, window, day_amount, hour_before, hour_amount, debt =
    unpack_from(USAGE_FORMAT, packed, #packed - (USAGE_SIZE - 1))
  if day ~= this_day then day_count, day_amount = 0, 0 end
  if hour ~= this_hour then hour_before, hour_amount = hour == this_hour - 1 and hour_amount or 0, 0 end
  if window ~= window_now then window_before, window_count = window == window_now - 1 and window_count or 0, 0 end
  day_count, window_count = day_count + 1, window_count + 1
  day_amount, hour_amount = day_amount + amount, hour_amount + amount
  if amount > max_amount or day_amount > day_limit or day_count > day_count_limit
      or window_before * window_left / window_ms + window_count > window_limit
      or hour_before * hour_left / HOUR_MS + hour_amount > hour_limit then
    return false
  end
  if originated then
    local device, ip = devices[i], ips[i]
    if device or ip then
      if limits_at[i] ~= limits then return false end -- the wallet's tier or its limits changed since they were read
      if device and remembers_devices then
        local list = known_devices[debit]
        if not list or list == '' then return false end
        local last_device, since_ms = unpack_from(KNOWN_DEVICE_FORMAT, list, #list - (KNOWN_DEVICE_SIZE - 1))
        if device ~= last_device or amount > new_device_amount
            and not (since_ms % 1 == 0 and since_ms >= 0 and now_ms >= since_ms + new_device_ms) then
          return false
        end
      end
      local of_device, of_ip, device_packed, ip_packed = device_counters[i], ip_counters[i], nil, nil
      if of_device then
        local kept, id = counters[of_device], wallet_ids[debit]
        local at, before, count, other = attempts_now, 0, 0, nil
        if kept then
          if #kept ~= ATTEMPTS_SIZE + 8 then return false end
          at, before, count, other = unpack_from(ATTEMPTS_OF_ONE_FORMAT, kept)
          if other ~= id or not (at % 1 + before % 1 + count % 1 == 0 and at >= 0 and before >= 0 and count >= 0
              and at <= MAX_AMOUNT and before <= MAX_AMOUNT and count <= MAX_AMOUNT) then
            return false
          end
          if at ~= attempts_now then before, count = at == attempts_now - 1 and count or 0, 0 end
        elseif device_wallets < 1 then
          return false
        end
        count = count + 1
        if before * attempts_left / attempts_ms + count > device_limit then return false end
        device_packed = pack(ATTEMPTS_OF_ONE_FORMAT, attempts_now, before, count, id)
      end
      if of_ip then
        local kept = counters[of_ip]
        local at, before, count = attempts_now, 0, 0
        if kept then
          if #kept ~= ATTEMPTS_SIZE then return false end
          at, before, count = unpack_from(ATTEMPTS_FORMAT, kept)
          if not (at % 1 + before % 1 + count % 1 == 0 and at >= 0 and before >= 0 and count >= 0
              and at <= MAX_AMOUNT and before <= MAX_AMOUNT and count <= MAX_AMOUNT) then
            return false
          end
          if at ~= attempts_now then before, count = at == attempts_now - 1 and count or 0, 0 end
        end
        count = count + 1
        if before * attempts_left / attempts_ms + count > ip_limit then return false end
        ip_packed = pack(ATTEMPTS_FORMAT, attempts_now, before, count)
      end
      if device_packed then
        counter_changes[of_device] = counter_changes[of_device] or counters[of_device] and IS_CHANGED or IS_NEW
        counters[of_device] = device_packed
      end
      if ip_packed then
        counter_changes[of_ip] = counter_changes[of_ip] or counters[of_ip] and IS_CHANGED or IS_NEW
        counters[of_ip] = ip_packed
      end
    end
  end
  usage[debit] = pack(USAGE_FORMAT, this_day, day_count, this_hour, window_before, window_count, window_now, day_amount,
    hour_before, hour_amount, debt)
  return true
end

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

-- What the attempt under way found: what was used before it, and the counters' windows; nil where no rule asks.
local device_used, device_before, device_count, ip_used, ip_before, ip_count, wallets_used

-- Counts a wallet of a device today. wallets: the ids of those that used it. Returns them, and how many others there
-- were, or nil if it was one of them.
local function with_wallet(wallets, id, limit)
  for at = 1, #wallets, 8 do
    if sub(wallets, at, at + 7) == id then return wallets, nil end
  end
  local used = #wallets / 8
  return used < limit and used < MAX_DEVICE_WALLETS and wallets .. id or wallets, used
end

-- Counts an attempt. id: the wallet's, of a device. Returns how many there were before in the sliding window, what was
-- counted in the window before and in this one, and with_wallet's number.
local function count_attempt(field, limits, id)
  local n, window = read_counter(field), limits.attempts_now
  local kept = counters[n]
  local at, before, count, wallets, others = window, 0, 0, '', nil
  if kept then
    at, before, count = unpack_from(ATTEMPTS_FORMAT, kept)
    check_attempts(at, before, count, #kept)
    wallets = sub(kept, ATTEMPTS_SIZE + 1)
    if at ~= window then before, count = at == window - 1 and count or 0, 0 end
  end
  if id then wallets, others = with_wallet(wallets, id, limits.device_wallets) end
  if not counter_changes[n] then counter_changes[n] = kept and IS_CHANGED or IS_NEW end
  counters[n] = pack(ATTEMPTS_FORMAT, window, before, count + 1) .. wallets
  return before * limits.attempts_left / limits.attempts_window_ms + count, before, count + 1, others
end

-- Begins an attempt of a wallet with limits: counts it, whatever becomes of it. broken_rule judges it.
function begin_attempt(i, slot, limits)
  device_used, ip_used, wallets_used = nil, nil, nil
  local device, ip = devices[i], ips[i]
  if device and limits.counts_devices then
    device_used, device_before, device_count, wallets_used =
      count_attempt('d' .. device .. limits.attempts_window, limits, wallet_ids[slot])
  end
  if ip and limits.counts_ips then
    ip_used, ip_before, ip_count = count_attempt('i' .. ip .. limits.attempts_window, limits)
  end
end

-- When the wallet first used the device with success, and where it stands in the list; nil if it is not there.
local function known_device(slot, device)
  local list = known_devices_of(slot)
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
    breaks(limits, RULE_DEVICE_ATTEMPTS, ceil(device_used), retry_time(limits.attempts_now,
      limits.attempts_window_ms, device_before, device_count, 1, limits.device_attempts))
  end
  if ip_used and ip_used + 1 > limits.ip_attempts then
    breaks(limits, RULE_IP_ATTEMPTS, ceil(ip_used), retry_time(limits.attempts_now,
      limits.attempts_window_ms, ip_before, ip_count, 1, limits.ip_attempts))
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
  local list = known_devices_of(slot)
  if sub(list, -KNOWN_DEVICE_SIZE, -9) == device then return end
  local since_ms, at = known_device(slot, device)
  if at then list = sub(list, 1, at - 1) .. sub(list, at + KNOWN_DEVICE_SIZE) end
  if #list >= KNOWN_DEVICES * KNOWN_DEVICE_SIZE then list = sub(list, KNOWN_DEVICE_SIZE + 1) end
  known_devices[slot] = list .. pack(KNOWN_DEVICE_FORMAT, device, since_ms or now_ms)
  changed_devices[slot] = true
end

-- Counts an accepted movement, which broken_rule has judged. device: nil unless it was used successfully.
function count_usage(slot, limits, amount, device)
  local u = usage_now(slot, limits)
  u[USAGE_DAY_AMOUNT] = min(u[USAGE_DAY_AMOUNT] + amount, MAX_AMOUNT)
  u[USAGE_HOUR_AMOUNT] = min(u[USAGE_HOUR_AMOUNT] + amount, MAX_AMOUNT)
  u[USAGE_DAY_COUNT], u[USAGE_WINDOW_COUNT] = u[USAGE_DAY_COUNT] + 1, u[USAGE_WINDOW_COUNT] + 1
  if device and limits.remembers_devices then remember_device(slot, device) end
  usage[slot] = pack(USAGE_FORMAT, unpack(u))
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
  local key, changes, n = attempts_key(shard_tag, this_day), {}, 0
  local room_for_new = most - redis.call('HLEN', key)
  for at = 1, counter_count do
    local change = counter_changes[at]
    if change == IS_NEW then room_for_new = room_for_new - 1 end
    if change == IS_CHANGED or change == IS_NEW and room_for_new >= 0 then
      changes[n + 1], changes[n + 2] = counter_fields[at], counters[at]
      n = n + 2
    end
  end
  if n == 0 then return end
  call_in_chunks('HSET', key, changes, n)
  redis.call('PEXPIREAT', key, format('%.0f', (this_day + 2) * DAY_MS))
end

function write_rules(max_attempts)
  if counter_count > 0 then write_attempts(max_attempts) end
  if next(changed_devices) then write_known_devices() end
end

end
