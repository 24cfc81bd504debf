-- Reading without writing.
--
-- hotledger_state   no ARGV. Returns {open (1 or 0), meta (packed META, or '' for none), sequence of the journal's
--   last entry, replication id ('' on a replica), records in the current idempotency generation}
-- hotledger_lookup  ARGV ids: 16-byte transfer ids. Returns REPLY_HEADER, and for each id its packed IDEMPOTENCY or ''
-- hotledger_wallets ARGV ids: 8-byte wallet ids. Returns {sequence, and for each id its packed WALLET or ''}
-- KEYS[1] is the shard's hash tag everywhere.
-- Errors: CLOSED (lookup and wallets: the shard is not open), CORRUPT, INVALID. Statuses: none

local function split(packed, size)
  local count = #packed / size
  if count < 1 or count > MAX_BATCH or count % 1 ~= 0 then fail('INVALID', 'ids: size') end
  local parts = {}
  for i = 1, count do
    parts[i] = string.sub(packed, (i - 1) * size + 1, i * size)
  end
  return parts, count
end

local function open_meta(tag)
  local m = fences[tag] and (read_meta(tag) or corrupt('meta: missing'))
  if not m or not fence_check(tag, m) then fail('CLOSED', 'the shard is not open') end
  return m
end

redis.register_function({
  function_name = 'hotledger_state',
  flags = { 'no-writes' },
  callback = function(keys)
    local tag = keys[1]
    local m = read_meta(tag)
    return {
      fence_check(tag, m) and 1 or 0,
      m and pack_meta(m) or '',
      string.format('%.0f', journal_last_sequence(tag)),
      replication_id() or '',
      m and redis.call('HLEN', idempotency_key(tag, m.generation)) or 0,
    }
  end,
})

redis.register_function({
  function_name = 'hotledger_lookup',
  flags = { 'no-writes' },
  callback = function(keys, args)
    local tag = keys[1]
    local ids, count = split(args[1], 16)
    local m = open_meta(tag)
    local known = read_known(tag, m, ids, count)
    local reply = { struct.pack(REPLY_HEADER_FORMAT, clock_ms()) }
    for i = 1, count do reply[i + 1] = known[ids[i]] or '' end
    return reply
  end,
})

redis.register_function({
  function_name = 'hotledger_wallets',
  flags = { 'no-writes' },
  callback = function(keys, args)
    local tag = keys[1]
    local ids, count = split(args[1], 8)
    local m = open_meta(tag)
    local wallet_keys, prefix = {}, wallet_prefix(tag)
    for i = 1, count do wallet_keys[i] = prefix .. ids[i] end
    local w = new_wallets()
    read_wallets(w, wallet_keys, count)
    local reply = { string.format('%.0f', m.sequence) }
    for i = 1, count do reply[i + 1] = w.version[i] and pack_wallet(w, i) or '' end
    return reply
  end,
})
