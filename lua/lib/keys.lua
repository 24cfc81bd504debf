-- The keys of a shard, from its hash tag: the same as engine/keys.py builds.
local function meta_key(tag) return tag .. ':meta' end
local function journal_key(tag) return tag .. ':journal' end
local function touch_key(tag) return tag .. ':touch' end
local function wallet_prefix(tag) return tag .. ':w:' end
local function idempotency_key(tag, generation) return string.format('%s:idem:%.0f', tag, generation) end
