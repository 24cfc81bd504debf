-- How a request ends: accepted, with its record in the journal, or refused. Both are answered and, unless the status is
-- one of those that do not stick, kept under the request's id.

local function keep(i, answer)
  replies[i] = answer
  local outcome = answer .. contents[i]
  known[ids[i]] = outcome
  outcomes[outcome_parts + 1], outcomes[outcome_parts + 2] = ids[i], outcome
  outcome_parts = outcome_parts + 2
end

local function touch(slot)
  version[slot] = version[slot] + 1
  if not dirty[slot] then
    dirty_count = dirty_count + 1
    dirty[slot], dirty_slots[dirty_count] = true, slot
  end
  return version[slot]
end

-- The content as it was done: with real wallets and the amount that was moved, reserved or released.
local function done_content(i, kind, debit, credit, amount)
  local content = contents[i]
  return pack('<B', kind) .. sub(content, 2, 4) .. (debit and wallet_ids[debit] or NO_ID)
    .. (credit and wallet_ids[credit] or NO_ID) .. pack('<d', amount) .. sub(content, CONTENT_HEAD_SIZE + 1)
end

local function journal_details(i)
  local size = sizes[i]
  detail_items = detail_items or {}
  detail_items[#detail_items + 1] = pack(DETAILS_FORMAT, meta.sequence + accepted, size)
    .. sub(details, detail_starts[i], detail_starts[i] + size - 1)
end

-- Journals request i. content: what was done; the wallets have their new balances already. debit, credit: slots, nil
-- for a side that does not change.
local function journal(i, content, debit, credit)
  accepted = accepted + 1
  local debit_available, debit_locked, debit_version, credit_available, credit_locked, credit_version = 0, 0, 0, 0, 0, 0
  if debit then
    debit_available, debit_locked, debit_version = available[debit], locked[debit], touch(debit)
  end
  if credit then
    credit_available, credit_locked, credit_version = available[credit], locked[credit], touch(credit)
  end
  records[record_parts + 1], records[record_parts + 2] = ids[i], whole_content(content)
  records[record_parts + 3] = pack(AFTER_FORMAT, debit_available, debit_locked, debit_version,
    credit_available, credit_locked, credit_version)
  record_parts = record_parts + 3
  if sizes[i] then journal_details(i) end
end

local function journal_origin(i)
  local device, ip = devices[i], ips[i]
  if device or ip then
    origins = origins or {}
    origins[#origins + 1] =
      pack(ORIGIN_FORMAT, meta.sequence + accepted, device or NO_DIGEST, ip or NO_DIGEST)
  end
end

local function journal_hold(id, h, rule, released)
  links = links or {}
  links[#links + 1] = pack(LINK_FORMAT, meta.sequence + accepted, id, h.purpose, h.state, h.review, rule,
    h.remaining, h.captured, released, h.expires_at_ms)
end

-- Journals what is kept of request i, for a record that does not say it: see JOURNAL_KEPT_FIELD in engine/wire.py.
local function journal_kept(i)
  kept_items = kept_items or {}
  kept_items[#kept_items + 1] = replies[i] .. whole_content(contents[i])
end

-- Answers an accepted request whose record is other than its content, and journals what is kept of it: but not of an
-- expiry, whose id nobody asks for again.
local function answer(i, status, rule, debit, credit, amount)
  keep(i, pack(ANSWER_FORMAT, status, rule, meta.sequence + accepted, debit and available[debit] or 0,
    credit and available[credit] or 0, amount, 0))
  if kinds[i] ~= EXPIRE_HOLD then journal_kept(i) end
  return status
end

-- Answers an accepted request whose record says all that is kept.
local function answer_as_journalled(i, debit, credit, amount)
  keep(i, pack(ANSWER_FORMAT, POSTED, 0, meta.sequence + accepted, debit and available[debit] or 0,
    credit and available[credit] or 0, amount, 0))
  return POSTED
end

-- rule, used, retry_at_ms: of LIMIT_EXCEEDED, nil else.
local function refusal(i, status, rule, used, retry_at_ms)
  local debit, credit = debits[i], credits[i]
  return pack(ANSWER_FORMAT, status, rule or 0, meta.sequence + accepted, debit and available[debit] or 0,
    retry_at_ms or credit and available[credit] or 0, used or 0, 0)
end

-- What stands in the way of posting a hold only for now. It is not kept: who repeats a capture or an approval, as
-- providers do, must not get it for ever. The hold ends once, so nothing happens twice.
local MAY_PASS = {
  [DEBIT_FROZEN] = true, [CREDIT_FROZEN] = true, [EXCEEDS_HOLD] = true, [BALANCE_OUT_OF_RANGE] = true,
}

local function is_kept(i, status)
  return RECORDED[status] and not (MAY_PASS[status] and (kinds[i] == CAPTURE or kinds[i] == APPROVE_HOLD))
end

-- In a chain nothing is kept yet: decide_chain does it when it knows how the chain ends.
local function refuse(i, status, rule, used, retry_at_ms)
  local packed = refusal(i, status, rule, used, retry_at_ms)
  if in_chain then
    in_chain.rule, in_chain.used, in_chain.retry_at_ms = rule, used, retry_at_ms
  elseif is_kept(i, status) then
    keep(i, packed)
  end
  replies[i] = packed
  return status
end

-- For the side stream of refused movements.
local function note_declined(i, kind, status, rule)
  local debit, credit, device, ip = debits[i], credits[i], devices[i], ips[i]
  declined = declined or {}
  declined[#declined + 1] = pack(DECLINED_FORMAT, now_ms, ids[i], kind, status, rule or 0,
    debit and wallet_ids[debit] or NO_ID, credit and wallet_ids[credit] or NO_ID, amounts[i],
    device or NO_DIGEST, ip or NO_DIGEST)
end
