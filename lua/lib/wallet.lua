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

-- currencies: the codes found valid in this batch. The check is written out because it runs for every wallet.
local function unpack_wallet(w, slot, packed, currencies)
  if #packed ~= WALLET_SIZE then corrupt('wallet: size') end
  local layout, flags, tier, available, locked, version, currency, overdraft = struct.unpack(WALLET_FORMAT, packed)
  if layout ~= LAYOUT_VERSION or flags > FLAG_EXTERNAL or tier ~= 0
      or not (available % 1 == 0 and available <= MAX_AMOUNT and available >= -MAX_AMOUNT
        and locked % 1 == 0 and locked >= 0 and locked <= MAX_AMOUNT
        and version % 1 == 0 and version >= 1 and version <= MAX_AMOUNT
        and overdraft % 1 == 0 and overdraft >= 0 and overdraft <= MAX_AMOUNT) then
    wallet_fault(layout, flags, tier, available, locked, version, overdraft)
  end
  if not currencies[currency] then
    if not is_currency(currency) then corrupt('wallet: currency') end
    currencies[currency] = true
  end
  w.flags[slot], w.tier[slot], w.available[slot], w.locked[slot] = flags, tier, available, locked
  w.version[slot], w.currency[slot], w.overdraft[slot] = version, currency, overdraft
end

local function pack_wallet(w, slot)
  return struct.pack(WALLET_FORMAT, LAYOUT_VERSION, w.flags[slot], w.tier[slot], w.available[slot],
    w.locked[slot], w.version[slot], w.currency[slot], w.overdraft[slot])
end

-- Reads the wallets under keys[1..count] into w. MGET answers nil for a key of another type too, which a write
-- would overwrite: so what is missing must not exist at all.
local function read_wallets(w, keys, count)
  local missing, n, currencies = {}, 0, {}
  for from = 1, count, CHUNK do
    local to = math.min(from + CHUNK - 1, count)
    local found = redis.call('MGET', unpack(keys, from, to))
    for j = 1, to - from + 1 do
      if found[j] then
        unpack_wallet(w, from + j - 1, found[j], currencies)
      else
        n = n + 1
        missing[n] = keys[from + j - 1]
      end
    end
  end
  for from = 1, n, CHUNK do
    if redis.call('EXISTS', unpack(missing, from, math.min(from + CHUNK - 1, n))) > 0 then
      corrupt('wallet: not a string')
    end
  end
end
