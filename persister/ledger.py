"""One batch of the journal, one Postgres transaction: the offset commits with the data, so nothing is written twice.

This file owns exactly-once: every write is guarded on the place in the history that it continues, and on the
balances it changes. A write that does not fit raises, and its transaction leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
import psycopg
import structlog
from psycopg import errors

from engine.domain.transfer import Kind
from engine.errors import CorruptRecord, Fatal, JournalGap, LedgerImbalance
from engine.wire import ZERO_HASH
from persister import chain, details, rows
from persister.copy_binary import BigintArray, Rows, UuidArray, register_arrays
from persister.declined import BEGINNING
from persister.duplicates import Duplicate, ids_of_transfers, renamed
from persister.formats import DECLINED_ATTEMPT, JOURNAL_BATCH, OPEN_HOLD
from persister.holds import HoldChanges, OpenHolds, hold_changes_of, open_holds_after
from persister.journal import Batch, Place
from persister.legs import Changes, changes_of, legs_of
from persister.sql import sql
from persister.states import StateChanges, opened_flags, state_changes_of

LEADER_LOCK = 0x484C4452
"""First number of the advisory locks of leadership; the second is the shard."""


class LedgerState(NamedTuple):
    """What Postgres says about a shard. place, chain and generation are None for a shard that it does not know."""

    deployment_id: UUID
    key_fingerprint: bytes
    place: Place | None
    chain: bytes
    generation: int
    generation_age_s: float


class _Prepared(NamedTuple):
    """A batch as what is to be written. links: the chain after each of its entries."""

    batch: Batch
    changes: Changes
    states: StateChanges | None
    holds: OpenHolds | None
    tables: tuple[rows.Table, ...]
    headers: Rows
    links: list[bytes]


class Ledger:
    """The ledger of one shard, over a connection in autocommit mode that the caller owns.

    Every method raises psycopg.Error as it comes: OperationalError means that the server is away.
    """

    def __init__(self, connection: psycopg.Connection, shard: int) -> None:
        register_arrays(connection)
        self._connection = connection
        self._shard = shard
        self._chain = b""
        self._log = structlog.get_logger().bind(shard=shard)

    @property
    def connection(self) -> psycopg.Connection:
        """Whose session has the leadership."""
        return self._connection

    def try_to_lead(self) -> bool:
        """Take the shard's leadership for as long as this connection lives; False if another one has it."""
        row = self._connection.execute("SELECT pg_try_advisory_lock(%s, %s)", (LEADER_LOCK, self._shard)).fetchone()
        return bool(row and row[0])

    def state(self) -> LedgerState | None:
        """None for a ledger that belongs to no deployment yet. Raises Fatal if there is no ledger at all."""
        try:
            row = self._connection.execute(sql("shard_state"), {"shard": self._shard}).fetchone()
        except errors.UndefinedTable as error:
            raise Fatal(f"the database has no ledger; run the migrations first ({error})") from error
        if row is None:
            return None
        deployment_id, fingerprint, epoch, sequence, journal_hash, self._chain, generation, age_s = row
        place = None if epoch is None else Place(epoch, sequence, journal_hash.hex().encode())
        return LedgerState(deployment_id, fingerprint, place, self._chain, generation, age_s)

    def begin_deployment(self, deployment_id: UUID, key_fingerprint: bytes) -> None:
        """Name the deployment that this ledger belongs to from now on; does nothing if another process just did."""
        self._connection.execute(
            "INSERT INTO deployment (id, key_fingerprint) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            (deployment_id, key_fingerprint),
        )

    def begin_shard(self, deployment_id: UUID) -> None:
        """Give the shard its first place: epoch 1, sequence 0."""
        values = {
            "shard": self._shard,
            "hash": bytes.fromhex(ZERO_HASH.decode()),
            "chain": chain.genesis(deployment_id, self._shard),
        }
        self._connection.execute(sql("begin_shard"), values)

    def place_at(self, sequence: int) -> Place | None:
        """The place of this history at a sequence; None if no journal entry that the ledger has ends there."""
        if sequence == 0:
            return Place(1, 0, ZERO_HASH)
        row = self._connection.execute(sql("place_at"), {"shard": self._shard, "sequence": sequence}).fetchone()
        return Place(row[0], sequence, row[1].hex().encode()) if row else None

    def begin_epoch(self, place: Place, epoch: int) -> bool:
        """Begin a newer epoch at the place where the ledger is; False if it is not there (any more).

        Call state() first on a new connection. Who still works for an older epoch can write nothing from then on.
        """
        values = {
            "shard": self._shard,
            "epoch_before": place.epoch,
            "epoch": epoch,
            "sequence": place.sequence,
            "hash": bytes.fromhex(place.hash.decode()),
            "chain": self._chain,
        }
        return self._connection.execute(sql("begin_epoch"), values).rowcount == 1

    def write(self, batch: Batch) -> None:
        """Commit the batch: events, what each of them did, balances, states, open holds, details and the new place.

        Call state() first on a new connection. Raises JournalGap if the batch does not continue the ledger,
        LedgerImbalance if it contradicts its balances or holds, CorruptRecord if Postgres refuses a value.
        """
        try:
            self._commit(batch)
        except errors.UniqueViolation as error:
            if error.diag.table_name != "transfer":
                raise JournalGap(f"{error.diag.table_name} has it already: {error.diag.message_detail}") from error
            self._commit_renamed(batch)

    def declined_read_to(self) -> str:
        """The last entry of the side stream of refused movements that add_declined has added."""
        query = "SELECT read_to FROM declined_read WHERE shard = %s"
        row = self._connection.execute(query, (self._shard,)).fetchone()
        return row[0] if row else BEGINNING

    def add_declined(self, attempts: Rows, before: str, after: str) -> None:
        """Add rows of DECLINED_ATTEMPT, which the side stream has after `before` up to `after`.

        Raises JournalGap, and adds nothing, if the stream was read to another place.
        """
        with self._connection.transaction(), self._connection.cursor() as cursor:
            values = {"shard": self._shard, "before": before, "after": after}
            if cursor.execute(sql("advance_declined"), values).rowcount != 1:
                raise JournalGap(f"refused movements were not read to {before}, but by somebody else")
            DECLINED_ATTEMPT.copy_in(cursor, attempts)

    def _commit_renamed(self, batch: Batch) -> None:
        """Commit a batch with transfers whose ids the ledger has already; see duplicates.py."""
        ids = ids_of_transfers(batch)
        known = {row[0] for row in self._connection.execute(sql("known_transfers"), {"ids": ids})}
        batch, duplicates = renamed(batch, known, self._shard)
        self._commit(batch, duplicates)
        for duplicate in duplicates:
            self._log.error(
                "transfer.duplicate",
                transfer_id=str(duplicate.transfer_id),
                duplicate_of=str(duplicate.duplicate_of),
                sequence=duplicate.sequence,
            )

    def _commit(self, batch: Batch, duplicates: Iterable[Duplicate] = ()) -> None:
        prepared = self._prepare(batch)
        try:
            with self._connection.transaction(), self._connection.cursor() as cursor:
                self._advance(cursor, batch, prepared.links[-1])
                JOURNAL_BATCH.copy_in(cursor, rows.with_chain(prepared.headers, prepared.links))
                for table in prepared.tables:
                    if len(table.rows):
                        table.format.copy_in(cursor, table.rows[table.index_order])
                for duplicate in duplicates:
                    cursor.execute(sql("add_duplicate"), {**duplicate._asdict(), "shard": self._shard})
                self._copy_details(cursor, batch)
                self._update_wallets(cursor, prepared)
                if prepared.holds:
                    self._update_open_holds(cursor, batch, prepared.holds)
        except _Unguarded as found:
            raise self._explain(found) from None
        except errors.UniqueViolation:
            raise
        except (errors.IntegrityError, errors.DataError) as error:
            raise CorruptRecord(f"Postgres refuses a value after sequence {batch.before.sequence}: {error}") from error
        self._chain = prepared.links[-1]

    def _prepare(self, batch: Batch) -> _Prepared:
        """Everything that can be checked and made without Postgres."""
        legs = legs_of(batch)
        holds = hold_changes_of(batch)
        tables = rows.tables(self._shard, batch, legs, holds)
        headers = rows.batch_headers(self._shard, batch)
        return _Prepared(
            batch=batch,
            changes=changes_of(legs),
            states=state_changes_of(batch),
            holds=open_holds_after(holds) if len(holds.at) else None,
            tables=tables,
            headers=headers,
            links=chain.links(self._chain, headers, chain.contents(_hashes(batch, tables))),
        )

    def _advance(self, cursor: psycopg.Cursor[Any], batch: Batch, link: bytes) -> None:
        ends = batch.records["kind"] == Kind.END_GENERATION
        generations, began = batch.records["amount"][ends], batch.sequence[ends].tolist()
        before, after = batch.before, batch.after
        values = {
            "shard": self._shard,
            "epoch": after.epoch,
            "sequence_before": before.sequence,
            "sequence": after.sequence,
            "hash_before": bytes.fromhex(before.hash.decode()),
            "hash": bytes.fromhex(after.hash.decode()),
            "chain_before": self._chain,
            "chain": link,
            "generation": int(generations[-1]) if began else None,
            "generation_sequence": began[-1] if began else None,
            "previous_generation_sequence": began[-2] if len(began) > 1 else None,
        }
        if cursor.execute(sql("advance_shard"), values).rowcount != 1:
            raise JournalGap(
                f"the ledger of shard {self._shard} is not at epoch {before.epoch}, sequence {before.sequence}, "
                f"hash {before.hash.decode()}, which the batch continues"
            )

    def _copy_details(self, cursor: psycopg.Cursor[Any], batch: Batch) -> None:
        """References and metadata: of transfers under their ids, of what changed a hold under its sequence."""
        if not batch.details:
            return
        ids, moved, first = batch.records["id"], batch.moves_money, batch.before.sequence + 1
        changes_hold = np.zeros(len(ids), bool)
        changes_hold[batch.records_of(batch.links)] = True
        of_transfers, of_holds = [], []
        for sequence, packed in batch.details.items():
            if moved[sequence - first]:
                of_transfers.append((details.transfer_key(ids[sequence - first].tobytes()), packed))
            elif changes_hold[sequence - first]:
                of_holds.append((details.hold_key(self._shard, sequence), packed))
        for table, attached in (("transfer_detail", of_transfers), ("hold_detail", of_holds)):
            if attached:
                with cursor.copy(f"COPY {table} FROM STDIN (FORMAT BINARY)") as copy:
                    copy.write(details.copy_stream(attached))

    def _update_wallets(self, cursor: psycopg.Cursor[Any], prepared: _Prepared) -> None:
        opened = prepared.batch.records[prepared.batch.opens_wallet]
        if len(opened):
            columns = {
                "wallet": BigintArray(opened["debit"]),
                "overdraft_limit": BigintArray(opened["amount"]),
                "flags": BigintArray(opened_flags(opened)),
            }
            cursor.execute(sql("open_balances"), columns)
        changes, states = prepared.changes, prepared.states
        if len(changes.wallet):
            updated = cursor.execute(sql("update_balances"), _columns(changes)).rowcount
            if updated != len(changes.wallet):
                raise _Unguarded(sql("balances_that_differ"), _columns(changes), _wallet_that_differs)
        if states:
            cursor.execute(sql("change_states"), _columns(states))

    def _update_open_holds(self, cursor: psycopg.Cursor[Any], batch: Batch, holds: OpenHolds) -> None:
        if len(holds.made.at):
            OPEN_HOLD.copy_in(cursor, rows.open_holds(self._shard, batch, holds))
        for name, before, after in (
            ("change_open_holds", holds.changed_from, holds.changed),
            ("end_open_holds", holds.ended_from, holds.ended),
        ):
            if len(after.at):
                values = {"shard": self._shard, **_hold_columns(before, after)}
                if cursor.execute(sql(name), values).rowcount != len(after.at):
                    raise _Unguarded(sql("open_holds_that_differ"), values, _hold_that_differs)

    def _explain(self, found: _Unguarded) -> Fatal:
        """The error for rows that are not what the journal continues; the transaction is rolled back."""
        row = self._connection.execute(found.query, found.values).fetchone()
        return found.explain(*row) if row else LedgerImbalance("a guarded row was not as expected; it is now")


class _Unguarded(Exception):
    """Rows were not as the journal says they were. query, with values: the first that is not; explain: its columns
    as the error to raise."""

    def __init__(self, query: str, values: dict[str, Any], explain: Callable[..., Fatal]) -> None:
        self.query, self.values, self.explain = query, values, explain


def _wallet_that_differs(wallet: int, *figures: int | None) -> Fatal:
    expected, found = figures[:3], figures[3:]
    if found[0] is None:
        return JournalGap(f"wallet {wallet}: the ledger does not know it, the journal has version {expected[0]}")
    kind = JournalGap if found[0] != expected[0] else LedgerImbalance
    return kind(
        f"wallet {wallet}: the ledger has version {found[0]}, available {found[1]}, locked {found[2]}; "
        f"the journal continues version {expected[0]}, available {expected[1]}, locked {expected[2]}"
    )


def _hold_that_differs(hold_id: UUID, is_open: bool, expected: str, found: str) -> Fatal:
    if not is_open:
        return JournalGap(f"hold {hold_id}: the ledger has no such open hold, the journal continues {expected}")
    return LedgerImbalance(f"hold {hold_id}: the ledger has {found}; the journal continues {expected}")


def _columns(changes: Changes | StateChanges) -> dict[str, Any]:
    return {name: BigintArray(column) for name, column in changes._asdict().items()}


def _hold_columns(before: HoldChanges, after: HoldChanges) -> dict[str, Any]:
    """What the holds must be before their first change in a batch, and are after the last."""
    numbers = {
        "remaining_before": before.remaining_before,
        "captured_before": before.captured_before,
        "debit": before.debit,
        "credit": before.credit,
        "purpose": before.purpose,
        "expires_at_ms": before.expires_at_ms,
        "remaining": after.remaining,
        "captured": after.captured,
        "review": after.review,
    }
    return {"id": UuidArray(after.id), **{name: BigintArray(column) for name, column in numbers.items()}}


def _hashes(batch: Batch, tables: Iterable[rows.Table]) -> list[list[bytes]]:
    hashers = []
    for table in tables:
        hasher = chain.TableHasher([entry.last_sequence for entry in batch.entries])
        hasher.add(table.rows, table.sequence)
        hashers.append(hasher.finish())
    return hashers
