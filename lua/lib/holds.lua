-- Holds: money that is locked on the debit wallet until it is captured, released or its time is over. The open ones
-- are in one hash, those that ended in one per idempotency generation, so that a second capture learns what became of
-- the first. An object of this call's `holds` is written if it is marked changed; stored: it is in the open hash.
-- holds[id] is nil until it is read, false where there is none.
local holds

local function unpack_hold(packed)
  if #packed ~= HOLD_SIZE then corrupt('hold: size') end
  local h = {}
  h.layout, h.state, h.purpose, h.review, h.debit, h.credit, h.remaining, h.captured, h.expires_at_ms =
    unpack_from(HOLD_FORMAT, packed)
  if h.layout ~= LAYOUT_VERSION then corrupt('hold: layout') end
  if h.state > HOLD_STATE_EXPIRED then corrupt('hold: state') end
  if h.purpose < TRANSFER or h.purpose > WITHDRAWAL then corrupt('hold: purpose') end
  if h.review > REVIEW_HOLD then corrupt('hold: review') end
  if not is_count(h.remaining) or (h.remaining == 0) ~= (h.state ~= HOLD_STATE_OPEN) then corrupt('hold: remaining') end
  if not is_count(h.captured) then corrupt('hold: captured') end
  if not is_count(h.expires_at_ms) then corrupt('hold: expires_at_ms') end
  return h
end

local function pack_hold(h)
  return pack(HOLD_FORMAT, LAYOUT_VERSION, h.state, h.purpose, h.review, h.debit, h.credit, h.remaining,
    h.captured, h.expires_at_ms)
end

-- Reads the holds of hold_ids[1..count] into holds, the open ones ahead of those that ended.
local function read_holds(tag, m, hold_ids, count)
  local found, open = {}, {}
  if count == 0 then return end
  for n = 1, count do holds[hold_ids[n]] = false end
  redis.call('ZCARD', due_key(tag)) -- fails on a key of another type, as the writes would
  read_fields(resolved_key(tag, m.generation - 1), hold_ids, count, found)
  read_fields(resolved_key(tag, m.generation), hold_ids, count, found)
  read_fields(holds_key(tag), hold_ids, count, open)
  for id, packed in pairs(found) do holds[id] = unpack_hold(packed) end
  for id, packed in pairs(open) do
    local h = unpack_hold(packed)
    if h.state ~= HOLD_STATE_OPEN then corrupt('hold: state') end
    h.stored = true
    holds[id] = h
  end
end

-- The hold of an id that no request referred to, which a movement is about to take for its own review.
local function hold_exists(tag, m, id)
  if holds[id] == nil then read_holds(tag, m, { id }, 1) end
  return holds[id] and true
end

local function copy_of(object)
  local copy = {}
  for name, value in pairs(object) do copy[name] = value end
  return copy
end

local function write_holds(tag, m)
  local open, ended, gone, due, settled = {}, {}, {}, {}, {}
  for id, h in pairs(holds) do
    if h and h.changed then
      if h.state == HOLD_STATE_OPEN then
        open[#open + 1], open[#open + 2] = id, pack_hold(h)
        if h.expires_at_ms > 0 and not h.stored then due[#due + 1], due[#due + 2] = h.expires_at_ms, id end
      else
        ended[#ended + 1], ended[#ended + 2] = id, pack_hold(h)
        if h.stored then
          gone[#gone + 1] = id
          if h.expires_at_ms > 0 then settled[#settled + 1] = id end
        end
      end
    end
  end
  call_in_chunks('HSET', holds_key(tag), open, #open)
  call_in_chunks('ZADD', due_key(tag), due, #due)
  call_in_chunks('HSET', resolved_key(tag, m.generation), ended, #ended)
  call_in_chunks('HDEL', holds_key(tag), gone, #gone)
  call_in_chunks('ZREM', due_key(tag), settled, #settled)
end
