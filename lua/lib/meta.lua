-- The shard's meta record: who it is, how far it is. One string, so it is written with the wallets in one MSET.
local function unpack_meta(packed)
  if #packed ~= META_SIZE then corrupt('meta: size') end
  local m, layout = {}, nil
  layout, m.deployment, m.key_fingerprint, m.epoch, m.sequence, m.hash, m.time_ms, m.persisted, m.generation,
    m.generation_sequence = unpack_from(META_FORMAT, packed)
  if layout ~= LAYOUT_VERSION then corrupt('meta: layout') end
  if not is_count(m.epoch) or m.epoch < 1 then corrupt('meta: epoch') end
  if not is_count(m.sequence) then corrupt('meta: sequence') end
  if #match(m.hash, '^%x*') ~= 40 then corrupt('meta: hash') end
  if not is_count(m.time_ms) then corrupt('meta: time_ms') end
  if not is_count(m.persisted) or m.persisted > m.sequence then corrupt('meta: persisted') end
  if not is_count(m.generation) or m.generation < 1 then corrupt('meta: generation') end
  if not is_count(m.generation_sequence) or m.generation_sequence > m.sequence then
    corrupt('meta: generation_sequence')
  end
  return m
end

local function pack_meta(m)
  return pack(META_FORMAT, LAYOUT_VERSION, m.deployment, m.key_fingerprint, m.epoch, m.sequence, m.hash,
    m.time_ms, m.persisted, m.generation, m.generation_sequence)
end

-- nil if there is none. GET itself answers a key of another type with an error.
local function read_meta(tag)
  local packed = redis.call('GET', meta_key(tag))
  return packed and unpack_meta(packed) or nil
end

-- The server's clock in milliseconds, as it is: deadlines are kept by it. What goes into the history is clamped by
-- journal_append.
local function clock_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + floor(t[2] / 1000)
end
