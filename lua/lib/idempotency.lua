-- Distrusts a kept answer as read_wallets does a wallet: a replay hands it out as it is.
local function check_outcome(m, packed)
  if #packed ~= IDEMPOTENCY_SIZE then corrupt('idempotency record: size') end
  local status, sequence, debit_available, credit_available, replayed, _, _, _, _, _, amount =
    struct.unpack(IDEMPOTENCY_FORMAT, packed)
  if not RECORDED[status] then corrupt('idempotency record: status') end
  if not is_count(sequence) or sequence > m.sequence or (status == POSTED and sequence < 1) then
    corrupt('idempotency record: sequence')
  end
  if not is_whole(debit_available) then corrupt('idempotency record: debit_available') end
  if not is_whole(credit_available) then corrupt('idempotency record: credit_available') end
  if replayed ~= 0 then corrupt('idempotency record: replayed') end
  if not is_count(amount) then corrupt('idempotency record: amount') end
end

-- What was decided before under ids[1..count], in both generations: id -> packed IDEMPOTENCY. HMGET itself answers
-- a key of another type with an error.
local function read_known(tag, m, ids, count)
  local known = {}
  local function read(key)
    for from = 1, count, CHUNK do
      local found = redis.call('HMGET', key, unpack(ids, from, math.min(from + CHUNK - 1, count)))
      for j = 1, #found do
        local value = found[j]
        if value then
          check_outcome(m, value)
          known[ids[from + j - 1]] = value
        end
      end
    end
  end
  local previous = idempotency_key(tag, m.generation - 1)
  if redis.call('EXISTS', previous) == 1 then read(previous) end
  read(idempotency_key(tag, m.generation))
  return known
end
