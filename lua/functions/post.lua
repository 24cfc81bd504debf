-- hotledger_post: decides a batch of requests, atomically, in three phases: read, decide, write.
--
-- KEYS[1]  the shard's hash tag
-- ARGV[1]  wire version
-- ARGV[2]  deployment: the 16-byte id of the ledger that the engine knows; another shard's money is not touched
-- ARGV[3]  requests: packed REQUESTs, 1 to MAX_BATCH
-- ARGV[4]  details: the requests' details, one after the other, details_size bytes each; '' for none
-- ARGV[5]  not_after_ms: the time by the server's clock from which on nothing of this batch is decided
-- Returns  REPLY_HEADER with the server's clock, then one ANSWER per request
-- Statuses POSTED SHARD_NOT_OPEN DEADLINE_PASSED EXISTS_WITH_DIFFERENT_KIND EXISTS_WITH_DIFFERENT_DEBIT
--          EXISTS_WITH_DIFFERENT_CREDIT EXISTS_WITH_DIFFERENT_AMOUNT EXISTS_WITH_DIFFERENT_WALLET
--          EXISTS_WITH_DIFFERENT_OWNER EXISTS_WITH_DIFFERENT_OVERDRAFT_LIMIT EXISTS_WITH_DIFFERENT_CURRENCY
--          EXISTS_WITH_DIFFERENT_DETAILS LEDGER_BACKLOG AMOUNT_OUT_OF_RANGE SAME_WALLET WALLET_EXISTS
--          DEBIT_WALLET_NOT_FOUND CREDIT_WALLET_NOT_FOUND CURRENCY_MISMATCH INSUFFICIENT_FUNDS
--          BALANCE_OUT_OF_RANGE
-- Errors   WIRE (a version not spoken here), INVALID (a request that no engine sends), FOREIGN (the shard of another
--          deployment), CORRUPT (a damaged key); nothing was written

local NO_CURRENCY = '\0\0\0\0\0\0\0\0'

-- Phase 1: the batch as tables by request number; wallets get slot numbers in the order they appear. What is rare
-- is kept only where it is: credits has no slot for the opening of a wallet, flags only has those of openings,
-- currencies those that were named, sizes those above zero.
local function parse_requests(tag, requests, details)
  local count = #requests / REQUEST_SIZE
  if count < 1 or count > MAX_BATCH or count % 1 ~= 0 then fail('INVALID', 'requests: size') end
  local unpack_request, sub, prefix = struct.unpack, string.sub, wallet_prefix(tag)
  local ids, contents, debits, credits, amounts = {}, {}, {}, {}, {}
  local flags, currencies, sizes = {}, {}, {}
  local slots, keys, slot_count = {}, {}, 0
  local position, details_bytes = 1, 0
  for i = 1, count do
    local id, kind, flag, size, debit, credit, amount, currency = unpack_request(REQUEST_FORMAT, requests, position)
    ids[i], amounts[i], contents[i] = id, amount, sub(requests, position + 16, position + REQUEST_SIZE - 1)
    position = position + REQUEST_SIZE
    local slot = slots[debit]
    if not slot then
      slot_count = slot_count + 1
      slot, slots[debit], keys[slot_count] = slot_count, slot_count, prefix .. debit
    end
    debits[i] = slot
    if kind == OPEN_WALLET then
      if flag > FLAG_EXTERNAL then fail('INVALID', 'request: flags') end
      if not is_currency(currency) then fail('INVALID', 'request: currency') end
      flags[i] = flag
    elseif kind < TRANSFER or kind > WITHDRAWAL or flag ~= 0 then
      fail('INVALID', 'request: kind or flags')
    else
      slot = slots[credit]
      if not slot then
        slot_count = slot_count + 1
        slot, slots[credit], keys[slot_count] = slot_count, slot_count, prefix .. credit
      end
      credits[i] = slot
    end
    if currency ~= NO_CURRENCY then currencies[i] = currency end
    if size > 0 then
      sizes[i] = size
      details_bytes = details_bytes + size
    end
  end
  if details_bytes ~= #details then fail('INVALID', 'details: size') end
  return {
    count = count, ids = ids, contents = contents, debits = debits, credits = credits, amounts = amounts,
    flags = flags, currencies = currencies, sizes = sizes, details = details,
    wallet_keys = keys, wallet_count = slot_count,
  }
end

-- The status for a request whose id was used for another content: the first field that differs.
local function first_difference(old, content)
  local kind, flags, size, debit, credit, amount, currency =
    struct.unpack(CONTENT_FORMAT, string.sub(old, ANSWER_SIZE + 1))
  local kind2, flags2, size2, debit2, credit2, amount2, currency2 = struct.unpack(CONTENT_FORMAT, content)
  if kind ~= kind2 or flags ~= flags2 then return EXISTS_WITH_DIFFERENT_KIND end
  local opening = kind == OPEN_WALLET
  if debit ~= debit2 then return opening and EXISTS_WITH_DIFFERENT_WALLET or EXISTS_WITH_DIFFERENT_DEBIT end
  if credit ~= credit2 then return opening and EXISTS_WITH_DIFFERENT_OWNER or EXISTS_WITH_DIFFERENT_CREDIT end
  if amount ~= amount2 then
    return opening and EXISTS_WITH_DIFFERENT_OVERDRAFT_LIMIT or EXISTS_WITH_DIFFERENT_AMOUNT
  end
  if currency ~= currency2 then return EXISTS_WITH_DIFFERENT_CURRENCY end
  return EXISTS_WITH_DIFFERENT_DETAILS
end

-- Phase 2: every request in order, on tables only. A request sees what the ones before it in the batch did.
-- w: the wallets read; room: how many more requests may be accepted; with none, no refusal is recorded either.
local function decide(b, w, known, sequence, room)
  local pack, sub = struct.pack, string.sub
  local ids, contents, amounts, currencies, sizes = b.ids, b.contents, b.amounts, b.currencies, b.sizes
  local debits, credits = b.debits, b.credits
  local flags, available, locked, version = w.flags, w.available, w.locked, w.version
  local currency, overdraft = w.currency, w.overdraft
  local replies, records, outcomes, details = {}, {}, {}, {}
  local dirty, dirty_slots, dirty_count = {}, {}, 0
  local accepted, recorded, parts, detail_position = 0, 0, 0, 1
  local has_details = b.details ~= ''

  for i = 1, b.count do
    local id, content = ids[i], contents[i]
    local old = known[id]
    if old then
      if sub(old, ANSWER_SIZE + 1) == content then
        replies[i] = sub(old, 1, ANSWER_SIZE - 1) .. '\1'
      else
        replies[i] = pack(ANSWER_FORMAT, first_difference(old, content), sequence + accepted, 0, 0, 0)
      end
    else
      local status, debit, credit, amount = POSTED, debits[i], credits[i], amounts[i]
      local record = true -- keep the answer under the id, unless the status is one of those that do not stick
      if accepted >= room then
        status, record = LEDGER_BACKLOG, false
      elseif not credit then
        if not is_count(amount) then
          status, record = AMOUNT_OUT_OF_RANGE, false
        elseif version[debit] then
          status = WALLET_EXISTS
        else
          flags[debit], w.tier[debit], currency[debit], overdraft[debit] = b.flags[i], 0, currencies[i], amount
          available[debit], locked[debit], version[debit] = 0, 0, 0
        end
      elseif not (amount >= 1 and amount <= MAX_AMOUNT and amount % 1 == 0) then
        status, record = AMOUNT_OUT_OF_RANGE, false
      elseif debit == credit then
        status = SAME_WALLET
      elseif not version[debit] then
        status, record = DEBIT_WALLET_NOT_FOUND, false
      elseif not version[credit] then
        status, record = CREDIT_WALLET_NOT_FOUND, false
      elseif currency[debit] ~= currency[credit] or currencies[i] and currencies[i] ~= currency[debit] then
        status = CURRENCY_MISMATCH
      else
        local debit_after, credit_after = available[debit] - amount, available[credit] + amount
        if debit_after < -overdraft[debit] and flags[debit] ~= FLAG_EXTERNAL then
          status = INSUFFICIENT_FUNDS
        elseif debit_after < -MAX_AMOUNT or credit_after + locked[credit] > MAX_AMOUNT then
          status = BALANCE_OUT_OF_RANGE
        else
          available[debit], available[credit] = debit_after, credit_after
        end
      end

      local debit_available, credit_available = available[debit] or 0, credit and available[credit] or 0
      if status == POSTED then
        accepted = accepted + 1
        local debit_version, credit_version, credit_locked = version[debit] + 1, 0, 0
        version[debit] = debit_version
        if not dirty[debit] then
          dirty_count = dirty_count + 1
          dirty[debit], dirty_slots[dirty_count] = true, debit
        end
        if credit then
          credit_version, credit_locked = version[credit] + 1, locked[credit]
          version[credit] = credit_version
          if not dirty[credit] then
            dirty_count = dirty_count + 1
            dirty[credit], dirty_slots[dirty_count] = true, credit
          end
        end
        records[parts + 1], records[parts + 2] = id, content
        records[parts + 3] = pack(AFTER_FORMAT, debit_available, locked[debit], debit_version,
          credit_available, credit_locked, credit_version)
        parts = parts + 3
        if has_details and sizes[i] then
          details[#details + 1] = pack(DETAILS_FORMAT, sequence + accepted, sizes[i])
            .. sub(b.details, detail_position, detail_position + sizes[i] - 1)
        end
      end
      local answer = pack(ANSWER_FORMAT, status, sequence + accepted, debit_available, credit_available, 0)
      replies[i] = answer
      if record then
        local outcome = answer .. content
        known[id] = outcome
        outcomes[recorded + 1], outcomes[recorded + 2] = id, outcome
        recorded = recorded + 2
      end
    end
    if has_details then detail_position = detail_position + (sizes[i] or 0) end
  end
  return {
    replies = replies, accepted = accepted, records = records, details = details, outcomes = outcomes,
    recorded = recorded, dirty_slots = dirty_slots, dirty_count = dirty_count,
  }
end

-- Phase 3: the journal entry first; nothing after it can fail on data, because phase 1 looked.
local function write(tag, m, b, w, d, now, fence)
  if d.accepted > 0 then
    journal_append(tag, m, d.accepted, now, table.concat(d.records), table.concat(d.details))
    fence_move(fence, m)
    local changes = { meta_key(tag), pack_meta(m) }
    local n = add_packed_wallets(changes, 2, w, b.wallet_keys, d.dirty_slots, d.dirty_count)
    for from = 1, n, CHUNK do
      redis.call('MSET', unpack(changes, from, math.min(from + CHUNK - 1, n)))
    end
  end
  local key = idempotency_key(tag, m.generation)
  for from = 1, d.recorded, CHUNK do
    redis.call('HSET', key, unpack(d.outcomes, from, math.min(from + CHUNK - 1, d.recorded)))
  end
end

-- How many more records the journal may take. None while the generation's hash is full: a refusal is kept there too,
-- so without this bound refusals alone would fill the memory while no persister ends generations. Looked at once a
-- batch, so a hash ends up less than MAX_BATCH above it.
local function room_left(tag, m, fence)
  if redis.call('HLEN', idempotency_key(tag, m.generation)) >= fence.max_outcomes then return 0 end
  return fence.max_backlog - (m.sequence - m.persisted)
end

local function refuse_all(requests, status, sequence, now)
  local reply = struct.pack(ANSWER_FORMAT, status, sequence, 0, 0, 0)
  return struct.pack(REPLY_HEADER_FORMAT, now) .. string.rep(reply, #requests / REQUEST_SIZE)
end

local function post(keys, args)
  local tag, requests, details, not_after_ms = keys[1], args[3], args[4], tonumber(args[5])
  if not ACCEPTED_WIRE_VERSIONS[args[1]] then fail('WIRE', 'version ' .. tostring(args[1]) .. ' is not spoken here') end
  if not not_after_ms or not is_whole(not_after_ms) then fail('INVALID', 'not_after_ms') end
  local b = parse_requests(tag, requests, details)
  local now = clock_ms()
  if not fences[tag] then return refuse_all(requests, SHARD_NOT_OPEN, 0, now) end
  local m = read_meta(tag) or corrupt('meta: missing')
  if m.deployment ~= args[2] then fail('FOREIGN', 'the shard belongs to another deployment') end
  local fence = fence_check(tag, m)
  if not fence then return refuse_all(requests, SHARD_NOT_OPEN, m.sequence, now) end
  if now >= not_after_ms then return refuse_all(requests, DEADLINE_PASSED, m.sequence, now) end
  journal_check(tag, m)
  local known = read_known(tag, m, b.ids, b.count)
  local w = new_wallets()
  read_wallets(w, b.wallet_keys, b.wallet_count)

  local d = decide(b, w, known, m.sequence, room_left(tag, m, fence))
  write(tag, m, b, w, d, now, fence)
  return struct.pack(REPLY_HEADER_FORMAT, now) .. table.concat(d.replies)
end

redis.register_function('hotledger_post', post)
