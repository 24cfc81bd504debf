"""One batch of the journal, one Postgres transaction: the offset commits with the data, so nothing is written twice.

This file owns exactly-once: every write is guarded on the place in the history that it continues, and on the
balances it changes. A write that does not fit raises, and its transaction leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
import structlog
from psycopg import errors

from engine.domain.transfer import Kind
from engine.errors import CorruptRecord, Fatal, JournalGap, LedgerImbalance
from engine.wire import ZERO_HASH
from persister import chain, details, rows
from persister.copy_binary import BigintArray, BigintArrayDumper
from persister.duplicates import Duplicate, ids_of_transfers, renamed
from persister.journal import Batch, Place
from persister.legs import Changes, changes_of, legs_of
from persister.sql import sql

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


class Ledger:
    """The ledger of one shard, over a connection in autocommit mode that the caller owns.

    Every method raises psycopg.Error as it comes: OperationalError means that the server is away.
    """

    def __init__(self, connection: psycopg.Connection, shard: int) -> None:
        connection.adapters.register_dumper(BigintArray, BigintArrayDumper)
        self._connection = connection
        self._shard = shard
        self._chain = b""
        self._log = structlog.get_logger().bind(shard=shard)

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

    def write(self, batch: Batch) -> None:
        """Commit the batch: events, transfers, entries, wallets, balances, details and the new place.

        Call state() first on a new connection. Raises JournalGap if the batch does not continue the ledger,
        LedgerImbalance if it contradicts its balances, CorruptRecord if Postgres refuses a value.
        """
        try:
            self._commit(batch)
        except errors.UniqueViolation as error:
            if error.diag.table_name != "transfer":
                raise JournalGap(f"{error.diag.table_name} has it already: {error.diag.message_detail}") from error
            self._commit_renamed(batch)

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
        legs = legs_of(batch)
        changes = changes_of(legs)
        tables = rows.tables(self._shard, batch, legs)
        headers = rows.batch_headers(self._shard, batch)
        links = chain.links(self._chain, headers, _hashes(batch, tables))
        try:
            with self._connection.transaction(), self._connection.cursor() as cursor:
                self._advance(cursor, batch, links[-1])
                rows.JOURNAL_BATCH.copy_in(cursor, rows.with_chain(headers, links))
                for table in tables:
                    if len(table.rows):
                        table.format.copy_in(cursor, table.rows[table.index_order])
                for duplicate in duplicates:
                    cursor.execute(sql("add_duplicate"), {**duplicate._asdict(), "shard": self._shard})
                self._copy_details(cursor, batch)
                self._update_balances(cursor, changes, batch)
        except _Unguarded as found:
            raise self._explain(changes, found.updated) from None
        except errors.UniqueViolation:
            raise
        except (errors.IntegrityError, errors.DataError) as error:
            raise CorruptRecord(f"Postgres refuses a value after sequence {batch.before.sequence}: {error}") from error
        self._chain = links[-1]

    def _advance(self, cursor: psycopg.Cursor[Any], batch: Batch, link: bytes) -> None:
        ended = batch.records["amount"][batch.records["kind"] == Kind.END_GENERATION]
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
            "generation": int(ended[-1]) if len(ended) else None,
        }
        if cursor.execute(sql("advance_shard"), values).rowcount != 1:
            raise JournalGap(
                f"the ledger of shard {self._shard} is not at epoch {before.epoch}, sequence {before.sequence}, "
                f"hash {before.hash.decode()}, which the batch continues"
            )

    def _copy_details(self, cursor: psycopg.Cursor[Any], batch: Batch) -> None:
        ids, moved, first = batch.records["id"], batch.moves_money, batch.before.sequence + 1
        attached = [
            (ids[sequence - first].tobytes(), packed)
            for sequence, packed in batch.details.items()
            if moved[sequence - first]
        ]
        if not attached:
            return
        with cursor.copy("COPY transfer_detail FROM STDIN (FORMAT BINARY)") as copy:
            copy.write(details.copy_stream(attached))

    def _update_balances(self, cursor: psycopg.Cursor[Any], changes: Changes, batch: Batch) -> None:
        opened = batch.records["debit"][batch.opens_wallet]
        if len(opened):
            cursor.execute(sql("open_balances"), {"wallet": BigintArray(opened)})
        if len(changes.wallet):
            updated = cursor.execute(sql("update_balances"), _parameters(changes)).rowcount
            if updated != len(changes.wallet):
                raise _Unguarded(updated)

    def _explain(self, changes: Changes, updated: int) -> Fatal:
        """The error for balances that are not what the journal continues; the transaction is rolled back."""
        row = self._connection.execute(sql("balances_that_differ"), _parameters(changes)).fetchone()
        if row is None:
            return LedgerImbalance(f"{updated} of {len(changes.wallet)} balances changed; none differs now")
        wallet, *figures = row
        expected, found = figures[:3], figures[3:]
        if found[0] is None:
            return JournalGap(f"wallet {wallet}: the ledger does not know it, the journal has version {expected[0]}")
        kind = JournalGap if found[0] != expected[0] else LedgerImbalance
        return kind(
            f"wallet {wallet}: the ledger has version {found[0]}, available {found[1]}, locked {found[2]}; "
            f"the journal continues version {expected[0]}, available {expected[1]}, locked {expected[2]}"
        )


class _Unguarded(Exception):
    def __init__(self, updated: int) -> None:
        self.updated = updated


def _parameters(changes: Changes) -> dict[str, BigintArray]:
    return {name: BigintArray(column) for name, column in changes._asdict().items()}


def _hashes(batch: Batch, tables: Iterable[rows.Table]) -> list[list[bytes]]:
    hashers = []
    for table in tables:
        hasher = chain.TableHasher([entry.last_sequence for entry in batch.entries])
        hasher.add(table.rows, table.sequence)
        hashers.append(hasher.finish())
    return hashers
