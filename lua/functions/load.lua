-- Filling a shard from its ledger: a rebuild of an empty one, or what one that is behind lacks. The persister leader's:
-- refused to a user without the right to UNLINK.
--
-- hotledger_begin_load  ARGV token, mode ('full' or 'feed'), epoch, sequence, hash; the last three '' for no meta, '*'
--   for any, even a damaged one (full only)
--   Closes the fence; from now on only calls with this token may write into the shard, and no open succeeds, until
--   hotledger_end_load. full: meta and journal go at once, so what is half filled never looks like a shard.
--   Errors: CHANGED if meta is not as it was compared with the ledger, CORRUPT, INVALID.
-- hotledger_load        ARGV token, what, number, width, items
--   Writes items of `width` bytes each: the name, then what is stored under it. what and number say where:
--   wallets, known      a wallet's id; its packed WALLET (with USAGE, in a tier); its packed KNOWN_DEVICEs
--   outcomes g          a transfer's id; its kept outcome, as lib/idempotency.lua has it
--   holds, resolved g   a hold's id; its packed HOLD
--   due                 a hold's id; its time in ms, a float64
--   refunded g          a transfer's id; its refunds in all, a float64
--   tiers               a tier (uint16); its packed TIER_LIMITS
--   attempts day        a field; its packed ATTEMPTS with the wallets behind it. What is there and further is left
--   ended               a hold's id and nothing else: it is open no more
--   number: a generation, or a day since 1970; '' elsewhere. Errors: CHANGED, INVALID.
-- hotledger_wipe        ARGV token, keys of the shard, as SCAN found them
--   Removes them. Errors: CHANGED, INVALID.
-- hotledger_end_load    ARGV token, packed META
--   The shard is whole: empties the journal and has it go on from meta's sequence, drops what a feed made too old, writes
--   meta and gives the token back, in one call. Opening it is another step. Errors: CHANGED, CORRUPT.
-- KEYS[1] is the shard's hash tag everywhere. Statuses: none

local function check_token(tag, token)
  only_persisters(tag)
  if redis.call('GET', loading_key(tag)) ~= token then fail('CHANGED', 'another load has begun, or this one ended') end
end

register('hotledger_begin_load', function(keys, args)
  local tag, token, full = keys[1], args[1], args[2] == 'full'
  only_persisters(tag)
  if #token ~= 16 or not full and args[2] ~= 'feed' then invalid('token or mode') end
  if not full or args[3] ~= '*' then
    local m = read_meta(tag)
    local found = m and format('%.0f %.0f %s', m.epoch, m.sequence, m.hash) or '  '
    if found ~= concat(args, ' ', 3, 5) or not full and not m then fail('CHANGED', 'meta is at ' .. found) end
  end
  fences[tag] = nil
  redis.call('SET', loading_key(tag), token)
  if full then redis.call('UNLINK', meta_key(tag), journal_key(tag)) end
  return redis.status_reply('OK')
end)

-- Names and values of packed items, one after the other.
local function split_items(items, name_size, width)
  local count = #items / width
  if count % 1 ~= 0 or width < name_size then invalid('items: size') end
  local found, n = {}, 0
  for at = 1, #items, width do
    found[n + 1], found[n + 2] = sub(items, at, at + name_size - 1), sub(items, at + name_size, at + width - 1)
    n = n + 2
  end
  return found, n
end

local function load_strings(prefix, items, width)
  local found, n = split_items(items, 8, width)
  for i = 1, n, 2 do found[i] = prefix .. found[i] end
  for from = 1, n, CHUNK do redis.call('MSET', unpack(found, from, min(from + CHUNK - 1, n))) end
end

local function load_hash(key, name_size, items, width)
  local found, n = split_items(items, name_size, width)
  call_in_chunks('HSET', key, found, n)
end

-- As post keeps them: without a rest that is NUL.
local function load_outcomes(key, items, width)
  local found, n = split_items(items, 16, width)
  for i = 2, n, 2 do
    if sub(found[i], KEPT_SIZE + 1) == NO_REST then found[i] = sub(found[i], 1, KEPT_SIZE) end
  end
  call_in_chunks('HSET', key, found, n)
end

local function load_due(key, items)
  local found, n = split_items(items, 16, 24)
  for i = 1, n, 2 do found[i], found[i + 1] = format('%.0f', unpack_from('<d', found[i + 1])), found[i] end
  call_in_chunks('ZADD', key, found, n)
end

-- Refused attempts reach the ledger late, or never: a counter that is further than the ledger's stays.
local function is_further(old, new)
  local old_window, _, old_count = unpack_from(ATTEMPTS_FORMAT, old)
  local window, _, count = unpack_from(ATTEMPTS_FORMAT, new)
  return old_window > window or old_window == window and old_count >= count
end

local function load_attempts(key, day, items, width)
  local found, n = split_items(items, 17, width)
  local changes, count = {}, 0
  for i = 1, n, 2 do
    local old = redis.call('HGET', key, found[i])
    if not old or not is_further(old, found[i + 1]) then
      changes[count + 1], changes[count + 2] = found[i], found[i + 1]
      count = count + 2
    end
  end
  call_in_chunks('HSET', key, changes, count)
  redis.call('PEXPIREAT', key, format('%.0f', (day + 2) * DAY_MS))
end

local function load_ended(tag, items)
  local found, n = split_items(items, 16, 16)
  local gone = {}
  for i = 1, n, 2 do gone[#gone + 1] = found[i] end
  call_in_chunks('HDEL', holds_key(tag), gone, #gone)
  call_in_chunks('ZREM', due_key(tag), gone, #gone)
end

local LOADERS = {
  wallets = function(tag, _, items, width) load_strings(wallet_prefix(tag), items, width) end,
  known = function(tag, _, items, width) load_strings(known_prefix(tag), items, width) end,
  outcomes = function(tag, g, items, width) load_outcomes(idempotency_key(tag, g), items, width) end,
  holds = function(tag, _, items, width) load_hash(holds_key(tag), 16, items, width) end,
  resolved = function(tag, g, items, width) load_hash(resolved_key(tag, g), 16, items, width) end,
  refunded = function(tag, g, items, width) load_hash(refunded_key(tag, g), 16, items, width) end,
  tiers = function(tag, _, items, width) load_hash(tiers_key(tag), 2, items, width) end,
  due = function(tag, _, items) load_due(due_key(tag), items) end,
  attempts = function(tag, day, items, width) load_attempts(attempts_key(tag, day), day, items, width) end,
  ended = function(tag, _, items) load_ended(tag, items) end,
}

register('hotledger_load', function(keys, args)
  local tag, load, number, width = keys[1], LOADERS[args[2]], tonumber(args[3]), tonumber(args[4])
  if not load or not width or width < 1 or number and not is_count(number) then invalid('what, number or width') end
  check_token(tag, args[1])
  load(tag, number, args[5], width)
  return redis.status_reply('OK')
end)

register('hotledger_wipe', function(keys, args)
  local tag, prefix = keys[1], keys[1] .. ':'
  check_token(tag, args[1])
  for n = 2, #args do
    if sub(args[n], 1, #prefix) ~= prefix or args[n] == loading_key(tag) then invalid('key') end
  end
  for from = 2, #args, CHUNK do redis.call('UNLINK', unpack(args, from, min(from + CHUNK - 1, #args))) end
  return redis.status_reply('OK')
end)

register('hotledger_end_load', function(keys, args)
  local tag = keys[1]
  check_token(tag, args[1])
  local m, old = unpack_meta(args[2]), read_meta(tag)
  if m.sequence == 0 then
    redis.call('UNLINK', journal_key(tag))
  else
    redis.call('XADD', journal_key(tag), 'MAXLEN', 0, journal_id(m.sequence), 'h', '')
  end
  for g = old and max(old.generation - 1, 1) or m.generation, m.generation - 2 do
    redis.call('UNLINK', idempotency_key(tag, g), resolved_key(tag, g), refunded_key(tag, g))
  end
  redis.call('SET', meta_key(tag), args[2])
  redis.call('UNLINK', loading_key(tag))
  return redis.status_reply('OK')
end)
