"""The ledger's tables as binary rows: which columns, in which order.

The sha256 chain is over these very bytes, so a column's order and type never change for rows already written.
"""

from __future__ import annotations

from engine.wire import TIER_LIMITS
from persister.copy_binary import RowFormat

_HEADER = {
    "shard": "int2",
    "last_sequence": "int8",
    "first_sequence": "int8",
    "epoch": "int8",
    "at": "timestamptz",
    "journal_hash": "sha1",
}
# An entry of the journal, as it is hashed; the table has the chain besides.
BATCH_HEADER = RowFormat("journal_batch", **_HEADER)
JOURNAL_BATCH = RowFormat("journal_batch", **_HEADER, chain="sha256")
JOURNAL_EVENT = RowFormat("journal_event", shard="int2", sequence="int8", kind="int2", id="uuid", at="timestamptz")
TRANSFER = RowFormat(
    "transfer",
    id="uuid",
    shard="int2",
    sequence="int8",
    kind="int2",
    debit_wallet_id="int8",
    debit_version="int8",
    credit_wallet_id="int8",
    credit_version="int8",
    amount="int8",
    details_digest="int8",
    at="timestamptz",
)
LEDGER_ENTRY = RowFormat(
    "ledger_entry",
    wallet_id="int8",
    version="int8",
    shard="int2",
    sequence="int8",
    amount="int8",
    available_after="int8",
    locked_after="int8",
    at="timestamptz",
)
WALLET = RowFormat(
    "wallet",
    id="int8",
    owner_id="int8",
    currency="char8",
    flags="int2",
    shard="int2",
    overdraft_limit="int8",
    opened_sequence="int8",
    opened_at="timestamptz",
)
WALLET_CHANGE = RowFormat(
    "wallet_change",
    wallet_id="int8",
    wallet_version="int8",
    shard="int2",
    sequence="int8",
    kind="int2",
    value="int8",
)
_HOLD = {
    "id": "uuid",
    "shard": "int2",
    "sequence": "int8",
    "debit_wallet_id": "int8",
    "credit_wallet_id": "int8",
    "purpose": "int2",
    "review": "int2",
    "rule": "int2",
    "expires_at_ms": "int8",
    "at": "timestamptz",
}
HOLD = RowFormat("hold", **_HOLD, amount="int8")
OPEN_HOLD = RowFormat("open_hold", **_HOLD, remaining="int8", captured="int8")
HOLD_CHANGE = RowFormat(
    "hold_change",
    hold_id="uuid",
    shard="int2",
    sequence="int8",
    kind="int2",
    wallet_id="int8",
    wallet_version="int8",
    amount="int8",
    released="int8",
    state="int2",
    review="int2",
    remaining="int8",
    captured="int8",
    details_digest="int8",
)
REFUND = RowFormat(
    "refund",
    transfer_id="uuid",
    original_id="uuid",
    kind="int2",
    shard="int2",
    sequence="int8",
    amount="int8",
    total="int8",
)
TRANSFER_ORIGIN = RowFormat(
    "transfer_origin",
    shard="int2",
    sequence="int8",
    wallet_id="int8",
    device="digest",
    ip="digest",
    at="timestamptz",
)
LIMITS = {
    name: "int8" if code == "d" else "int4" if code == "H" else "int2"
    for name, code in TIER_LIMITS.fields
    if name != "layout"
}
DECLINED_ATTEMPT = RowFormat(
    "declined_attempt",
    at="timestamptz",
    shard="int2",
    transfer_id="uuid",
    kind="int2",
    status="int2",
    rule="int2",
    debit_wallet_id="int8",
    credit_wallet_id="int8",
    amount="int8",
    device="digest",
    ip="digest",
)
TIER_CHANGE = RowFormat("tier_change", shard="int2", sequence="int8", tier="int4", **LIMITS)
OUTCOME = RowFormat("outcome", shard="int2", sequence="int8", kept="idempotency")
