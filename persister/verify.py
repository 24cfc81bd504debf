"""The sha256 chain, made again from table columns alone and compared link by link: whether somebody edited the ledger.

Reads a part of the ledger at a time, by sequence, so memory does not grow with it. After a link that is not what its
rows make, the next one is judged from what is stored: so each altered entry is named, and not all behind the first.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import psycopg
from numpy.typing import NDArray

from persister import chain, rows
from persister.chain import NO_HEAD, Head
from persister.copy_binary import RowFormat, Rows
from persister.formats import JOURNAL_BATCH
from persister.report import MAX_DIFFERENCES

RECORDS_AT_ONCE = 200_000
ENTRIES_AT_ONCE = 16_384
ALL = 2**63 - 1
"""As a sequence: the ledger's end, wherever that is."""

_BEGINNING = -(2**63)
_ROWS_AT_ONCE = 50_000
_EPOCH_2000 = datetime(2000, 1, 1, tzinfo=UTC)

Progress = Callable[[int, int], None]
"""Told of the sequence that was come to, and of the one to come to."""


class BadEntry(NamedTuple):
    """A journal entry whose link is not what its rows make. found: the link that is stored; made: from the rows."""

    first_sequence: int
    last_sequence: int
    epoch: int
    at: datetime
    found: str
    made: str


class BadEnd(NamedTuple):
    """What is behind the last journal entry, or of it, and should not be so."""

    subject: str
    found: str
    expected: str


def head_before(connection: psycopg.Connection[Any], shard: int, sequence: int) -> Head | None:
    """Where the chain is before the journal entry with that sequence in it; None for a ledger without a deployment.

    What is stored there is believed, but for the beginning: that is computed.
    """
    query = (
        "SELECT last_sequence, chain FROM journal_batch WHERE shard = %s AND last_sequence < %s "
        "ORDER BY last_sequence DESC LIMIT 1"
    )
    if sequence > 1 and (row := connection.execute(query, (shard, sequence)).fetchone()):
        return Head(*row)
    row = connection.execute("SELECT id FROM deployment").fetchone()
    return Head(0, chain.genesis(row[0], shard)) if row else None


def verify_ledger(
    connection: psycopg.Connection[Any], shard: int, from_sequence: int = 1, progress: Progress = lambda _, __: None
) -> ChainVerifier:
    """Verify the chain from the journal entry with a sequence in it to the ledger's end.

    connection: in autocommit mode. Only the last part is read in one snapshot, so that nothing is kept from being
    vacuumed meanwhile: what is behind it can only grow. Raises CorruptRecord for rows that are none of this schema.
    """
    verifier = ChainVerifier(shard, head_before(connection, shard, from_sequence) or NO_HEAD)
    row = connection.execute("SELECT sequence FROM shard_state WHERE shard = %s", (shard,)).fetchone()
    with connection.cursor() as cursor:
        cursor.execute("SET work_mem = '128MB'")
        verifier.run(cursor, row[0] if row else 0, progress)
        with connection.transaction():
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            verifier.run(cursor, ALL)
            verifier.finish(cursor)
    return verifier


class ChainVerifier:
    """Goes along the chain of one shard, from `after` to `head`.

    entries, records: how many that were. bad: of bad_total entries, the first MAX_DIFFERENCES. ends: see finish.
    """

    def __init__(self, shard: int, after: Head) -> None:
        self.shard = shard
        self._first = _BEGINNING if after.sequence == 0 else after.sequence
        self.after = self.head = after
        self.entries = self.records = self.bad_total = 0
        self.bad: list[BadEntry] = []
        self.ends: list[BadEnd] = []

    @property
    def ok(self) -> bool:
        return self.bad_total == 0 and not self.ends

    def run(self, cursor: psycopg.Cursor[Any], to: int, progress: Progress = lambda _, __: None) -> None:
        """Verify the entries that end up to a sequence."""
        while len(entries := self._entries(cursor, to)):
            self._verify(cursor, entries)
            progress(self.head.sequence, to)

    def finish(self, cursor: psycopg.Cursor[Any]) -> None:
        """Compare the end: nothing is behind the last entry, and shard_state has its link. cursor: in a snapshot in
        which run came to ALL."""
        for table in chain.HASHED_TABLES:
            query = f"SELECT count(*) FROM {table.format.table} WHERE shard = %s AND {table.sequence} > %s"  # noqa: S608
            row = cursor.execute(query, (self.shard, self._first)).fetchone()
            if row and row[0]:
                self.ends.append(BadEnd(table.format.table, f"{row[0]} rows after the last journal entry", "none"))
        row = cursor.execute("SELECT chain FROM shard_state WHERE shard = %s", (self.shard,)).fetchone()
        if row and row[0] != self.head.link:
            expected = f"chain {self.head.link.hex()} of the last journal entry"
            self.ends.append(BadEnd("shard_state", f"chain {row[0].hex()}", expected))

    def _entries(self, cursor: psycopg.Cursor[Any], to: int) -> Rows:
        """The next ones; [] at the end."""
        entries = self._read(cursor, JOURNAL_BATCH, "last_sequence", to, f"last_sequence LIMIT {ENTRIES_AT_ONCE}")
        found = np.concatenate(list(entries))
        ends = found["last_sequence"].astype(np.int64)
        bound = np.searchsorted(ends, self.head.sequence + RECORDS_AT_ONCE, side="right")
        return found[: max(bound, 1)]

    def _verify(self, cursor: psycopg.Cursor[Any], entries: Rows) -> None:
        ends = entries["last_sequence"].astype(np.int64)
        hashes = [self._hashes(cursor, ends, table) for table in chain.HASHED_TABLES]
        headers, previous = rows.headers_of(entries), self.head.link
        for at, content in enumerate(chain.contents(hashes)):
            made, stored = chain.link(previous, headers[at].tobytes(), content), entries["chain"][at].tobytes()
            if made != stored:
                self._note(entries[at], stored, made)
            previous = stored
        self.entries += len(entries)
        self.records += int(ends[-1]) - self.head.sequence
        self._first, self.head = int(ends[-1]), Head(int(ends[-1]), previous)

    def _hashes(self, cursor: psycopg.Cursor[Any], ends: NDArray[np.int64], hashed: chain.Hashed) -> list[bytes]:
        """The hash of each entry's rows in one table."""
        hasher = chain.TableHasher(ends)
        for block in self._read(cursor, hashed.format, hashed.sequence, int(ends[-1]), hashed.order):
            hasher.add(block, block[hashed.sequence])
        return hasher.finish()

    def _read(self, cursor: psycopg.Cursor[Any], table: RowFormat, column: str, to: int, order: str) -> Any:
        """The table's rows behind what was verified, up to a sequence, in blocks."""
        where = f"WHERE shard = {self.shard:d} AND {column} > {self._first:d} AND {column} <= {to:d}"
        return table.copy_out(cursor, f"{where} ORDER BY {order}", _ROWS_AT_ONCE)

    def _note(self, entry: np.void, stored: bytes, made: bytes) -> None:
        self.bad_total += 1
        if len(self.bad) < MAX_DIFFERENCES:
            at = _EPOCH_2000 + timedelta(microseconds=int(entry["at"]))
            sequences = int(entry["first_sequence"]), int(entry["last_sequence"])
            self.bad.append(BadEntry(*sequences, int(entry["epoch"]), at, stored.hex(), made.hex()))
