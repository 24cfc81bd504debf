-- The life of a shard between its ledger and its engines. All but hotledger_touch are the persister leader's: refused to
-- a user without the right to UNLINK.
--
-- hotledger_initialise  ARGV deployment (16 bytes), key_fingerprint (8 bytes), epoch
--   Writes the meta record of an empty shard at sequence 0. Errors: EXISTS if the shard has a meta or a journal,
--   or is being loaded.
-- hotledger_open        ARGV epoch, sequence, hash, replication id, max_backlog, max_outcomes
--   Opens the fence if meta and the journal are exactly at what was compared with the ledger, in the server process
--   where it was compared: one that restarted since has another replication id. max_backlog: records that
--   the ledger may lack, max_outcomes: records that the current idempotency generation may hold, before post answers
--   LEDGER_BACKLOG. Errors: CHANGED (also while the shard is being loaded), CORRUPT, INVALID.
-- hotledger_close       no ARGV. Closes the fence: until the next open, post answers SHARD_NOT_OPEN.
-- hotledger_advance     ARGV epoch, persisted, trim_before
--   Notes how far the ledger is, publishes that, and trims the journal's entries that end before trim_before, never the
--   last one. Errors: CHANGED, CORRUPT.
-- hotledger_end_generation  ARGV epoch, generation
--   Ends idempotency generation `generation` by a journalled decision; drops the one before it, if all of it is
--   in the ledger, with the holds that ended and the refund totals of its time. Returns 1, or 0 if it is too early or was done already. Needs the open fence.
--   Errors: CHANGED, CORRUPT.
-- hotledger_touch       no ARGV. A small write, so that WAITAOF on this connection speaks of something.
-- KEYS[1] is the shard's hash tag everywhere. Statuses: none

local function meta_of_epoch(tag, epoch)
  local m = read_meta(tag) or corrupt('meta: missing')
  if m.epoch ~= tonumber(epoch) then fail('CHANGED', format('the epoch is %.0f', m.epoch)) end
  return m
end

local function bound(text, name)
  local number = tonumber(text)
  if not number or not is_count(number) then invalid(name) end
  return number
end

register('hotledger_initialise', function(keys, args)
  local tag = keys[1]
  only_persisters(tag)
  if #args[1] ~= 16 or #args[2] ~= 8 then invalid('deployment or key_fingerprint') end
  if redis.call('EXISTS', meta_key(tag), journal_key(tag), loading_key(tag)) > 0 then fail('EXISTS', 'the shard is not empty') end
  redis.call('SET', meta_key(tag), pack_meta({
    deployment = args[1], key_fingerprint = args[2], epoch = tonumber(args[3]), sequence = 0,
    hash = rep('0', 40), time_ms = clock_ms(), persisted = 0, generation = 1, generation_sequence = 0,
  }))
  return redis.status_reply('OK')
end)

register('hotledger_open', function(keys, args)
  local tag = keys[1]
  only_persisters(tag)
  if redis.call('EXISTS', loading_key(tag)) == 1 then fail('CHANGED', 'a load has not ended') end
  local m = meta_of_epoch(tag, args[1])
  if m.sequence ~= tonumber(args[2]) or m.hash ~= args[3] then
    fail('CHANGED', format('meta is at %.0f %s', m.sequence, m.hash))
  end
  local max_backlog, max_outcomes = bound(args[5], 'max_backlog'), bound(args[6], 'max_outcomes')
  journal_check(tag, m)
  local replid = replication_id()
  if replid ~= args[4] then fail('CHANGED', 'the replication id is ' .. (replid or 'a replica\'s')) end
  fence_raise(tag, m, replid, max_backlog, max_outcomes)
  return redis.status_reply('OK')
end)

register('hotledger_close', function(keys)
  only_persisters(keys[1])
  fences[keys[1]] = nil
  return redis.status_reply('OK')
end)

register('hotledger_advance', function(keys, args)
  local tag = keys[1]
  only_persisters(tag)
  local m = meta_of_epoch(tag, args[1])
  local persisted, trim_before = tonumber(args[2]), tonumber(args[3])
  if persisted > m.sequence then fail('CHANGED', format('meta is at %.0f', m.sequence)) end
  journal_last_sequence(tag) -- fails on a key of another type, as XTRIM would after the SET
  if persisted > m.persisted then
    m.persisted = persisted
    redis.call('SET', meta_key(tag), pack_meta(m))
    -- For engines that wait for it. One that misses it asks, so an access rule that forbids it harms nothing.
    redis.pcall('PUBLISH', persisted_channel(tag), format('%.0f', persisted))
  end
  if trim_before > persisted then trim_before = persisted end
  if trim_before > 0 then redis.call('XTRIM', journal_key(tag), 'MINID', journal_id(trim_before)) end
  return redis.status_reply('OK')
end, 'allow-oom')

register('hotledger_end_generation', function(keys, args)
  local tag = keys[1]
  only_persisters(tag)
  local m = meta_of_epoch(tag, args[1])
  local fence = fence_check(tag, m)
  if not fence or m.generation ~= tonumber(args[2]) or m.persisted < m.generation_sequence then return 0 end
  journal_check(tag, m)
  m.generation_sequence = m.sequence + 1
  local content = pack(CONTENT_FORMAT, END_GENERATION, 0, 0, NO_ID, NO_ID, m.generation + 1, NO_CURRENCY,
    NO_DIGEST, NO_DIGEST)
  journal_append(tag, m, 1, clock_ms(), NO_ID .. NO_ID .. content .. pack(AFTER_FORMAT, 0, 0, 0, 0, 0, 0))
  fence_move(fence, m)
  m.generation = m.generation + 1
  redis.call('SET', meta_key(tag), pack_meta(m))
  local old = m.generation - 2
  redis.call('UNLINK', idempotency_key(tag, old), resolved_key(tag, old), refunded_key(tag, old))
  return 1
end)

register('hotledger_touch', function(keys)
  redis.call('SET', touch_key(keys[1]), redis.call('TIME')[1])
  return redis.status_reply('OK')
end)
