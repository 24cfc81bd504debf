-- The fraud rules: what wallets of a tier may do. Tier 0 has no limits and costs nothing here.
-- A movement by a wallet with a tier is an attempt: the attempts of its device and its IP are counted whatever becomes
-- of it. What the wallet itself used (USAGE) is counted once it is accepted.
-- Sliding windows are two counters: what was counted in the window before is taken to be spread evenly over it, so the
-- estimate is off by at most that window's count.
local tiers, attempts, known_devices, changed_devices

local begin_rules, limits_of, read_rules, begin_attempt, broken_rule, count_usage, write_rules

do -- so that what only this file uses does not count against Lua's 200 locals

-- attempts[field] and known_devices[slot] are nil until they are read, once per call; an unused field is false.
function begin_rules()
  tiers, attempts, known_devices, changed_devices = {}, {}, {}, {}
end

-- The limits of a tier; nil if it has none.
function limits_of(number)
  local limits = tiers[number]
  if limits == nil then
    local packed = redis.call('HGET', tiers_key(shard_tag), pack('<H', number))
    if packed and #packed ~= TIER_LIMITS_SIZE then corrupt('tier: size') end
    limits = packed and unpack_limits(packed, corrupt) or false
    tiers[number] = limits
  end
  return limits or nil
end

local function unpack_known(packed)
  if #packed % KNOWN_DEVICE_SIZE ~= 0 or #packed > KNOWN_DEVICES * KNOWN_DEVICE_SIZE then corrupt('known: size') end
  local list = {}
  for at = 1, #packed, KNOWN_DEVICE_SIZE do
    local device, since_ms = unpack_from(KNOWN_DEVICE_FORMAT, packed, at)
    if not is_count(since_ms) then corrupt('known: since_ms') end
    list[#list + 1] = { device = device, since_ms = since_ms }
  end
  return list
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
      known_devices[slots[n]] = found[j] and unpack_known(found[j]) or {}
    end
  end
  check_missing(missing, #missing, 'known')
end

local function attempts_field(kind, digest, window_ms) return kind .. digest .. pack('<d', window_ms) end

-- Reads the counters of attempts under fields: those of today, and of yesterday where today has none yet.
local function read_attempts(fields)
  local day = floor(now_ms / DAY_MS)
  local found = {}
  for n = 1, #fields do attempts[fields[n]] = false end
  read_fields(attempts_key(shard_tag, day - 1), fields, #fields, found)
  for field in pairs(found) do
    if sub(field, 1, 1) == 'w' then found[field] = nil end -- wallets are counted by the day
  end
  read_fields(attempts_key(shard_tag, day), fields, #fields, found)
  for field, packed in pairs(found) do
    local a = { packed = packed }
    if sub(field, 1, 1) == 'w' then
      if #packed % 8 ~= 0 or #packed > 8 * MAX_DEVICE_WALLETS then corrupt('attempts: size') end
    else
      if #packed ~= ATTEMPTS_SIZE then corrupt('attempts: size') end
      a.window, a.before, a.count = unpack_from(ATTEMPTS_FORMAT, packed)
      if not (is_count(a.window) and is_count(a.before) and is_count(a.count)) then corrupt('attempts: count') end
    end
    attempts[field] = a
  end
end

-- Reads what the rules need of the batch at once. What turns out later to be needed too is read then.
function read_rules()
  local slots, fields, seen_slot, seen_field = {}, {}, {}, {}
  local function need(field)
    if not seen_field[field] then
      seen_field[field] = true
      fields[#fields + 1] = field
    end
  end
  for i = 1, request_count do
    local debit = debits[i]
    local level = debit and tier[debit]
    if level and level ~= 0 then
      local limits = limits_of(level) or corrupt('tier: missing')
      local terms = attachments[i]
      local device, ip = terms and terms.device, terms and terms.ip
      if device then
        if limits.device_attempts < MAX_AMOUNT then need(attempts_field('d', device, limits.attempts_window_ms)) end
        if limits.device_wallets < MAX_AMOUNT then need('w' .. device) end
        if limits.new_device_amount < MAX_AMOUNT and not seen_slot[debit] then
          seen_slot[debit] = true
          slots[#slots + 1] = debit
        end
      end
      if ip and limits.ip_attempts < MAX_AMOUNT then need(attempts_field('i', ip, limits.attempts_window_ms)) end
    end
  end
  if #slots > 0 then read_known_devices(slots) end
  if #fields > 0 then read_attempts(fields) end
end

-- What was counted in the window that ends now. elapsed: the share of the current window that is over.
local function estimate(before, count, elapsed) return before * (1 - elapsed) + count end

-- When a sliding count of before and count will have room for one more amount within limit; 0 if never.
local function retry_time(window, window_ms, before, count, amount, limit)
  local room_left = limit - amount
  if room_left < 0 then return 0 end
  if count <= room_left then -- enough of the window before has to slide out
    return ceil((window + max(0, 1 - (room_left - count) / max(before, 1))) * window_ms)
  end
  return ceil((window + 1 + max(0, 1 - room_left / count)) * window_ms)
end

-- Counts an attempt; returns how many there were before in the sliding window, and the counter.
local function count_attempt(kind, digest, window_ms)
  local field = attempts_field(kind, digest, window_ms)
  if attempts[field] == nil then read_attempts({ field }) end
  local a = attempts[field] or { window = 0, before = 0, count = 0 }
  attempts[field] = a
  local window = floor(now_ms / window_ms)
  if a.window ~= window then
    a.before = a.window == window - 1 and a.count or 0
    a.window, a.count = window, 0
  end
  local used = estimate(a.before, a.count, now_ms / window_ms - window)
  a.count, a.changed = a.count + 1, true
  return used, a
end

-- Counts a wallet of a device today; returns how many others there were, or nil if it was one of them.
local function count_device_wallet(device, id, limit)
  local field = 'w' .. device
  if attempts[field] == nil then read_attempts({ field }) end
  local a = attempts[field] or { packed = '' }
  attempts[field] = a
  for at = 1, #a.packed, 8 do
    if sub(a.packed, at, at + 7) == id then return nil end
  end
  local used = #a.packed / 8
  if used < limit then a.packed, a.changed = a.packed .. id, true end
  return used
end

-- Begins an attempt of a wallet with limits: counts it, and returns what it found, for broken_rule.
function begin_attempt(slot, limits, terms)
  local try = {}
  local device, ip = terms and terms.device, terms and terms.ip
  if device and limits.device_attempts < MAX_AMOUNT then
    try.device_used, try.device_counter = count_attempt('d', device, limits.attempts_window_ms)
  end
  if ip and limits.ip_attempts < MAX_AMOUNT then
    try.ip_used, try.ip_counter = count_attempt('i', ip, limits.attempts_window_ms)
  end
  if device and limits.device_wallets < MAX_AMOUNT then
    try.wallets_used = count_device_wallet(device, wallet_ids[slot], limits.device_wallets)
  end
  return try
end

-- The usage of a wallet, brought to this moment: counters of a day, hour or window that is over are moved or cleared.
local function usage_now(slot, limits)
  local u = usage[slot]
  local day, hour, window = floor(now_ms / DAY_MS), floor(now_ms / HOUR_MS),
    floor(now_ms / limits.window_ms)
  if u.day ~= day then u.day, u.day_count, u.day_amount = day, 0, 0 end
  if u.hour ~= hour then
    u.hour_before = u.hour == hour - 1 and u.hour_amount or 0
    u.hour, u.hour_amount = hour, 0
  end
  if u.window ~= window then
    u.window_before = u.window == window - 1 and u.window_count or 0
    u.window, u.window_count = window, 0
  end
  return u
end

local function known_device(slot, device)
  if not known_devices[slot] then read_known_devices({ slot }) end
  local list = known_devices[slot]
  for n = #list, 1, -1 do
    if list[n].device == device then return list[n], n end
  end
end

-- The rule that a movement of amount breaks, or nil: its number, what was used, when to retry (0: waiting does not
-- help), and whether it goes to review. The lowest number among the declines, else among the reviews.
function broken_rule(slot, limits, try, amount, device)
  local u = usage_now(slot, limits)
  local rule, used, retry, reviewed
  local function breaks(number, was_used, at)
    local review = floor(limits.review / 2 ^ number) % 2 == 1
    if rule == nil or reviewed and not review then rule, used, retry, reviewed = number, was_used, at, review end
  end
  local tomorrow = (u.day + 1) * DAY_MS
  if amount > limits.max_amount then breaks(RULE_MAX_AMOUNT, 0, 0) end
  if u.day_amount + amount > limits.day_amount then
    breaks(RULE_DAY_AMOUNT, u.day_amount, amount > limits.day_amount and 0 or tomorrow)
  end
  if u.day_count + 1 > limits.day_count then
    breaks(RULE_DAY_COUNT, u.day_count, limits.day_count < 1 and 0 or tomorrow)
  end
  if limits.window_count < MAX_AMOUNT then
    local count = estimate(u.window_before, u.window_count, now_ms / limits.window_ms - u.window)
    if count + 1 > limits.window_count then
      breaks(RULE_WINDOW_COUNT, ceil(count),
        retry_time(u.window, limits.window_ms, u.window_before, u.window_count, 1, limits.window_count))
    end
  end
  if limits.hour_amount < MAX_AMOUNT then
    local sum = estimate(u.hour_before, u.hour_amount, now_ms / HOUR_MS - u.hour)
    if sum + amount > limits.hour_amount then
      breaks(RULE_HOUR_AMOUNT, ceil(sum),
        retry_time(u.hour, HOUR_MS, u.hour_before, u.hour_amount, amount, limits.hour_amount))
    end
  end
  if try.device_used and try.device_used + 1 > limits.device_attempts then
    local a = try.device_counter
    breaks(RULE_DEVICE_ATTEMPTS, ceil(try.device_used),
      retry_time(a.window, limits.attempts_window_ms, a.before, a.count, 1, limits.device_attempts))
  end
  if try.ip_used and try.ip_used + 1 > limits.ip_attempts then
    local a = try.ip_counter
    breaks(RULE_IP_ATTEMPTS, ceil(try.ip_used),
      retry_time(a.window, limits.attempts_window_ms, a.before, a.count, 1, limits.ip_attempts))
  end
  if try.wallets_used and try.wallets_used >= limits.device_wallets then
    breaks(RULE_DEVICE_WALLETS, try.wallets_used, tomorrow)
  end
  if device and amount > limits.new_device_amount then
    local seen = known_device(slot, device)
    if not seen then
      breaks(RULE_NEW_DEVICE, 0, 0)
    elseif now_ms < seen.since_ms + limits.new_device_ms then
      breaks(RULE_NEW_DEVICE, 0, seen.since_ms + limits.new_device_ms)
    end
  end
  return rule, used, retry, reviewed
end

-- Counts an accepted movement. device: nil unless it was used successfully.
function count_usage(slot, limits, amount, device)
  local u = usage_now(slot, limits)
  u.day_amount, u.hour_amount = u.day_amount + amount, u.hour_amount + amount
  u.day_count, u.window_count = u.day_count + 1, u.window_count + 1
  if device and limits.new_device_amount < MAX_AMOUNT then
    local seen, n = known_device(slot, device)
    local list = known_devices[slot]
    if n ~= #list or n == nil then
      if n then table.remove(list, n) end
      list[#list + 1] = seen or { device = device, since_ms = now_ms }
      if #list > KNOWN_DEVICES then table.remove(list, 1) end
      changed_devices[slot] = true
    end
  end
end

local function write_known_devices()
  local changes = {}
  for slot in pairs(changed_devices) do
    local packed = {}
    for n, seen in ipairs(known_devices[slot]) do
      packed[n] = pack(KNOWN_DEVICE_FORMAT, seen.device, seen.since_ms)
    end
    changes[#changes + 1] = known_prefix(shard_tag) .. wallet_ids[slot]
    changes[#changes + 1] = concat(packed)
  end
  for from = 1, #changes, CHUNK do redis.call('MSET', unpack(changes, from, min(from + CHUNK - 1, #changes))) end
end

-- A day's counters go by themselves when the next day is over.
local function write_attempts()
  local day, changes = floor(now_ms / DAY_MS), {}
  local key = attempts_key(shard_tag, day)
  for field, a in pairs(attempts) do
    if a.changed then
      changes[#changes + 1] = field
      changes[#changes + 1] = a.window and pack(ATTEMPTS_FORMAT, a.window, a.before, a.count) or a.packed
    end
  end
  if #changes == 0 then return end
  call_in_chunks('HSET', key, changes, #changes)
  redis.call('PEXPIREAT', key, format('%.0f', (day + 2) * DAY_MS))
end

function write_rules()
  write_attempts()
  write_known_devices()
end

end
