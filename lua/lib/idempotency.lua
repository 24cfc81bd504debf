-- What was decided before under ids[1..count], in both generations: id -> packed IDEMPOTENCY. HMGET itself answers
-- a key of another type with an error.
local function read_known(tag, generation, ids, count)
  local known = {}
  local function read(key)
    for from = 1, count, CHUNK do
      local found = redis.call('HMGET', key, unpack(ids, from, math.min(from + CHUNK - 1, count)))
      for j = 1, #found do
        local value = found[j]
        if value then
          if #value ~= IDEMPOTENCY_SIZE then corrupt('idempotency record: size') end
          known[ids[from + j - 1]] = value
        end
      end
    end
  end
  local previous = idempotency_key(tag, generation - 1)
  if redis.call('EXISTS', previous) == 1 then read(previous) end
  read(idempotency_key(tag, generation))
  return known
end
