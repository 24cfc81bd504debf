-- hotledger_access: what the caller may not do of what post writes. Once post has written its journal entry, nothing may
-- stop it, and an access rule could: so engines and persisters ask when they connect, and refuse to work.
--
-- KEYS[1]  the shard's hash tag
-- Returns  the names of the commands that the caller's access rules forbid, on the keys that post writes
-- Statuses none
-- Errors   none

register('hotledger_access', function(keys)
  local tag, missing = keys[1], {}
  local due, idempotency = due_key(tag), idempotency_key(tag, 1)
  for _, words in ipairs({
    { 'XADD', journal_key(tag), '*', 'x', '' },
    { 'XADD', declined_key(tag), '*', 'x', '' },
    { 'MSET', meta_key(tag), '', wallet_prefix(tag), '' },
    { 'HSET', idempotency, 'x', '' },
    { 'HDEL', holds_key(tag), 'x' },
    { 'ZADD', due, '0', 'x' },
    { 'ZREM', due, 'x' },
    { 'PEXPIREAT', attempts_key(tag, 1), '0' },
  }) do
    if not redis.acl_check_cmd(unpack(words)) then missing[#missing + 1] = words[1] end
  end
  return missing
end, 'no-writes')
