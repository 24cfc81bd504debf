"""How a batch of the journal becomes rows of the ledger's tables, in the formats of formats.py."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.domain.transfer import Kind
from engine.wire import IDEMPOTENCY
from persister.copy_binary import RowFormat, Rows
from persister.formats import (
    BATCH_HEADER,
    HOLD,
    HOLD_CHANGE,
    JOURNAL_BATCH,
    JOURNAL_EVENT,
    LEDGER_ENTRY,
    LIMITS,
    OPEN_HOLD,
    OUTCOME,
    REFUND,
    TIER_CHANGE,
    TRANSFER,
    TRANSFER_ORIGIN,
    WALLET,
    WALLET_CHANGE,
)
from persister.holds import HoldChanges, OpenHolds
from persister.journal import Batch, kind_set
from persister.legs import Legs, by_wallet
from persister.outcomes import outcomes_to_keep
from persister.states import changes_state, opened_flags

_KEPT = f"V{IDEMPOTENCY.size}"
_REFUNDS = kind_set({Kind.REFUND, Kind.CHARGEBACK})


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


def tables(shard: int, batch: Batch, legs: Legs, holds: HoldChanges) -> tuple[Table, ...]:
    """The batch as rows, in the order of chain.HASHED_TABLES."""
    moved, opened = batch.moves_money, batch.opens_wallet
    made = _transfers(shard, batch, moved)
    in_order = slice(None)
    return (
        Table(JOURNAL_EVENT, _events(shard, batch), batch.sequence, in_order),
        Table(TRANSFER, made, batch.sequence[moved], _by_id(made["id"])),
        Table(LEDGER_ENTRY, _entries(shard, legs), legs.sequence, by_wallet(legs)),
        Table(WALLET, _wallets(shard, batch, opened), batch.sequence[opened], in_order),
        *_rare_tables(shard, batch, holds),
    )


def _rare_tables(shard: int, batch: Batch, holds: HoldChanges) -> tuple[Table, ...]:
    """Those that plain payments add nothing to."""
    changed = changes_state(batch)
    begun = holds.select(np.flatnonzero(holds.begins))
    refunds = batch.links[_REFUNDS[batch.records["kind"][batch.records_of(batch.links)]]]
    in_order = slice(None)
    return (
        Table(WALLET_CHANGE, _wallet_changes(shard, batch, changed), batch.sequence[changed], in_order),
        Table(HOLD, _holds(shard, batch, begun), begun.sequence, _by_id(begun.id)),
        Table(HOLD_CHANGE, _hold_changes(shard, batch, holds), holds.sequence, np.argsort(holds.debit, kind="stable")),
        _table_of(REFUND, _refunds(shard, batch, refunds)),
        _table_of(TRANSFER_ORIGIN, _origins(shard, batch)),
        _table_of(TIER_CHANGE, _tier_changes(shard, batch)),
        _table_of(OUTCOME, _outcomes(shard, batch)),
    )


def _table_of(format: RowFormat, rows: Rows) -> Table:
    return Table(format, rows, rows["sequence"].astype(np.int64), slice(None))


def _by_id(ids: NDArray[np.void]) -> NDArray[np.intp]:
    return np.argsort(np.frombuffer(ids.tobytes(), "S16"))


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
        flags=opened_flags(records),
        shard=shard,
        overdraft_limit=records["amount"],
        opened_sequence=batch.sequence[opened],
        opened_at=batch.at_us[opened],
    )


def _wallet_changes(shard: int, batch: Batch, changed: NDArray[np.bool_]) -> Rows:
    records = batch.records[changed]
    return WALLET_CHANGE.rows(
        len(records),
        wallet_id=records["debit"],
        wallet_version=records["debit_version"],
        shard=shard,
        sequence=batch.sequence[changed],
        kind=records["kind"],
        value=records["amount"],
    )


def _holds(shard: int, batch: Batch, begun: HoldChanges) -> Rows:
    return HOLD.rows(len(begun.at), **_of_holds(shard, batch, begun), review=begun.review, amount=begun.amount)


def open_holds(shard: int, batch: Batch, holds: OpenHolds) -> Rows:
    """The holds that the batch makes and leaves open."""
    last = holds.made
    return OPEN_HOLD.rows(
        len(last.at),
        **_of_holds(shard, batch, holds.makers),
        review=last.review,
        remaining=last.remaining,
        captured=last.captured,
    )


def _of_holds(shard: int, batch: Batch, begun: HoldChanges) -> dict[str, ArrayLike]:
    """What a hold keeps from its beginning to its end. begun: HOLDs."""
    return {
        "id": begun.id,
        "shard": shard,
        "sequence": begun.sequence,
        "debit_wallet_id": begun.debit,
        "credit_wallet_id": begun.credit,
        "purpose": begun.purpose,
        "rule": begun.rule,
        "expires_at_ms": begun.expires_at_ms,
        "at": batch.at_us[begun.at],
    }


def _hold_changes(shard: int, batch: Batch, holds: HoldChanges) -> Rows:
    records = batch.records[holds.at]
    digest = np.frombuffer(records["details_digest"].tobytes(), "<i8")
    return HOLD_CHANGE.rows(
        len(records),
        hold_id=holds.id,
        shard=shard,
        sequence=holds.sequence,
        kind=holds.kind,
        wallet_id=holds.debit,
        wallet_version=records["debit_version"],
        amount=holds.amount,
        released=holds.released,
        state=holds.state,
        review=holds.review,
        remaining=holds.remaining,
        captured=holds.captured,
        details_digest=np.where(holds.kind == Kind.CAPTURE, 0, digest),
    )


def _refunds(shard: int, batch: Batch, links: NDArray[np.void]) -> Rows:
    at = batch.records_of(links)
    records = batch.records[at]
    return REFUND.rows(
        len(records),
        transfer_id=records["id"],
        original_id=links["reference"],
        kind=records["kind"],
        shard=shard,
        sequence=batch.sequence[at],
        amount=records["amount"],
        total=links["remaining"],
    )


def _origins(shard: int, batch: Batch) -> Rows:
    origins, at = batch.origins, batch.records_of(batch.origins)
    return TRANSFER_ORIGIN.rows(
        len(origins),
        shard=shard,
        sequence=batch.sequence[at],
        wallet_id=batch.records["debit"][at],
        device=origins["device"],
        ip=origins["ip"],
        at=batch.at_us[at],
    )


def _tier_changes(shard: int, batch: Batch) -> Rows:
    changes = batch.tier_changes
    limits = {name: changes[name] for name in LIMITS}
    sequence = batch.sequence[batch.records_of(changes)]
    return TIER_CHANGE.rows(len(changes), shard=shard, sequence=sequence, tier=changes["tier"], **limits)


def _outcomes(shard: int, batch: Batch) -> Rows:
    kept = outcomes_to_keep(batch)
    return OUTCOME.rows(len(kept), shard=shard, sequence=kept["sequence"], kept=np.frombuffer(kept.tobytes(), _KEPT))


def with_chain(headers: Rows, links: list[bytes]) -> Rows:
    """The rows of journal_batch: the headers and, for each, its link of the sha256 chain."""
    columns = {name: headers[name] for name in BATCH_HEADER.columns}
    return JOURNAL_BATCH.rows(len(headers), **columns, chain=np.frombuffer(b"".join(links), "V32"))


def headers_of(batches: Rows) -> Rows:
    """The part of journal_batch rows that is hashed."""
    return BATCH_HEADER.rows(len(batches), **{name: batches[name] for name in BATCH_HEADER.columns})
