-- Reads packed wallets of a shard, distrusting each field: a damaged record ends the call before any write.
-- The tables of a batch of wallets; slot numbers are given by the caller.
local function new_wallets()
  return { flags = {}, tier = {}, available = {}, locked = {}, version = {}, currency = {}, overdraft = {} }
end

-- Says which field of a record is wrong; only called once one is known to be.
local function wallet_fault(layout, flags, tier, available, locked, version, overdraft)
  if layout ~= LAYOUT_VERSION then corrupt('wallet: layout') end
  if flags > FLAG_EXTERNAL then corrupt('wallet: flags') end
  if tier ~= 0 then corrupt('wallet: tier') end
  if not is_whole(available) then corrupt('wallet: available') end
  if not is_count(locked) then corrupt('wallet: locked') end
  if not is_count(version) or version < 1 then corrupt('wallet: version') end
  if not is_count(overdraft) then corrupt('wallet: overdraft_limit') end
  corrupt('wallet')
end

local function is_currency(currency) return string.find(currency, '^[A-Z0-9][A-Z0-9][A-Z0-9]+%z*$') ~= nil end

local function pack_wallet(w, slot)
  return struct.pack(WALLET_FORMAT, LAYOUT_VERSION, w.flags[slot], w.tier[slot], w.available[slot],
    w.locked[slot], w.version[slot], w.currency[slot], w.overdraft[slot])
end

-- Adds key and packed wallet of each of slots[1..count] to the arguments of an MSET, from position n on.
local function add_packed_wallets(arguments, n, w, keys, slots, count)
  local flags, tier, available, locked = w.flags, w.tier, w.available, w.locked
  local version, currency, overdraft, pack_record = w.version, w.currency, w.overdraft, struct.pack
  for i = 1, count do
    local slot = slots[i]
    arguments[n + 1] = keys[slot]
    arguments[n + 2] = pack_record(WALLET_FORMAT, LAYOUT_VERSION, flags[slot], tier[slot], available[slot],
      locked[slot], version[slot], currency[slot], overdraft[slot])
    n = n + 2
  end
  return n
end

-- Reads the wallets under keys[1..count] into w, distrusting each field; the checks are written out, and all names
-- are local, because this runs for every wallet of every batch. MGET answers nil for a key of another type too,
-- which a write would overwrite: so what is missing must not exist at all.
local function read_wallets(w, keys, count)
  local flags, tier, available, locked = w.flags, w.tier, w.available, w.locked
  local version, currency, overdraft = w.version, w.currency, w.overdraft
  local unpack_record, valid_currencies, missing, n = struct.unpack, {}, {}, 0
  for from = 1, count, CHUNK do
    local to = math.min(from + CHUNK - 1, count)
    local found = redis.call('MGET', unpack(keys, from, to))
    for slot = from, to do
      local packed = found[slot - from + 1]
      if packed then
        if #packed ~= WALLET_SIZE then corrupt('wallet: size') end
        local layout, flag, level, a, l, v, code, o = unpack_record(WALLET_FORMAT, packed)
        if layout ~= LAYOUT_VERSION or flag > FLAG_EXTERNAL or level ~= 0
            or not (a % 1 == 0 and a <= MAX_AMOUNT and a >= -MAX_AMOUNT
              and l % 1 == 0 and l >= 0 and l <= MAX_AMOUNT
              and v % 1 == 0 and v >= 1 and v <= MAX_AMOUNT
              and o % 1 == 0 and o >= 0 and o <= MAX_AMOUNT) then
          wallet_fault(layout, flag, level, a, l, v, o)
        end
        if not valid_currencies[code] then
          if not is_currency(code) then corrupt('wallet: currency') end
          valid_currencies[code] = true
        end
        flags[slot], tier[slot], available[slot], locked[slot] = flag, level, a, l
        version[slot], currency[slot], overdraft[slot] = v, code, o
      else
        n = n + 1
        missing[n] = keys[slot]
      end
    end
  end
  for from = 1, n, CHUNK do
    if redis.call('EXISTS', unpack(missing, from, math.min(from + CHUNK - 1, n))) > 0 then
      corrupt('wallet: not a string')
    end
  end
end
