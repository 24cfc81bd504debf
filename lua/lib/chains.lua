-- Chains: requests that are linked each with the next one. All of a chain happens, or none: Lua tables are put back to
-- what they were before it, writes come later. Attempts that the fraud rules count stay counted.

local decide_chain

do -- so that what only this file uses does not count against Lua's 200 locals

-- The number of the chain's last request, and whether it is linked to one that is not in the batch.
local function end_of_chain(first)
  local last = first
  while linked[last] and last < request_count do last = last + 1 end
  return last, linked[last]
end

local function wallet_tables()
  return { flags, tier, available, locked, version, currency, overdraft, dirty }
end

-- What the journal gets besides the records.
local function journal_lists()
  return { detail_items or {}, origins or {}, links or {}, tier_changes or {}, kept_items or {} }
end

-- What the requests first..last may change, as it is now.
local function snapshot(first, last)
  local s = { slots = {}, ids = {}, holds = {}, refunded = {}, tiers = {} }
  for i = first, last do
    if references[i] then refer(i) end -- what the chain itself makes has the wallets of the request that makes it
    for _, slot in pairs({ debits[i], credits[i] }) do
      if not s.slots[slot] then
        local values, tables = {}, wallet_tables()
        for n = 1, #tables do values[n] = tables[n][slot] end
        s.slots[slot] = {
          values = values, usage = usage[slot],
          known = known_devices[slot], known_changed = changed_devices[slot],
        }
      end
    end
    for _, id in pairs({ ids[i], references[i] }) do
      s.ids[id] = true
      s.holds[id] = holds[id] and copy_of(holds[id])
      s.refunded[id] = refunded[id]
    end
    if kinds[i] == SET_TIER_LIMITS and is_count(amounts[i]) then s.tiers[amounts[i]] = tiers[amounts[i]] or false end
  end
  s.accepted, s.record_parts, s.outcome_parts, s.dirty_count = accepted, record_parts, outcome_parts, dirty_count
  s.counts = {}
  for n, list in ipairs(journal_lists()) do s.counts[n] = #list end
  return s
end

local function cut(list, count)
  for n = #list, count + 1, -1 do list[n] = nil end
end

local function restore(s, first, last)
  local tables = wallet_tables()
  for slot, was in pairs(s.slots) do
    for n = 1, #tables do tables[n][slot] = was.values[n] end
    usage[slot], known_devices[slot], changed_devices[slot] = was.usage, was.known, was.known_changed
  end
  for id in pairs(s.ids) do holds[id], refunded[id] = s.holds[id], s.refunded[id] end
  for number, limits in pairs(s.tiers) do tiers[number] = limits or nil end
  accepted, record_parts, outcome_parts, dirty_count = s.accepted, s.record_parts, s.outcome_parts, s.dirty_count
  for n, list in ipairs(journal_lists()) do cut(list, s.counts[n]) end
  for i = first, last do known[ids[i]] = nil end
end

-- Answers a chain that failed by the status of its request `culprit`. It is kept as a whole if that status is.
local function fail_chain(first, last, culprit, status, of_culprit)
  for i = first, last do
    local packed = i == culprit and refusal(i, status, of_culprit.rule, of_culprit.used, of_culprit.retry_at_ms)
      or refusal(i, LINKED_FAILED)
    if RECORDED[status] then keep(i, packed) else replies[i] = packed end
  end
end

-- How many of the chain's requests were decided before; and one of them, the first with another content if there is any:
-- if that is not all or none, it was in another chain.
local function decided_before(first, last)
  local count, one = 0, nil
  for i = first, last do
    local old = known[ids[i]]
    if old then
      count = count + 1
      if not one or sub(known[ids[one]], ANSWER_SIZE + 1) == contents[one] then one = i end
    end
  end
  return count, one
end

-- Decides the chain that begins at request first; returns the number of the request after it.
function decide_chain(first)
  local last, is_open = end_of_chain(first)
  if is_open then
    fail_chain(first, last, last, LINKED_CHAIN_OPEN, {})
    return last + 1
  end
  local count, one = decided_before(first, last)
  if count > 0 then
    if count == last - first + 1 then
      for i = first, last do replay(i) end
    else
      local old = known[ids[one]]
      local difference = sub(old, ANSWER_SIZE + 1) == contents[one] and EXISTS_WITH_DIFFERENT_CHAIN
        or first_difference(old, contents[one])
      fail_chain(first, last, one, difference, {})
    end
    return last + 1
  end
  if accepted + last - first + 1 > room then
    fail_chain(first, last, first, LEDGER_BACKLOG, {})
    return last + 1
  end
  local s, at, status = snapshot(first, last), first, POSTED
  in_chain = {}
  while at <= last and status == POSTED do
    status = known[ids[at]] and EXISTS_WITH_DIFFERENT_CHAIN or decide_one(at)
    at = at + 1
  end
  local of_culprit = in_chain
  in_chain = false
  if status ~= POSTED then
    restore(s, first, last)
    fail_chain(first, last, at - 1, status, of_culprit)
  end
  return last + 1
end

end
