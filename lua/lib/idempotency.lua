local read_known

do -- so that what only this file uses does not count against Lua's 200 locals

-- Distrusts a kept answer as read_wallets does a wallet: a replay hands it out as it is.
local function check_outcome(m, packed)
  if #packed ~= KEPT_SIZE and #packed ~= IDEMPOTENCY_SIZE then corrupt('idempotency record: size') end
  local status, _, sequence, debit_available, credit_available, moved, replayed, kind, _, _, _, _, amount =
    unpack_from(KEPT_FORMAT, packed)
  if not RECORDED[status] and status ~= LINKED_FAILED then corrupt('idempotency record: status') end
  if not is_count(sequence) or sequence > m.sequence or (status <= UNDER_REVIEW and sequence < 1) then
    corrupt('idempotency record: sequence')
  end
  if not is_whole(debit_available) then corrupt('idempotency record: debit_available') end
  if not is_whole(credit_available) then corrupt('idempotency record: credit_available') end
  if not is_whole(moved) then corrupt('idempotency record: moved') end
  if replayed ~= 0 then corrupt('idempotency record: replayed') end
  if not KINDS[kind] then corrupt('idempotency record: kind') end
  if not is_count(amount) and status ~= LINKED_FAILED then corrupt('idempotency record: amount') end
end

-- What was decided before under request_ids[1..count], in both generations: id -> packed KEPT, or IDEMPOTENCY where the
-- rest of the content is not NUL; a loader may have written it whole all the same.
function read_known(tag, m, request_ids, count)
  local found = {}
  local previous = idempotency_key(tag, m.generation - 1)
  if redis.call('EXISTS', previous) == 1 then read_fields(previous, request_ids, count, found) end
  read_fields(idempotency_key(tag, m.generation), request_ids, count, found)
  for id, packed in pairs(found) do
    check_outcome(m, packed)
    if sub(packed, KEPT_SIZE + 1) == NO_REST then found[id] = sub(packed, 1, KEPT_SIZE) end
  end
  return found
end

end
