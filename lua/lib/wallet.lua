-- The wallets of a call, as tables by slot number. Redis runs one function at a time, so they are locals of the
-- library, which Lua reaches fastest. Most stay from call to call, since growing them anew is much of what a short call
-- costs: whatever is in them beyond wallet_count, or was not set by this call's read_wallets(), is of another call.
-- dirty: whether the wallet has to be written. usage: of wallets in a tier, a string that ends with their packed USAGE.
local wallet_keys, wallet_ids, dirty, slot_of_id, wallet_count = {}, {}, {}, nil, 0
local flags, tier, available, locked, version, currency, overdraft, usage = {}, {}, {}, {}, {}, {}, {}, nil

-- Begins a call that reads wallets.
local function new_wallets()
  slot_of_id, usage, wallet_count = {}, {}, 0
end

-- The slot of a wallet of the shard, by its id of 8 bytes.
local function slot_of(prefix, id)
  local slot = slot_of_id[id]
  if not slot then
    slot = wallet_count + 1
    wallet_count = slot
    slot_of_id[id], wallet_ids[slot], wallet_keys[slot], dirty[slot] = slot, id, prefix .. id, false
  end
  return slot
end

-- Says which field of a record is wrong; only called once one is known to be.
local function wallet_fault(layout, flag, level, available_minor, locked_minor, number, limit)
  if layout ~= LAYOUT_VERSION then corrupt('wallet: layout') end
  if flag > ALL_WALLET_FLAGS or flag % 2 == 1 and flag ~= FLAG_EXTERNAL then corrupt('wallet: flags') end
  if level ~= 0 then corrupt('wallet: tier') end
  if not is_whole(available_minor) then corrupt('wallet: available') end
  if not is_count(locked_minor) then corrupt('wallet: locked') end
  if not is_count(number) or number < 1 then corrupt('wallet: version') end
  if not is_count(limit) then corrupt('wallet: overdraft_limit') end
  corrupt('wallet')
end

local function is_currency(code) return find(code, '^[A-Z0-9][A-Z0-9][A-Z0-9]+%z*$') ~= nil end

-- Ends the call if the USAGE behind a wallet's record is damaged.
local function check_usage(packed)
  local _, _, _, _, _, window, day_amount, hour_before, hour_amount, debt =
    unpack_from(USAGE_FORMAT, packed, WALLET_SIZE + 1)
  -- The remainders are never negative, so their sum is 0 only if each is; NaN and the infinities make it NaN.
  if window % 1 + day_amount % 1 + hour_before % 1 + hour_amount % 1 + debt % 1 ~= 0
      or window < 0 or day_amount < 0 or hour_before < 0 or hour_amount < 0 or debt < 0
      or max(window, day_amount, hour_before, hour_amount, debt) > MAX_AMOUNT then
    corrupt('wallet: usage')
  end
end

-- The debt of a chargeback that is set aside: by so much the wallet may be lower.
local function debt_of(slot)
  local u = usage[slot]
  return u and unpack_from('<d', u, #u - 7) or 0
end

local function set_debt(slot, debt)
  usage[slot] = sub(usage[slot], 1, -9) .. pack('<d', debt)
end

local function pack_wallet(slot)
  local u = usage[slot]
  if not u then
    return pack(WALLET_FORMAT, LAYOUT_VERSION, flags[slot], tier[slot], available[slot], locked[slot], version[slot],
      currency[slot], overdraft[slot])
  end
  if #u > USAGE_SIZE then u = sub(u, -USAGE_SIZE) end
  return pack(WALLET_AND_USAGE_FORMAT, LAYOUT_VERSION, flags[slot], tier[slot], available[slot], locked[slot],
    version[slot], currency[slot], overdraft[slot], u)
end

-- Adds key and packed wallet of each of slots[1..count] to the arguments of an MSET, from position n on.
local function add_packed_wallets(arguments, n, slots, count)
  local flags, tier, available, locked, version = flags, tier, available, locked, version
  local currency, overdraft, usage, keys, pack = currency, overdraft, usage, wallet_keys, pack
  for i = 1, count do
    local slot = slots[i]
    arguments[n + 1] = keys[slot]
    arguments[n + 2] = usage[slot] and pack_wallet(slot) or pack(WALLET_FORMAT, LAYOUT_VERSION, flags[slot],
      tier[slot], available[slot], locked[slot], version[slot], currency[slot], overdraft[slot])
    n = n + 2
  end
  return n
end

-- MGET answers nil for a key of another type too, which a write would overwrite: so what is missing must not exist.
local function check_missing(keys, count, what)
  for from = 1, count, CHUNK do
    if redis.call('EXISTS', unpack(keys, from, min(from + CHUNK - 1, count))) > 0 then
      corrupt(what .. ': not a string')
    end
  end
end

-- Reads the wallets of the slots up to wallet_count, distrusting each field; the checks are written out, and all names
-- are local, because this runs for every wallet of every batch.
local function read_wallets()
  local flags, tier, available, locked, version = flags, tier, available, locked, version
  local currency, overdraft, usage, keys = currency, overdraft, usage, wallet_keys
  local unpack_from, valid_currencies, missing, n = unpack_from, {}, {}, 0
  for from = 1, wallet_count, CHUNK do
    local to = min(from + CHUNK - 1, wallet_count)
    local found = redis.call('MGET', unpack(keys, from, to))
    for slot = from, to do
      local packed = found[slot - from + 1]
      if packed then
        local size = #packed
        if size ~= WALLET_SIZE and size ~= WALLET_AND_USAGE_SIZE then corrupt('wallet: size') end
        local layout, flag, level, a, l, v, code, o = unpack_from(WALLET_FORMAT, packed)
        if layout ~= LAYOUT_VERSION or flag > FLAG_EXTERNAL and (flag > ALL_WALLET_FLAGS or flag % 2 == 1)
            or (level ~= 0) ~= (size > WALLET_SIZE)
            or not (a % 1 == 0 and a <= MAX_AMOUNT and a >= -MAX_AMOUNT
              and l % 1 == 0 and l >= 0 and l <= MAX_AMOUNT
              and v % 1 == 0 and v >= 1 and v <= MAX_AMOUNT
              and o % 1 == 0 and o >= 0 and o <= MAX_AMOUNT) then
          wallet_fault(layout, flag, (level ~= 0) ~= (size > WALLET_SIZE) and 1 or 0, a, l, v, o)
        end
        if not valid_currencies[code] then
          if not is_currency(code) then corrupt('wallet: currency') end
          valid_currencies[code] = true
        end
        flags[slot], tier[slot], available[slot], locked[slot] = flag, level, a, l
        version[slot], currency[slot], overdraft[slot] = v, code, o
        if level ~= 0 then
          check_usage(packed)
          usage[slot] = packed
        end
      else
        flags[slot], tier[slot], available[slot], locked[slot] = nil, nil, nil, nil
        version[slot], currency[slot], overdraft[slot] = nil, nil, nil
        n = n + 1
        missing[n] = keys[slot]
      end
    end
  end
  check_missing(missing, n, 'wallet')
end
