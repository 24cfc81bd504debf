-- Refunds: the opposite of a transfer, up to its amount in all. What was refunded is kept for as long as an
-- idempotency generation; before that the ledger knows it, and the request says what the ledger had (its claim).
local refunded

local read_refunded, write_refunded, reference_of, is_capture, referred, refer, refund

do -- so that what only this file uses does not count against Lua's 200 locals

function read_refunded(tag, m, transfer_ids, count)
  local found = {}
  if count == 0 then return end
  read_fields(refunded_key(tag, m.generation - 1), transfer_ids, count, found)
  read_fields(refunded_key(tag, m.generation), transfer_ids, count, found)
  for id, packed in pairs(found) do
    if #packed ~= 8 then corrupt('refunded: size') end
    local total = unpack_from('<d', packed)
    if not is_count(total) then corrupt('refunded: total') end
    refunded[id] = { total = total }
  end
end

function write_refunded(tag, m)
  local changes = {}
  for id, r in pairs(refunded) do
    if r.changed then
      changes[#changes + 1] = id
      changes[#changes + 1] = pack('<d', r.total)
    end
  end
  call_in_chunks('HSET', refunded_key(tag, m.generation), changes, #changes)
end

-- The hold's id in the kept outcome of a request that refers to one.
function reference_of(outcome) return sub(outcome, ANSWER_SIZE + 5, ANSWER_SIZE + 20) end

function is_capture(outcome)
  local kind = byte(outcome, ANSWER_SIZE + 1)
  return kind == CAPTURE or kind == APPROVE_HOLD
end

-- The wallets that the request of a kept outcome named.
local function wallets_in(outcome)
  return { debit = sub(outcome, ANSWER_SIZE + 5, ANSWER_SIZE + 12),
    credit = sub(outcome, ANSWER_SIZE + 13, ANSWER_SIZE + 20) }
end

-- The kept outcome of a transfer to refund; nil if none is known. A refusal says nothing of it: the id may be of one that
-- was posted so long ago that only the ledger knows, and refused when it came again.
local function kept_transfer(id)
  local old = known[id]
  local status = old and byte(old)
  if status == POSTED or status == UNDER_REVIEW then return old end
end

-- What request i refers to, as it is now: a hold, or the transfer to refund; debit and credit are ids of wallets. nil if
-- it is not known.
function referred(i)
  local reference, kind = references[i], kinds[i]
  if kind ~= REFUND and kind ~= CHARGEBACK then return holds[reference] or nil end
  local old = kept_transfer(reference)
  if not old then return attachments[i] end
  if is_capture(old) then return holds[reference_of(old)] or nil end
  return wallets_in(old)
end

-- Gives request i the wallets of what it refers to, as that is now; none if it is not known.
function refer(i)
  local from, kind = referred(i), kinds[i]
  local debit, credit = from and slot_of_id[from.debit], from and slot_of_id[from.credit]
  if kind == REFUND or kind == CHARGEBACK then debit, credit = credit, debit end
  debits[i], credits[i] = debit, credit
end

-- The transfer to refund: its purpose (a kind) and amount, or nil and the status that says why there is none.
local function original_of(i)
  local old, claim = kept_transfer(references[i]), attachments[i]
  if old then
    local status, _, _, _, _, moved, _, kind = unpack_from(KEPT_FORMAT, old)
    if status == POSTED and is_capture(old) and moved > 0 then
      local h = holds[reference_of(old)] or corrupt('hold: missing, but its capture is known')
      return h.purpose, moved
    end
    if status == POSTED and kind <= WITHDRAWAL then return kind, moved end
    return nil, NOT_REFUNDABLE
  end
  if not claim then return nil, TRANSFER_NOT_FOUND end
  if claim.kind < TRANSFER or claim.kind > WITHDRAWAL then return nil, NOT_REFUNDABLE end
  return claim.kind, claim.amount
end

-- Whether the ledger was read before the last refund that Redis forgot.
local function is_ledger_behind(i)
  local id, claim = references[i], attachments[i]
  return claim and not kept_transfer(id) and not refunded[id] and claim.as_of < meta.generation_sequence
end

-- How much of the transfer was refunded so far.
local function refunded_so_far(i)
  local r, claim = refunded[references[i]], attachments[i]
  if r then return r.total end
  if kept_transfer(references[i]) then return 0 end -- a refund is never forgotten before its transfer
  return claim.refunded
end

-- A debt that the tier does not have paid back first is set aside: the wallet may spend what it gets from now on.
local function set_debt_aside(slot)
  local limits = tier[slot] ~= 0 and limits_of(tier[slot])
  if limits and limits.debt_first == 0 then
    set_debt(slot, max(debt_of(slot), -(available[slot] + overdraft[slot])))
  end
end

function refund(i, kind)
  local amount, id = amounts[i], references[i]
  if is_ledger_behind(i) then return refuse(i, LEDGER_BEHIND) end
  if not is_count(amount) then return refuse(i, AMOUNT_OUT_OF_RANGE) end
  local purpose, original = original_of(i)
  if not purpose then return refuse(i, original) end
  local forced = kind == CHARGEBACK
  if forced and (purpose ~= TOP_UP or (flags[credits[i]] or 0) % 2 ~= FLAG_EXTERNAL) then
    return refuse(i, NOT_REFUNDABLE)
  end
  local debit, credit, so_far = debits[i], credits[i], refunded_so_far(i)
  local status = wallets_refusal(debit, credit, nil, forced)
  if status then return refuse(i, status) end
  if amount == 0 then amount = original - so_far end
  if amount < 1 or so_far + amount > original then return refuse(i, REFUND_EXCEEDS_TRANSFER) end
  local debit_after, credit_after = available[debit] - amount, available[credit] + amount
  if not forced and flags[debit] % 2 == 0 and debit_after < floor_of(debit) then return refuse(i, INSUFFICIENT_FUNDS) end
  if debit_after < -MAX_AMOUNT or credit_after + locked[credit] > MAX_AMOUNT then
    return refuse(i, BALANCE_OUT_OF_RANGE)
  end
  available[debit], available[credit] = debit_after, credit_after
  if forced then set_debt_aside(debit) end
  if usage[credit] then settle_debt(credit) end
  refunded[id] = { total = so_far + amount, changed = true }
  journal(i, done_content(i, kind, debit, credit, amount), debit, credit)
  links = links or {}
  links[#links + 1] = pack(LINK_FORMAT, meta.sequence + accepted, id, 0, 0, 0, 0, so_far + amount, 0, 0, 0)
  return answer(i, POSTED, 0, debit, credit, amount)
end

end
