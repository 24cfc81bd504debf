"""The ledger's tables as binary rows: which columns, in which order, and how a batch of the journal becomes them.

The sha256 chain is over these very bytes, so a column's order and type never change for rows already written.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from persister.copy_binary import RowFormat, Rows
from persister.journal import Batch
from persister.legs import Legs, by_wallet

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


class Table(NamedTuple):
    """What a batch adds to one table.

    rows: in the journal's order, in which they are hashed. sequence: one item per row. index_order: the order to
    insert them in, by the primary key, because neighbours in its index are then found in the cache: this makes
    random transfers a third faster.
    """

    format: RowFormat
    rows: Rows
    sequence: NDArray[np.int64]
    index_order: NDArray[np.intp] | slice


def tables(shard: int, batch: Batch, legs: Legs) -> tuple[Table, ...]:
    """The batch as rows, in the order of chain.HASHED_TABLES."""
    moved, opened = batch.moves_money, batch.opens_wallet
    made = _transfers(shard, batch, moved)
    return (
        Table(JOURNAL_EVENT, _events(shard, batch), batch.sequence, slice(None)),
        Table(TRANSFER, made, batch.sequence[moved], np.argsort(np.frombuffer(made["id"].tobytes(), "S16"))),
        Table(LEDGER_ENTRY, _entries(shard, legs), legs.sequence, by_wallet(legs)),
        Table(WALLET, _wallets(shard, batch, opened), batch.sequence[opened], slice(None)),
    )


def batch_headers(shard: int, batch: Batch) -> Rows:
    """One row per journal entry of the batch."""
    entries = batch.entries
    return BATCH_HEADER.rows(
        len(entries),
        shard=shard,
        last_sequence=[entry.last_sequence for entry in entries],
        first_sequence=[entry.first_sequence for entry in entries],
        epoch=[entry.epoch for entry in entries],
        at=[entry.at_us for entry in entries],
        journal_hash=np.frombuffer(bytes.fromhex(b"".join(e.hash for e in entries).decode()), "V20"),
    )


def _events(shard: int, batch: Batch) -> Rows:
    return JOURNAL_EVENT.rows(
        len(batch.records),
        shard=shard,
        sequence=batch.sequence,
        kind=batch.records["kind"],
        id=batch.records["id"],
        at=batch.at_us,
    )


def _transfers(shard: int, batch: Batch, moved: NDArray[np.bool_]) -> Rows:
    records = batch.records[moved]
    return TRANSFER.rows(
        len(records),
        id=records["id"],
        shard=shard,
        sequence=batch.sequence[moved],
        kind=records["kind"],
        debit_wallet_id=records["debit"],
        debit_version=records["debit_version"],
        credit_wallet_id=records["credit"],
        credit_version=records["credit_version"],
        amount=records["amount"],
        details_digest=np.frombuffer(records["details_digest"].tobytes(), "<i8"),
        at=batch.at_us[moved],
    )


def _entries(shard: int, legs: Legs) -> Rows:
    return LEDGER_ENTRY.rows(
        len(legs.wallet),
        wallet_id=legs.wallet,
        version=legs.version,
        shard=shard,
        sequence=legs.sequence,
        amount=legs.amount,
        available_after=legs.available,
        locked_after=legs.locked,
        at=legs.at_us,
    )


def _wallets(shard: int, batch: Batch, opened: NDArray[np.bool_]) -> Rows:
    records = batch.records[opened]
    currency = np.frombuffer(records["currency"].tobytes().replace(b"\0", b" "), "V8")
    return WALLET.rows(
        len(records),
        id=records["debit"],
        owner_id=records["credit"],
        currency=currency,
        flags=records["flags"],
        shard=shard,
        overdraft_limit=records["amount"],
        opened_sequence=batch.sequence[opened],
        opened_at=batch.at_us[opened],
    )


def with_chain(headers: Rows, links: list[bytes]) -> Rows:
    """The rows of journal_batch: the headers and, for each, its link of the sha256 chain."""
    columns = {name: headers[name] for name in BATCH_HEADER.columns}
    return JOURNAL_BATCH.rows(len(headers), **columns, chain=np.frombuffer(b"".join(links), "V32"))


def headers_of(batches: Rows) -> Rows:
    """The part of journal_batch rows that is hashed."""
    return BATCH_HEADER.rows(len(batches), **{name: batches[name] for name in BATCH_HEADER.columns})
