-- The journal: a stream whose entry ids are '<last sequence>-0', so that it is addressable and cannot fork.
local function journal_id(sequence) return format('%.0f-0', sequence) end

-- The sequence of the journal's last entry. The persister's trim always leaves one, so XREVRANGE answers in
-- the cost of that entry; only an empty stream needs XINFO.
local function journal_last_sequence(tag)
  local key = journal_key(tag)
  local last = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
  local id = last and last[1]
  if not id then
    if redis.call('EXISTS', key) == 0 then return 0 end
    local info = redis.call('XINFO', 'STREAM', key)
    for i = 1, #info, 2 do
      if info[i] == 'last-generated-id' then id = info[i + 1] end
    end
  end
  return tonumber(match(id, '^(%d+)-0$')) or corrupt('journal: id ' .. id)
end

-- Ends the call if the journal is not of meta's history, or not a stream: called before any write that relies on it.
local function journal_check(tag, m)
  if journal_last_sequence(tag) ~= m.sequence then corrupt('journal: its last entry is not meta\'s sequence') end
end

local EMPTY = {}

-- Appends the accepted records as one entry and moves meta to it. The commit point: it is the first write of
-- every call, and everything that could fail on data was read before. records: packed JOURNAL_RECORDs. Lists, nil for
-- none: details (packed DETAILS), origins (ORIGINs), links (LINKs), tiers (TIER_CHANGEs), kept (IDEMPOTENCYs). Changes
-- m (not yet written).
-- The entry's time is now, but never behind the last entry's: a clock set back must not reorder history.
local function journal_append(tag, m, count, now, records, details, origins, links, tiers, kept)
  local first, last = m.sequence + 1, m.sequence + count
  if now < m.time_ms then now = m.time_ms end
  local x, o = concat(details or EMPTY), concat(origins or EMPTY)
  local l, t, k = concat(links or EMPTY), concat(tiers or EMPTY), concat(kept or EMPTY)
  local place = pack(HASHED_HEADER_FORMAT, m.epoch, first, last, now, #x, #o, #l, #t)
  local hash = redis.sha1hex(m.hash .. place .. records .. x .. o .. l .. t .. k)
  local header = pack(ENTRY_HEADER_FORMAT, LAYOUT_VERSION, m.epoch, first, last, now, m.hash, hash)
  local fields = { 'h', header, 'r', records }
  local n = 4
  local function add(name, part)
    if part ~= '' then
      fields[n + 1], fields[n + 2] = name, part
      n = n + 2
    end
  end
  add('x', x)
  add('o', o)
  add('l', l)
  add('t', t)
  add('k', k)
  redis.call('XADD', journal_key(tag), journal_id(last), unpack(fields, 1, n))
  m.sequence, m.hash, m.time_ms = last, hash, now
end
