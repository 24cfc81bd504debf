-- What becomes of a hold. It ends once: by a final capture, a void, or its time; whichever is decided first wins.

local capture, void, expire, raise_hold, approve

do -- so that what only this file uses does not count against Lua's 200 locals

-- Why a hold cannot be changed; nil if it can. An expired hold is over even if the sweeper is late.
local function hold_refusal(h)
  if not h then return HOLD_NOT_FOUND end
  if h.state == HOLD_STATE_CAPTURED then return HOLD_ALREADY_CAPTURED end
  if h.state == HOLD_STATE_VOIDED then return HOLD_ALREADY_VOIDED end
  if h.state == HOLD_STATE_EXPIRED or h.expires_at_ms > 0 and now_ms >= h.expires_at_ms then return HOLD_EXPIRED end
end

-- The wallets of hold h, that request i refers to. A hold without its wallets, or without its money, is damage.
local function hold_wallets(i, h)
  local debit, credit = debits[i], credits[i]
  if not version[debit] or not version[credit] then corrupt('hold: its wallet is missing') end
  if debit == credit or currency[debit] ~= currency[credit] then corrupt('hold: its wallets do not go together') end
  if locked[debit] < h.remaining then corrupt('wallet: locked is less than its holds') end
  return debit, credit
end

-- Posts amount of a hold that may be captured. final: what is left is released.
local function post_capture(i, h, amount, final)
  local debit, credit = hold_wallets(i, h)
  if flags[debit] > FLAG_EXTERNAL or flags[credit] > FLAG_EXTERNAL then
    local status = state_refusal(debit, credit)
    if status then return refuse(i, status) end
  end
  if amount > h.remaining then return refuse(i, EXCEEDS_HOLD) end
  if available[credit] + amount + locked[credit] > MAX_AMOUNT or h.captured + amount > MAX_AMOUNT then
    return refuse(i, BALANCE_OUT_OF_RANGE)
  end
  local left = h.remaining - amount
  local released = final and left or 0
  locked[debit] = locked[debit] - amount - released
  available[debit], available[credit] = available[debit] + released, available[credit] + amount
  if usage[debit] then settle_debt(debit) end
  if usage[credit] then settle_debt(credit) end
  h.remaining, h.captured, h.review, h.changed = left - released, h.captured + amount, REVIEW_NONE, true
  if h.remaining == 0 then h.state = HOLD_STATE_CAPTURED end
  journal(i, done_content(i, CAPTURE, debit, credit, amount), debit, credit)
  journal_hold(references[i], h, 0, released)
  return answer(i, POSTED, 0, debit, credit, amount)
end

function capture(i)
  local h, amount = holds[references[i]], amounts[i]
  if not is_count(amount) then return refuse(i, AMOUNT_OUT_OF_RANGE) end
  local status = hold_refusal(h)
  if status then return refuse(i, status) end
  if h.review ~= REVIEW_NONE then return refuse(i, HOLD_UNDER_REVIEW) end
  return post_capture(i, h, amount == 0 and h.remaining or amount, has_flag(flags_of[i] or 0, FINAL))
end

-- Ends the hold without moving money: what it has left becomes available again.
local function release(i, kind, state)
  local h = holds[references[i]]
  local debit, credit = hold_wallets(i, h)
  local released = h.remaining
  available[debit], locked[debit] = available[debit] + released, locked[debit] - released
  if usage[debit] then settle_debt(debit) end
  h.state, h.remaining, h.changed = state, 0, true
  journal(i, done_content(i, kind, debit, credit, released), debit, nil)
  journal_hold(references[i], h, 0, released)
  return answer(i, POSTED, 0, debit, credit, released)
end

function void(i)
  if amounts[i] ~= 0 then return refuse(i, AMOUNT_OUT_OF_RANGE) end
  local status = hold_refusal(holds[references[i]])
  if status then return refuse(i, status) end
  return release(i, VOID, HOLD_STATE_VOIDED)
end

-- The sweeper's request.
function expire(i)
  if amounts[i] ~= 0 then return refuse(i, AMOUNT_OUT_OF_RANGE) end
  local h = holds[references[i]]
  if h and h.state == HOLD_STATE_OPEN then
    if h.expires_at_ms == 0 or now_ms < h.expires_at_ms then return refuse(i, HOLD_NOT_DUE) end
    return release(i, EXPIRE_HOLD, HOLD_STATE_EXPIRED)
  end
  return refuse(i, hold_refusal(h))
end

-- Locks more, under the rules of a new hold.
function raise_hold(i)
  local h, amount = holds[references[i]], amounts[i]
  if not (is_count(amount) and amount >= 1) then return refuse(i, AMOUNT_OUT_OF_RANGE) end
  local status = hold_refusal(h)
  if status then return refuse(i, status) end
  if h.review ~= REVIEW_NONE then return refuse(i, HOLD_UNDER_REVIEW) end
  local debit, credit = hold_wallets(i, h)
  if flags[debit] > FLAG_EXTERNAL or flags[credit] > FLAG_EXTERNAL then
    status = state_refusal(debit, credit)
    if status then return decline(i, status) end
  end
  local limits = tier[debit] ~= 0 and (limits_of(tier[debit]) or corrupt('tier: missing')) or nil
  if limits then
    begin_attempt(i, debit, limits)
    local rule, used, retry_at_ms = broken_rule(debit, limits, amount, nil, h.captured + h.remaining + amount)
    if rule then return decline(i, LIMIT_EXCEEDED, rule, used, retry_at_ms) end
  end
  local external, debit_after = flags[debit] % 2 == FLAG_EXTERNAL, available[debit] - amount
  if not external and debit_after < floor_of(debit) then return decline(i, INSUFFICIENT_FUNDS) end
  if debit_after < -MAX_AMOUNT or locked[debit] + amount > MAX_AMOUNT then return decline(i, BALANCE_OUT_OF_RANGE) end
  available[debit], locked[debit] = debit_after, locked[debit] + amount
  h.remaining, h.changed = h.remaining + amount, true
  journal(i, done_content(i, RAISE_HOLD, debit, credit, amount), debit, nil)
  journal_hold(references[i], h, 0, 0)
  if limits then count_usage(debit, limits, amount, nil) end
  return answer(i, POSTED, 0, debit, credit, amount)
end

-- An operator's word that what a fraud rule stopped may go on: a transfer is posted, a hold may be captured from now
-- on. Rejecting is a void.
function approve(i)
  if amounts[i] ~= 0 then return refuse(i, AMOUNT_OUT_OF_RANGE) end
  local h = holds[references[i]]
  local status = hold_refusal(h)
  if status then return refuse(i, status) end
  if h.review == REVIEW_NONE then return refuse(i, HOLD_NOT_UNDER_REVIEW) end
  if h.review == REVIEW_TRANSFER then return post_capture(i, h, h.remaining, true) end
  local debit, credit = hold_wallets(i, h)
  h.review, h.changed = REVIEW_NONE, true
  journal(i, done_content(i, APPROVE_HOLD, debit, credit, 0), debit, nil)
  journal_hold(references[i], h, 0, 0)
  return answer(i, POSTED, 0, debit, credit, 0)
end

end
