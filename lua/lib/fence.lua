-- The fence: what `open` leaves behind, in a local variable of this server process. A restart, a full resync or
-- a library reload clears it, and a node that was demoted and promoted again has another master_replid. Without
-- a fence that matches, the shard takes no payment: the history in memory may not be the one the ledger has.
local fences = {}

-- nil on a replica.
local function replication_id()
  local info = redis.call('INFO', 'replication')
  if not find(info, 'role:master', 1, true) then return nil end
  return match(info, 'master_replid:(%x+)')
end

-- max_backlog: records that the ledger may lack; max_outcomes: records that one idempotency generation may hold.
local function fence_raise(tag, m, replid, max_backlog, max_outcomes)
  fences[tag] = {
    epoch = m.epoch, sequence = m.sequence, hash = m.hash, replid = replid,
    max_backlog = max_backlog, max_outcomes = max_outcomes,
  }
end

-- Takes the fence along with meta: called by whoever appends to the journal.
local function fence_move(fence, m)
  fence.sequence, fence.hash = m.sequence, m.hash
end

-- The shard's fence if it is open for exactly this history, else nil.
local function fence_check(tag, m)
  local fence = fences[tag]
  if not fence or not m then return nil end
  if fence.epoch ~= m.epoch or fence.sequence ~= m.sequence or fence.hash ~= m.hash then return nil end
  if fence.replid ~= replication_id() then return nil end
  return fence
end

-- Refuses whoever may not delete: what calls this is the persisters' alone, and engines' access rules lack that right. A
-- function's body runs under its caller's rules, and the bare tag is no key, so nothing is deleted here.
local function only_persisters(tag) redis.call('UNLINK', tag) end
