-- Reading without writing.
--
-- hotledger_state   no ARGV. Returns {open (1 or 0), meta (packed META, or '' for none), sequence of the journal's
--   last entry, replication id ('' on a replica), records in the current idempotency generation, loading (1 or 0),
--   max_backlog and max_outcomes of the open fence (0 if closed)}
-- hotledger_lookup  ARGV ids: 16-byte transfer ids. Returns REPLY_HEADER, and for each id its packed IDEMPOTENCY or ''
-- hotledger_wallets ARGV ids: 8-byte wallet ids. Returns {sequence, and for each id its packed WALLET (with USAGE,
--   if its tier has limits) or ''}
-- hotledger_holds   ARGV ids: 16-byte hold ids. Returns {sequence, and for each id its packed HOLD or ''}
-- hotledger_due     ARGV limit. Returns the ids of open holds whose time is over, the first due first
-- hotledger_tier    ARGV tier. Returns its packed TIER_LIMITS or ''
-- KEYS[1] is the shard's hash tag everywhere.
-- Errors: CLOSED (lookup, wallets and holds: the shard is not open), CORRUPT, INVALID. Statuses: none

local function split(packed, size)
  local count = #packed / size
  if count < 1 or count > MAX_BATCH or count % 1 ~= 0 then invalid('ids: size') end
  local parts = {}
  for i = 1, count do
    parts[i] = sub(packed, (i - 1) * size + 1, i * size)
  end
  return parts, count
end

local function open_meta(tag)
  local m = fences[tag] and (read_meta(tag) or corrupt('meta: missing'))
  if not m or not fence_check(tag, m) then fail('CLOSED', 'the shard is not open') end
  return m
end

register('hotledger_state', function(keys)
  local tag = keys[1]
  local m = read_meta(tag)
  local fence = fence_check(tag, m)
  return {
    fence and 1 or 0,
    m and pack_meta(m) or '',
    format('%.0f', journal_last_sequence(tag)),
    replication_id() or '',
    m and redis.call('HLEN', idempotency_key(tag, m.generation)) or 0,
    redis.call('EXISTS', loading_key(tag)),
    format('%.0f', fence and fence.max_backlog or 0),
    format('%.0f', fence and fence.max_outcomes or 0),
  }
end, 'no-writes')

register('hotledger_lookup', function(keys, args)
  local tag = keys[1]
  local ids, count = split(args[1], 16)
  local m = open_meta(tag)
  local known = read_known(tag, m, ids, count)
  local reply = { pack(REPLY_HEADER_FORMAT, clock_ms()) }
  for i = 1, count do
    local kept = known[ids[i]] or ''
    reply[i + 1] = #kept == KEPT_SIZE and kept .. NO_REST or kept
  end
  return reply
end, 'no-writes')

register('hotledger_wallets', function(keys, args)
  local tag = keys[1]
  local ids, count = split(args[1], 8)
  local m = open_meta(tag)
  local prefix = wallet_prefix(tag)
  new_wallets()
  for i = 1, count do slot_of(prefix, ids[i]) end
  read_wallets()
  local reply = { format('%.0f', m.sequence) }
  for i = 1, count do
    local slot = slot_of(prefix, ids[i])
    reply[i + 1] = version[slot] and pack_wallet(slot) or ''
  end
  return reply
end, 'no-writes')

register('hotledger_holds', function(keys, args)
  local tag = keys[1]
  local ids, count = split(args[1], 16)
  local m = open_meta(tag)
  holds = {}
  read_holds(tag, m, ids, count)
  local reply = { format('%.0f', m.sequence) }
  for i = 1, count do reply[i + 1] = holds[ids[i]] and pack_hold(holds[ids[i]]) or '' end
  return reply
end, 'no-writes')

register('hotledger_due', function(keys, args)
  local limit = tonumber(args[1])
  if not limit or not is_count(limit) or limit < 1 or limit > MAX_BATCH then invalid('limit') end
  return redis.call('ZRANGEBYSCORE', due_key(keys[1]), '-inf', format('%.0f', clock_ms()), 'LIMIT', 0, limit)
end, 'no-writes')

register('hotledger_tier', function(keys, args)
  local number = tonumber(args[1])
  if not number or not is_count(number) or number > MAX_TIER then invalid('tier') end
  return redis.call('HGET', tiers_key(keys[1]), pack('<H', number)) or ''
end, 'no-writes')
