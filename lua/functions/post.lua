-- hotledger_post: decides a batch of requests, atomically, in three phases: read, decide, write.
--
-- KEYS[1]  the shard's hash tag
-- ARGV[1]  wire version
-- ARGV[2]  deployment: the 16-byte id of the ledger that the engine knows; another shard's money is not touched
-- ARGV[3]  requests: packed REQUESTs, 1 to MAX_BATCH
-- ARGV[4]  details: the requests' details, one after the other, details_size bytes each; '' for none
-- ARGV[5]  not_after_ms: the time by the server's clock from which on nothing of this batch is decided
-- ARGV[6]  attachments: the requests' packed TERMS, CLAIMs and TIER_LIMITS, one after the other; '' for none
-- Returns  REPLY_HEADER with the server's clock, then one ANSWER per request
-- Statuses all of engine/domain/status.py but CHAIN_TOO_LONG and NOT_APPLIED, which engines give
-- Errors   WIRE (a version not spoken here), INVALID (a request that no engine sends), FOREIGN (the shard of another
--          deployment), CORRUPT (a damaged key); nothing was written

-- Phase 1, of requests that refer to a hold or a transfer: reads what they refer to, and sees to it that its wallets
-- are read. What is made in this very batch is not there yet, but its wallets are those of another request.
local function resolve_references()
  local hold_ids, transfer_ids, prefix = {}, {}, wallet_prefix(shard_tag)
  for i = 1, request_count do
    local reference, kind = references[i], kinds[i]
    if kind == HOLD then
      hold_ids[#hold_ids + 1] = ids[i]
    elseif reference and (kind == REFUND or kind == CHARGEBACK) then
      transfer_ids[#transfer_ids + 1] = reference
    elseif reference then
      hold_ids[#hold_ids + 1] = reference
    end
  end
  if #transfer_ids > 0 then
    for id, outcome in pairs(read_known(shard_tag, meta, transfer_ids, #transfer_ids)) do
      if not known[id] then known[id] = outcome end
      if is_capture(outcome) then hold_ids[#hold_ids + 1] = reference_of(outcome) end
    end
    read_refunded(shard_tag, meta, transfer_ids, #transfer_ids)
  end
  read_holds(shard_tag, meta, hold_ids, #hold_ids)
  for i = 1, request_count do
    local from = references[i] and referred(i)
    if from then
      slot_of(prefix, from.debit)
      slot_of(prefix, from.credit)
    end
  end
end

-- Phase 1: everything that may be needed, ahead of the first write.
local function read()
  known = read_known(shard_tag, meta, ids, request_count)
  holds, refunded = {}, {}
  begin_rules()
  if referring then resolve_references() end
  read_wallets()
  if originated then read_rules() end
end

-- Phase 2: every request in order, on tables only. A request sees what the ones before it in the batch did.
-- Most are plain movements that nothing speaks against. They are accepted here, as move() would, but in Lua's
-- registers: that halves what they cost. All others, and all refusals, are decide_one's.
local function decide()
  begin_outcome()
  local ids, contents, kinds, debits, credits, amounts = ids, contents, kinds, debits, credits, amounts
  local currencies, sizes, known, pack = currencies, sizes, known, pack
  local flags, tier, available, locked, version = flags, tier, available, locked, version
  local currency, overdraft, dirty, dirty_slots = currency, overdraft, dirty, dirty_slots
  local replies, records, outcomes = replies, records, outcomes
  local sequence, i = meta.sequence, 1
  while i <= request_count do
    local id, debit, credit, amount = ids[i], debits[i], credits[i], amounts[i]
    local debit_version, credit_version, debit_after, credit_after = version[debit], version[credit], nil, nil
    local plain = not kinds[i] and not known[id] and debit_version and credit_version and debit ~= credit
      and amount >= 1 and amount <= MAX_AMOUNT and amount % 1 == 0
      and flags[debit] <= FLAG_EXTERNAL and flags[credit] <= FLAG_EXTERNAL and currency[debit] == currency[credit]
      and (not currencies[i] or currencies[i] == currency[debit]) and accepted < room
    if plain then
      debit_after, credit_after = available[debit] - amount, available[credit] + amount
      plain = (debit_after >= -overdraft[debit] or flags[debit] == FLAG_EXTERNAL)
        and debit_after >= -MAX_AMOUNT and credit_after + locked[credit] <= MAX_AMOUNT
        and (tier[debit] == 0 and tier[credit] == 0 or is_within_limits(i, debit, credit, amount))
    end
    if plain then
      local content, number, outcome_at = contents[i], record_parts, outcome_parts
      accepted, record_parts, outcome_parts = accepted + 1, number + 3, outcome_at + 2
      debit_version, credit_version = debit_version + 1, credit_version + 1
      available[debit], available[credit] = debit_after, credit_after
      version[debit], version[credit] = debit_version, credit_version
      if not dirty[debit] then
        dirty_count = dirty_count + 1
        dirty[debit], dirty_slots[dirty_count] = true, debit
      end
      if not dirty[credit] then
        dirty_count = dirty_count + 1
        dirty[credit], dirty_slots[dirty_count] = true, credit
      end
      records[number + 1], records[number + 2] = id, content
      if #content == CONTENT_HEAD_SIZE then
        records[number + 3] = pack(REST_AND_AFTER_FORMAT, NO_REST, debit_after, locked[debit], debit_version,
          credit_after, locked[credit], credit_version)
      else
        records[number + 3] = pack(AFTER_FORMAT, debit_after, locked[debit], debit_version,
          credit_after, locked[credit], credit_version)
      end
      if sizes[i] then journal_details(i) end
      if originated then journal_origin(i) end
      local answer = pack(ANSWER_FORMAT, POSTED, 0, sequence + accepted, debit_after, credit_after, amount, 0)
      local outcome = answer .. content
      replies[i], known[id] = answer, outcome
      outcomes[outcome_at + 1], outcomes[outcome_at + 2] = id, outcome
      i = i + 1
    elseif linked[i] then
      i = decide_chain(i)
    else
      decide_one(i)
      i = i + 1
    end
  end
end

-- Phase 3: the journal entry first; nothing after it can fail on data, because phase 1 looked.
local function write(fence)
  if accepted > 0 then
    journal_append(shard_tag, meta, accepted, now_ms, concat(records, '', 1, record_parts), detail_items, origins, links, tier_changes,
      kept_items)
    fence_move(fence, meta)
    local changes = { meta_key(shard_tag), pack_meta(meta) }
    local n = add_packed_wallets(changes, 2, dirty_slots, dirty_count)
    for from = 1, n, CHUNK do
      redis.call('MSET', unpack(changes, from, min(from + CHUNK - 1, n)))
    end
  end
  call_in_chunks('HSET', idempotency_key(shard_tag, meta.generation), outcomes, outcome_parts)
  if special then
    write_holds(shard_tag, meta)
    write_refunded(shard_tag, meta)
    write_tiers(shard_tag)
  end
  write_rules(fence.max_outcomes)
  if declined then
    redis.pcall('XADD', declined_key(shard_tag), 'MAXLEN', '~', MAX_DECLINED_ENTRIES, '*', 'd', concat(declined))
  end
end

-- Whether so much of the server's memory is used that the rest is kept for the persister, who makes room, and for
-- reading. INFO is looked at once in MEMORY_CHECK_MS; no maxmemory, no bound.
local function is_memory_full(fence, now)
  local at = fence.memory_at_ms
  if not at or now >= at + MEMORY_CHECK_MS or now < at then
    local info = redis.call('INFO', 'memory')
    local used, most = tonumber(match(info, '\nused_memory:(%d+)')), tonumber(match(info, '\nmaxmemory:(%d+)'))
    fence.memory_at_ms, fence.is_memory_full = now, most > 0 and used > MEMORY_SHARE * most
  end
  return fence.is_memory_full
end

-- How many more records the journal may take. None while memory is short, and while the generation's hash is full: a refusal is kept there too,
-- so without this bound refusals alone would fill the memory while no persister ends generations. Looked at once a
-- batch, so a hash ends up less than MAX_BATCH above it.
local function room_left(fence, now)
  if is_memory_full(fence, now) then return 0 end
  if redis.call('HLEN', idempotency_key(shard_tag, meta.generation)) >= fence.max_outcomes then return 0 end
  return fence.max_backlog - (meta.sequence - meta.persisted)
end

local function refuse_all(requests, status, sequence, now)
  local reply = pack(ANSWER_FORMAT, status, 0, sequence, 0, 0, 0, 0)
  return pack(REPLY_HEADER_FORMAT, now) .. rep(reply, #requests / REQUEST_SIZE)
end

local function post(keys, args)
  local tag, requests, not_after_ms = keys[1], args[3], tonumber(args[5])
  if not ACCEPTED_WIRE_VERSIONS[args[1]] then fail('WIRE', 'version ' .. tostring(args[1]) .. ' is not spoken here') end
  if not not_after_ms or not is_whole(not_after_ms) then invalid('not_after_ms') end
  parse_requests(tag, requests, args[4], args[6] or '')
  local now = clock_ms()
  if not fences[tag] then return refuse_all(requests, SHARD_NOT_OPEN, 0, now) end
  local m = read_meta(tag) or corrupt('meta: missing')
  if m.deployment ~= args[2] then fail('FOREIGN', 'the shard belongs to another deployment') end
  local fence = fence_check(tag, m)
  if not fence then return refuse_all(requests, SHARD_NOT_OPEN, m.sequence, now) end
  if now >= not_after_ms then return refuse_all(requests, DEADLINE_PASSED, m.sequence, now) end
  journal_check(tag, m)
  shard_tag, meta, now_ms = tag, m, max(now, m.time_ms)
  read()
  room = room_left(fence, now)
  decide()
  if declined then redis.call('XLEN', declined_key(tag)) end -- fails on a key of another type, as XADD would
  write(fence)
  return pack(REPLY_HEADER_FORMAT, now) .. concat(replies)
end

register('hotledger_post', post)
