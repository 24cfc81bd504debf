-- The keys of a shard, from its hash tag: the same as engine/keys.py builds.
local function meta_key(tag) return tag .. ':meta' end
local function journal_key(tag) return tag .. ':journal' end
local function touch_key(tag) return tag .. ':touch' end
local function loading_key(tag) return tag .. ':loading' end
local function wallet_prefix(tag) return tag .. ':w:' end
local function known_prefix(tag) return tag .. ':known:' end
local function holds_key(tag) return tag .. ':holds' end
local function due_key(tag) return tag .. ':due' end
local function tiers_key(tag) return tag .. ':tiers' end
local function declined_key(tag) return tag .. ':declined' end
local function persisted_channel(tag) return tag .. ':persisted' end
local function idempotency_key(tag, generation) return format('%s:idem:%.0f', tag, generation) end
local function resolved_key(tag, generation) return format('%s:resolved:%.0f', tag, generation) end
local function refunded_key(tag, generation) return format('%s:refunded:%.0f', tag, generation) end
local function attempts_key(tag, day) return format('%s:attempts:%.0f', tag, day) end
