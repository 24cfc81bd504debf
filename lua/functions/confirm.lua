-- hotledger_confirm: whether this server has what callers were answered, who wait until it is durable. A server that
-- took over may lack it: then its disk and its replicas say nothing about it.
--
-- KEYS[1]  the shard's hash tag
-- ARGV[1]  deployment: as in hotledger_post
-- ARGV[2]  items: packed CONFIRMATIONs, 1 to MAX_BATCH
-- ARGV[3]  '1' to write something small besides, so that WAITAOF on this connection speaks of all that was written
--          before; '0' not to
-- Returns  {persisted: the sequence that the ledger has reached, one byte per item: '1' if exactly this answer is kept
--          under the id (whether it was a replay does not count), else '0'}
-- Statuses none
-- Errors   CLOSED (the shard is not open), FOREIGN (the shard of another deployment), CORRUPT, INVALID

register('hotledger_confirm', function(keys, args)
  local tag, items = keys[1], args[2]
  local count = #items / CONFIRMATION_SIZE
  if count < 1 or count > MAX_BATCH or count % 1 ~= 0 then invalid('items: size') end
  local m = fences[tag] and (read_meta(tag) or corrupt('meta: missing'))
  if not m or not fence_check(tag, m) then fail('CLOSED', 'the shard is not open') end
  if m.deployment ~= args[1] then fail('FOREIGN', 'the shard belongs to another deployment') end
  local asked, found, flags = {}, {}, {}
  for i = 1, count do
    local at = (i - 1) * CONFIRMATION_SIZE
    asked[i] = sub(items, at + 1, at + 16)
  end
  read_fields(idempotency_key(tag, m.generation - 1), asked, count, found)
  read_fields(idempotency_key(tag, m.generation), asked, count, found)
  for i = 1, count do
    local kept, last = found[asked[i]], i * CONFIRMATION_SIZE
    -- All of the answer but its last byte, which says whether it is a replay.
    flags[i] = kept and sub(kept, 1, ANSWER_SIZE - 1) == sub(items, last - ANSWER_SIZE + 1, last - 1) and '1' or '0'
  end
  if args[3] == '1' then redis.call('SET', touch_key(tag), redis.call('TIME')[1]) end
  return { format('%.0f', m.persisted), concat(flags) }
end, 'allow-oom')
