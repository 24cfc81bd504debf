-- The batch that is being decided: requests by number, and what comes of them. As with the wallets, there is one at a
-- time, so its tables are locals of the library. Those that are full stay from call to call, and whatever is in them
-- beyond request_count, record_parts, outcome_parts or dirty_count is of another call.
--
-- contents are CONTENTs, or CONTENT_HEADs where the rest is NUL. What is rare is kept only where it is: kinds has
-- nothing for a plain movement (TRANSFER to WITHDRAWAL without flags and without terms), flags_of only flags other than
-- 0, currencies those that were named, sizes those above zero, devices and ips (originated: there is one) their
-- digests. special: there is one that is not plain; referring: there is a hold, or one that refers to a hold or a transfer.
local request_count
local ids, contents, debits, credits, amounts = {}, {}, {}, {}, {}
local kinds, flags_of, currencies, sizes, detail_starts, details, references, attachments, linked, special, referring
local devices, ips, originated
local shard_tag, meta, now_ms, room
local known, replies
local accepted, records, record_parts, detail_items, origins, links, tier_changes, kept_items = 0, {}, 0
local outcomes, outcome_parts, declined = {}, 0, nil
local dirty_slots, dirty_count = {}, 0
local in_chain

local SHAPES, unpack_limits, has_flag, begin_special, parse_requests

do -- so that what only this file uses does not count against Lua's 200 locals

-- TERMS as the list of its fields.
local function unpack_terms(packed, position)
  local t = { unpack_from(TERMS_FORMAT, packed, position) }
  local conditions, expires_in_ms = t[TERMS_CONDITIONS], t[TERMS_EXPIRES_IN_MS]
  if conditions > 0 then
    if conditions > CONDITION_VERSION + CONDITION_MIN_AVAILABLE then invalid('terms: conditions') end
    if not is_count(t[TERMS_EXPECT_VERSION]) then invalid('terms: expect_version') end
    if not is_whole(t[TERMS_MIN_AVAILABLE_AFTER]) then invalid('terms: min_available_after') end
  end
  if expires_in_ms ~= 0 and not (is_count(expires_in_ms) and expires_in_ms <= MAX_EXPIRY_MS) then
    invalid('terms: expires_in_ms')
  end
  return t
end

local function unpack_claim(packed, position)
  local c = {}
  c.kind, c.debit, c.credit, c.amount, c.refunded, c.as_of = unpack_from(CLAIM_FORMAT, packed, position)
  if not is_count(c.amount) then invalid('claim: amount') end
  if not is_count(c.refunded) then invalid('claim: refunded') end
  if not is_count(c.as_of) then invalid('claim: as_of') end
  return c
end

-- Packed TIER_LIMITS as a table; fault says what is wrong with them.
function unpack_limits(packed, fault, position)
  local t = {}
  t.layout, t.debt_first, t.review, t.max_amount, t.day_amount, t.day_count, t.window_count, t.window_ms,
    t.hour_amount, t.attempts_window_ms, t.device_attempts, t.ip_attempts, t.device_wallets, t.new_device_amount,
    t.new_device_ms = unpack_from(TIER_LIMITS_FORMAT, packed, position)
  for name, value in pairs(t) do
    if not is_count(value) then fault('tier: ' .. name) end
  end
  if t.debt_first > 1 then fault('tier: debt_first') end
  if t.layout ~= LAYOUT_VERSION then fault('tier: layout') end
  if t.window_ms < 1 or t.attempts_window_ms < 1 or t.attempts_window_ms > DAY_MS then fault('tier: window') end
  t.attempts_window = pack('<d', t.attempts_window_ms)
  if t.device_wallets > MAX_DEVICE_WALLETS and t.device_wallets ~= MAX_AMOUNT then fault('tier: device_wallets') end
  return t
end

local ATTACHMENT_SIZES = {
  [ATTACHMENT_TERMS] = TERMS_SIZE, [ATTACHMENT_CLAIM] = CLAIM_SIZE, [ATTACHMENT_TIER_LIMITS] = TIER_LIMITS_SIZE,
}

local function unpack_attachment(number, packed, position)
  if number == ATTACHMENT_TERMS then return unpack_terms(packed, position) end
  if number == ATTACHMENT_CLAIM then return unpack_claim(packed, position) end
  local limits = unpack_limits(packed, invalid, position)
  limits.packed = sub(packed, position, position + TIER_LIMITS_SIZE - 1)
  return limits
end

-- Sets of flags that a kind may have.
local NO_FLAGS = { [0] = true }
local MAY_LINK = { [0] = true, [LINKED] = true }
local MAY_BALANCE = { [0] = true, [LINKED] = true, [BALANCING] = true, [LINKED + BALANCING] = true }
local MAY_BE_FINAL = { [0] = true, [LINKED] = true, [FINAL] = true, [LINKED + FINAL] = true }
local MAY_BE_EXTERNAL = { [0] = true, [LINKED] = true, [EXTERNAL] = true, [LINKED + EXTERNAL] = true }

-- What each kind takes: whether debit and credit are wallets ('both', 'debit'), a reference ('ref') or nothing ('none'),
-- which flags it may have, which attachment, and whether it must have it.
SHAPES = {
  [TRANSFER] = { 'both', MAY_BALANCE, ATTACHMENT_TERMS },
  [TOP_UP] = { 'both', MAY_BALANCE, ATTACHMENT_TERMS },
  [PAYMENT] = { 'both', MAY_BALANCE, ATTACHMENT_TERMS },
  [WITHDRAWAL] = { 'both', MAY_BALANCE, ATTACHMENT_TERMS },
  [HOLD] = { 'both', MAY_LINK, ATTACHMENT_TERMS, true },
  [REFUND] = { 'ref', MAY_LINK, ATTACHMENT_CLAIM },
  [CHARGEBACK] = { 'ref', MAY_LINK, ATTACHMENT_CLAIM },
  [CAPTURE] = { 'ref', MAY_BE_FINAL },
  [RAISE_HOLD] = { 'ref', MAY_LINK },
  [VOID] = { 'ref', MAY_LINK },
  [EXPIRE_HOLD] = { 'ref', NO_FLAGS },
  [APPROVE_HOLD] = { 'ref', MAY_LINK },
  [OPEN_WALLET] = { 'debit', MAY_BE_EXTERNAL },
  [FREEZE] = { 'debit', MAY_LINK },
  [UNFREEZE] = { 'debit', MAY_LINK },
  [CLOSE_WALLET] = { 'debit', MAY_LINK },
  [SET_OVERDRAFT_LIMIT] = { 'debit', MAY_LINK },
  [SET_TIER] = { 'debit', MAY_LINK },
  [SET_TIER_LIMITS] = { 'none', MAY_LINK, ATTACHMENT_TIER_LIMITS, true },
}

function has_flag(set, flag) return set % (2 * flag) >= flag end

-- What only few batches have. Until then its tables are one that stays empty: making tables is most of what a batch of
-- one costs.
local NONE = {}

function begin_special()
  special = true
  kinds, flags_of, references, attachments, linked = {}, {}, {}, {}, {}
end

-- Notes where request i came from.
local function note_origin(i, device, ip)
  if device == NO_DIGEST and ip == NO_DIGEST then return end
  if not originated then
    originated, devices, ips = true, {}, {}
  end
  if device ~= NO_DIGEST then devices[i] = device end
  if ip ~= NO_DIGEST then ips[i] = ip end
end

-- A request that is no plain movement: checks its form, and notes what else it has. Returns the attachment's size.
local function parse_special(i, prefix, kind, flag, debit, credit, attachment, packed, position)
  local shape = SHAPES[kind]
  if not shape then invalid('request: kind') end
  if not shape[2][flag] then invalid('request: flags') end
  local names = shape[1]
  if not special then begin_special() end
  kinds[i], debits[i], credits[i] = kind, nil, nil
  if flag ~= 0 then
    flags_of[i] = flag
    if has_flag(flag, LINKED) then linked[i] = true end
  end
  if names == 'both' then
    debits[i], credits[i] = slot_of(prefix, debit), slot_of(prefix, credit)
  elseif names == 'ref' then
    references[i], referring = debit .. credit, true
  else
    if names == 'debit' then debits[i] = slot_of(prefix, debit) elseif debit ~= NO_ID then invalid('request: debit') end
    if credit ~= NO_ID and kind ~= OPEN_WALLET then invalid('request: credit') end
  end
  if kind == OPEN_WALLET and debit == NO_ID then invalid('request: debit') end -- in records it says that there is none
  if kind == OPEN_WALLET and not is_currency(currencies[i] or '') then invalid('request: currency') end
  if attachment == 0 then
    if shape[4] then invalid('request: attachment') end
    return 0
  end
  local size = ATTACHMENT_SIZES[attachment]
  if attachment ~= shape[3] or #packed - position + 1 < size then invalid('request: attachment') end
  local a = unpack_attachment(attachment, packed, position)
  if kind == HOLD then
    if a[TERMS_PURPOSE] < TRANSFER or a[TERMS_PURPOSE] > WITHDRAWAL then invalid('terms: purpose') end
    referring = true
  end
  attachments[i] = a
  if attachment == ATTACHMENT_TERMS then note_origin(i, a[TERMS_DEVICE], a[TERMS_IP]) end
  return size
end

-- Phase 1: the batch as tables; wallets get slot numbers in the order they appear.
function parse_requests(tag, requests, packed_details, packed_attachments)
  local count = #requests / REQUEST_SIZE
  if count < 1 or count > MAX_BATCH or count % 1 ~= 0 then invalid('requests: size') end
  new_wallets()
  request_count, special, referring, originated, details = count, false, false, false, packed_details
  kinds, flags_of, detail_starts, references, attachments, linked = NONE, NONE, NONE, NONE, NONE, NONE
  devices, ips, currencies, sizes = NONE, NONE, NONE, NONE
  local prefix, unpack_from, sub = wallet_prefix(tag), unpack_from, sub
  local ids, contents, debits, credits, amounts, slots = ids, contents, debits, credits, amounts, slot_of_id
  local position, details_bytes, attached_bytes = 1, 0, 0
  for i = 1, count do
    local id, attachment, kind, flag, size, debit, credit, amount, rest =
      unpack_from(REQUEST_PARTS_FORMAT, requests, position)
    ids[i], amounts[i] = id, amount
    if rest == NO_REST then
      contents[i] = sub(requests, position + 17, position + (16 + CONTENT_HEAD_SIZE))
    else
      contents[i] = sub(requests, position + 17, position + (REQUEST_SIZE - 1))
      local code = sub(rest, 1, 8)
      if code ~= NO_CURRENCY then
        if currencies == NONE then currencies = {} end
        currencies[i] = code
      end
    end
    position = position + REQUEST_SIZE
    if kind <= WITHDRAWAL and kind >= TRANSFER and flag == 0 and attachment == 0 then
      debits[i] = slots[debit] or slot_of(prefix, debit)
      credits[i] = slots[credit] or slot_of(prefix, credit)
    else
      local conditions, expires_in_ms, device, ip = 1, 1, nil, nil
      if attachment == ATTACHMENT_TERMS and kind <= WITHDRAWAL and kind >= TRANSFER and flag == 0
          and #packed_attachments - attached_bytes >= TERMS_SIZE then
        local _
        conditions, _, _, _, expires_in_ms, device, ip =
          unpack_from(TERMS_FORMAT, packed_attachments, attached_bytes + 1)
      end
      if conditions == 0 and expires_in_ms == 0 then -- it is plain, and says only where it comes from
        debits[i] = slots[debit] or slot_of(prefix, debit)
        credits[i] = slots[credit] or slot_of(prefix, credit)
        note_origin(i, device, ip)
        attached_bytes = attached_bytes + TERMS_SIZE
      else
        attached_bytes = attached_bytes
          + parse_special(i, prefix, kind, flag, debit, credit, attachment, packed_attachments, attached_bytes + 1)
      end
    end
    if size > 0 then
      if sizes == NONE then sizes, detail_starts = {}, {} end
      sizes[i], detail_starts[i] = size, details_bytes + 1
      details_bytes = details_bytes + size
    end
  end
  if details_bytes ~= #packed_details then invalid('details: size') end
  if attached_bytes ~= #packed_attachments then invalid('attachments: size') end
end

end

-- A content with the rest that was left away.
local function whole_content(content) return #content < CONTENT_SIZE and content .. NO_REST or content end

-- What phase 2 fills.
local function begin_outcome()
  replies, accepted = {}, 0
  record_parts, outcome_parts, dirty_count = 0, 0, 0
  detail_items, origins, links, tier_changes, kept_items, declined = nil, nil, nil, nil, nil, nil
  in_chain = false
end
