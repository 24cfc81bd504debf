-- Movements of money between two wallets, and holds, which are movements put off: the one place with their rules.
-- Refusals are looked for in the order of their numbers.

local state_refusal, wallets_refusal, floor_of, settle_debt, decline, move

do -- so that what only this file uses does not count against Lua's 200 locals

-- What the states of the wallets forbid; nil if nothing. Only called if one of them has a state.
function state_refusal(debit, credit, forced)
  if has_flag(flags[debit], FLAG_CLOSED) and not forced or has_flag(flags[credit], FLAG_CLOSED) then
    return WALLET_CLOSED
  end
  if has_flag(flags[debit], FLAG_DEBIT_FROZEN) and not forced then return DEBIT_FROZEN end
  if has_flag(flags[credit], FLAG_CREDIT_FROZEN) then return CREDIT_FROZEN end
end

-- What speaks against a movement between two wallets, money aside; nil if nothing does. named: the currency that the
-- request names, if any. forced: whether a freeze or the closing of the
-- debit side is passed over, as a chargeback does.
function wallets_refusal(debit, credit, named, forced)
  if debit == credit then return SAME_WALLET end
  if not version[debit] then return DEBIT_WALLET_NOT_FOUND end
  if not version[credit] then return CREDIT_WALLET_NOT_FOUND end
  if currency[debit] ~= currency[credit] or named and named ~= currency[debit] then return CURRENCY_MISMATCH end
  if flags[debit] > FLAG_EXTERNAL or flags[credit] > FLAG_EXTERNAL then return state_refusal(debit, credit, forced) end
end

-- How far below zero available may go.
function floor_of(slot) return -overdraft[slot] - debt_of(slot) end

local function condition_fails(terms, debit, debit_after)
  local conditions = terms[TERMS_CONDITIONS]
  return conditions % 2 == CONDITION_VERSION and version[debit] ~= terms[TERMS_EXPECT_VERSION]
    or conditions >= CONDITION_MIN_AVAILABLE and debit_after < terms[TERMS_MIN_AVAILABLE_AFTER]
end

-- A debt of a chargeback that was set aside is over once the wallet is back above its limit.
function settle_debt(slot)
  if debt_of(slot) > 0 and available[slot] >= -overdraft[slot] then set_debt(slot, 0) end
end

-- Locks amount on the debit wallet under the request's own id.
local function reserve(i, debit, credit, amount, purpose, review, rule, expires_in_ms)
  local id = ids[i]
  if hold_exists(shard_tag, meta, id) then return refuse(i, HOLD_EXISTS) end
  local h = {
    state = HOLD_STATE_OPEN, purpose = purpose, review = review, debit = wallet_ids[debit], credit = wallet_ids[credit],
    remaining = amount, captured = 0, expires_at_ms = expires_in_ms > 0 and now_ms + expires_in_ms or 0, changed = true,
  }
  holds[id] = h
  available[debit], locked[debit] = available[debit] - amount, locked[debit] + amount
  journal(i, done_content(i, HOLD, debit, credit, amount), debit, nil)
  journal_hold(id, h, rule, 0)
  journal_origin(i)
  return answer(i, rule > 0 and UNDER_REVIEW or POSTED, rule, debit, credit, amount)
end

function decline(i, status, rule, used, retry_at_ms)
  note_declined(i, byte(contents[i]), status, rule)
  return refuse(i, status, rule, used, retry_at_ms)
end

-- A movement that names its wallets, or a hold for one.
function move(i, kind)
  local debit, credit, amount = debits[i], credits[i], amounts[i]
  if not (amount >= 1 and amount <= MAX_AMOUNT and amount % 1 == 0) then return refuse(i, AMOUNT_OUT_OF_RANGE) end
  if kind == HOLD and holds[ids[i]] then return refuse(i, HOLD_EXISTS) end
  local terms, limits = attachments[i], nil
  local device = devices[i]
  if tier[debit] and tier[debit] ~= 0 then
    if not special then begin_special() end
    limits = limits_of(tier[debit]) or corrupt('tier: missing')
    begin_attempt(i, debit, limits)
  end
  local status = wallets_refusal(debit, credit, currencies[i])
  if status then return decline(i, status) end
  local external = flags[debit] % 2 == FLAG_EXTERNAL
  if kind and has_flag(flags_of[i] or 0, BALANCING) and not external and available[debit] < amount then
    amount = max(available[debit], 0)
  end
  local rule, review = 0, false
  if limits then
    local used, retry_at_ms
    rule, used, retry_at_ms, review = broken_rule(debit, limits, amount, device)
    if rule and (not review or in_chain) then return decline(i, LIMIT_EXCEEDED, rule, used, retry_at_ms) end
  end
  local debit_after, credit_after = available[debit] - amount, available[credit] + amount
  if amount == 0 or not external and debit_after < floor_of(debit) then return decline(i, INSUFFICIENT_FUNDS) end
  if terms and terms[TERMS_CONDITIONS] > 0 and condition_fails(terms, debit, debit_after) then
    return decline(i, CONDITION_FAILED)
  end
  if debit_after < -MAX_AMOUNT or credit_after + locked[credit] > MAX_AMOUNT then return decline(i, BALANCE_OUT_OF_RANGE) end
  if review or kind == HOLD then
    if locked[debit] + amount > MAX_AMOUNT then return decline(i, BALANCE_OUT_OF_RANGE) end
    status = reserve(i, debit, credit, amount, kind == HOLD and terms[TERMS_PURPOSE] or byte(contents[i]),
      review and (kind == HOLD and REVIEW_HOLD or REVIEW_TRANSFER) or REVIEW_NONE, rule or 0,
      kind == HOLD and terms[TERMS_EXPIRES_IN_MS] or 0)
    if limits and status ~= HOLD_EXISTS then count_usage(debit, limits, amount, not review and device) end
    return status
  end
  available[debit], available[credit] = debit_after, credit_after
  if usage[credit] then settle_debt(credit) end
  if limits then count_usage(debit, limits, amount, device) end
  local whole = amount == amounts[i]
  journal(i, whole and contents[i] or done_content(i, kind, debit, credit, amount), debit, credit)
  journal_origin(i)
  if whole then return answer_as_journalled(i, debit, credit, amount) end
  return answer(i, POSTED, 0, debit, credit, amount)
end

end
