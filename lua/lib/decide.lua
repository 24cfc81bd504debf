-- One request: a replay, a use of its id for something else, or a new decision.

local first_difference, replay, decide_one

do -- so that what only this file uses does not count against Lua's 200 locals

-- Whether a terms_digest is that of a chain: its first byte is odd then.
local function is_of_chain(terms_digest) return byte(terms_digest) % 2 == 1 end

-- The status for a request whose id was used for another content: the first field that differs.
function first_difference(old, content)
  local kind, flag, _, debit, credit, amount, code, digest, terms =
    unpack_from(CONTENT_FORMAT, whole_content(sub(old, ANSWER_SIZE + 1)))
  local kind2, flag2, _, debit2, credit2, amount2, code2, digest2, terms2 = unpack_from(CONTENT_FORMAT, whole_content(content))
  if kind ~= kind2 or flag - flag % 2 ~= flag2 - flag2 % 2 then return EXISTS_WITH_DIFFERENT_KIND end
  if flag ~= flag2 or terms ~= terms2 and (is_of_chain(terms) or is_of_chain(terms2)) then -- LINKED is the odd flag
    return EXISTS_WITH_DIFFERENT_CHAIN
  end
  local names = SHAPES[kind] and SHAPES[kind][1]
  if names == 'both' and debit ~= debit2 then return EXISTS_WITH_DIFFERENT_DEBIT end
  if names == 'both' and credit ~= credit2 then return EXISTS_WITH_DIFFERENT_CREDIT end
  if names == 'ref' and (debit ~= debit2 or credit ~= credit2) then return EXISTS_WITH_DIFFERENT_REFERENCE end
  if amount ~= amount2 and kind ~= OPEN_WALLET then return EXISTS_WITH_DIFFERENT_AMOUNT end
  if debit ~= debit2 then return EXISTS_WITH_DIFFERENT_WALLET end
  if credit ~= credit2 then return EXISTS_WITH_DIFFERENT_OWNER end
  if amount ~= amount2 then return EXISTS_WITH_DIFFERENT_OVERDRAFT_LIMIT end
  if code ~= code2 then return EXISTS_WITH_DIFFERENT_CURRENCY end
  if terms ~= terms2 then return EXISTS_WITH_DIFFERENT_TERMS end
  return EXISTS_WITH_DIFFERENT_DETAILS
end

-- Answers a request whose id is known.
function replay(i)
  local old, content = known[ids[i]], contents[i]
  if sub(old, ANSWER_SIZE + 1) == content then
    replies[i] = sub(old, 1, ANSWER_SIZE - 1) .. '\1'
  else
    replies[i] = pack(ANSWER_FORMAT, first_difference(old, content), 0, meta.sequence + accepted, 0, 0, 0, 0)
  end
end

local DECIDERS = {
  [TRANSFER] = move,
  [TOP_UP] = move,
  [PAYMENT] = move,
  [WITHDRAWAL] = move,
  [HOLD] = move,
  [CAPTURE] = capture,
  [RAISE_HOLD] = raise_hold,
  [VOID] = void,
  [EXPIRE_HOLD] = expire,
  [APPROVE_HOLD] = approve,
  [REFUND] = refund,
  [CHARGEBACK] = refund,
  [OPEN_WALLET] = open_wallet,
  [FREEZE] = change_wallet,
  [UNFREEZE] = change_wallet,
  [CLOSE_WALLET] = change_wallet,
  [SET_OVERDRAFT_LIMIT] = change_wallet,
  [SET_TIER] = change_wallet,
  [SET_TIER_LIMITS] = set_tier_limits,
}

-- Decides request i, or replays it; returns the status of a decision.
function decide_one(i)
  if known[ids[i]] then return replay(i) end
  local kind = kinds[i]
  if references[i] then refer(i) end
  if accepted >= room then return refuse(i, LEDGER_BACKLOG) end
  if not kind then return move(i) end
  return DECIDERS[kind](i, kind)
end

end
