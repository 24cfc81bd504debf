-- The life of a wallet, and the limits of tiers. Each is in force from the next request on.

local open_wallet, change_wallet, set_tier_limits, write_tiers

do -- so that what only this file uses does not count against Lua's 200 locals

function open_wallet(i)
  local slot, amount, external = debits[i], amounts[i], has_flag(flags_of[i] or 0, EXTERNAL)
  if not is_count(amount) or external and amount > MAX_EXPONENT then return refuse(i, AMOUNT_OUT_OF_RANGE) end
  if version[slot] then return refuse(i, WALLET_EXISTS) end
  flags[slot], tier[slot], currency[slot] = external and FLAG_EXTERNAL or 0, 0, currencies[i]
  overdraft[slot], available[slot], locked[slot], version[slot] = amount, 0, 0, 0
  journal(i, contents[i], slot, nil)
  return answer_as_journalled(i, slot, nil, 0)
end

-- What may be frozen: bits of a set.
local FREEZABLE = { [FLAG_DEBIT_FROZEN] = true, [FLAG_CREDIT_FROZEN] = true }
FREEZABLE[FLAG_DEBIT_FROZEN + FLAG_CREDIT_FROZEN] = true

local function with_flag(set, flag, on)
  if has_flag(set, flag) == on then return set end
  return on and set + flag or set - flag
end

local function set_frozen(slot, bits, on)
  for _, flag in ipairs({ FLAG_DEBIT_FROZEN, FLAG_CREDIT_FROZEN }) do
    if has_flag(bits, flag) then flags[slot] = with_flag(flags[slot], flag, on) end
  end
end

local function set_tier(slot, number)
  tier[slot] = number
  if number == 0 then usage[slot] = nil else usage[slot] = usage[slot] or NO_USAGE end
end

-- Each returns a status if it refuses; value is in its range.
local CHANGES = {
  [FREEZE] = function(slot, value) set_frozen(slot, value, true) end,
  [UNFREEZE] = function(slot, value) set_frozen(slot, value, false) end,
  [CLOSE_WALLET] = function(slot)
    if available[slot] ~= 0 or locked[slot] ~= 0 then return WALLET_NOT_EMPTY end
    flags[slot] = with_flag(flags[slot], FLAG_CLOSED, true)
  end,
  [SET_OVERDRAFT_LIMIT] = function(slot, value)
    overdraft[slot] = value
    if usage[slot] then settle_debt(slot) end
  end,
  [SET_TIER] = set_tier,
}

local function value_in_range(kind, value)
  if kind == FREEZE or kind == UNFREEZE then return FREEZABLE[value] or false end
  if kind == CLOSE_WALLET then return value == 0 end
  return is_count(value) and (kind ~= SET_TIER or value <= MAX_TIER)
end

function change_wallet(i, kind)
  local slot, value = debits[i], amounts[i]
  if not value_in_range(kind, value) then return refuse(i, AMOUNT_OUT_OF_RANGE) end
  if not version[slot] or flags[slot] % 2 == FLAG_EXTERNAL then return refuse(i, DEBIT_WALLET_NOT_FOUND) end
  if kind == SET_TIER and value ~= 0 and not limits_of(value) then return refuse(i, TIER_NOT_FOUND) end
  if has_flag(flags[slot], FLAG_CLOSED) then return refuse(i, WALLET_CLOSED) end
  local status = CHANGES[kind](slot, value)
  if status then return refuse(i, status) end
  journal(i, contents[i], slot, nil)
  return answer_as_journalled(i, slot, nil, 0)
end

function set_tier_limits(i)
  local number, limits = amounts[i], attachments[i]
  if not is_count(number) or number < 1 or number > MAX_TIER then return refuse(i, AMOUNT_OUT_OF_RANGE) end
  limits_of(number) -- fails on a key of another type, as the write would
  limits.changed = true
  tiers[number] = placed_in_time(limits)
  journal(i, contents[i], nil, nil)
  tier_changes = tier_changes or {}
  tier_changes[#tier_changes + 1] = pack('<dd', meta.sequence + accepted, number) .. limits.packed
  return answer_as_journalled(i, nil, nil, 0)
end

function write_tiers(tag)
  local changes = {}
  for number, limits in pairs(tiers) do
    if limits and limits.changed then
      changes[#changes + 1] = pack('<H', number)
      changes[#changes + 1] = limits.packed
    end
  end
  call_in_chunks('HSET', tiers_key(tag), changes, #changes)
end

end
