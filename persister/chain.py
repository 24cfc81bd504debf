"""The sha256 chain: proves that nobody edited the ledger.

One link per journal entry: sha256(the link before, the entry's journal_batch row without the link, and the sha256
of the entry's rows in each of HASHED_TABLES, in their order). A table that came later is part of a link only where the
entry has rows in it, with its name ahead: so links that are older than the table stay what they are. A row is hashed
as Postgres' binary COPY gives it, so the chain is rebuilt from table columns alone: the rows of a table by sequence,
a transfer's debit leg ahead of its credit leg. Each table has its own hash so that a verifier reads one at a time.

The journal's own rolling sha1 is another thing: Redis computes it, and it recognises a history.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import NamedTuple
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from persister.copy_binary import RowFormat, Rows
from persister.formats import (
    HOLD,
    HOLD_CHANGE,
    JOURNAL_EVENT,
    LEDGER_ENTRY,
    OUTCOME,
    REFUND,
    TIER_CHANGE,
    TRANSFER,
    TRANSFER_ORIGIN,
    WALLET,
    WALLET_CHANGE,
)


class Hashed(NamedTuple):
    """A table in the chain. sequence: its column with the journal's sequence; order: of a shard's rows.
    later: it is part of a link only where the entry has rows in it."""

    format: RowFormat
    sequence: str = "sequence"
    order: str = "sequence"
    later: bool = False


class Head(NamedTuple):
    """A place in the chain: the sequence at which a journal entry ends, and the link there."""

    sequence: int
    link: bytes


NO_HEAD = Head(0, b"")
"""Of a ledger that belongs to no deployment yet."""

HASHED_TABLES = (
    Hashed(JOURNAL_EVENT),
    Hashed(TRANSFER),
    Hashed(LEDGER_ENTRY, order="sequence, amount"),
    Hashed(WALLET, "opened_sequence", "opened_sequence"),
    Hashed(WALLET_CHANGE, later=True),
    Hashed(HOLD, later=True),
    Hashed(HOLD_CHANGE, later=True),
    Hashed(REFUND, later=True),
    Hashed(TRANSFER_ORIGIN, later=True),
    Hashed(TIER_CHANGE, later=True),
    Hashed(OUTCOME, later=True),
)
_NOTHING = sha256().digest()
"""The hash of no rows."""


def genesis(deployment_id: UUID, shard: int) -> bytes:
    """The link before the first entry: a chain belongs to one shard of one deployment."""
    return sha256(b"hotledger" + deployment_id.bytes + shard.to_bytes(2, "big")).digest()


class TableHasher:
    """The hash of each journal entry's rows in one table, from blocks of rows in their order.

    ends: the entries' last sequences, ascending. hashes: of the entries that are complete. stray: rows whose
    sequence is behind the last entry; they belong to none.
    """

    def __init__(self, ends: Sequence[int] | NDArray[np.int64]) -> None:
        self._ends = np.asarray(ends, np.int64)
        self._open = sha256()
        self.hashes: list[bytes] = []
        self.stray = 0

    def add(self, rows: Rows, sequence: NDArray[np.integer]) -> None:
        """rows: of the table's hashed columns. sequence: one item per row, not below what was added before."""
        if not len(rows):
            return
        # The entries that end before the block's last row get nothing more; the rest of it is the next one's.
        complete = self._ends[len(self.hashes) : np.searchsorted(self._ends, sequence[-1])]
        stops = np.searchsorted(sequence, complete, side="right")
        data, width, start = memoryview(rows.tobytes()), rows.dtype.itemsize, 0
        for stop in (stops * width).tolist():
            self._open.update(data[start:stop])
            self._close()
            start = stop
        if len(self.hashes) == len(self._ends):
            self.stray += (len(data) - start) // width
        else:
            self._open.update(data[start:])

    def finish(self) -> list[bytes]:
        """All hashes; entries without rows in this table have that of nothing."""
        if len(self.hashes) < len(self._ends):
            self._close()
        self.hashes += [_NOTHING] * (len(self._ends) - len(self.hashes))
        return self.hashes

    def _close(self) -> None:
        self.hashes.append(self._open.digest())
        self._open = sha256()


def contents(hashes: Sequence[Sequence[bytes]]) -> list[bytes]:
    """What each entry's rows add to its link. hashes: a TableHasher's for each of HASHED_TABLES, in their order."""
    columns: list[Sequence[bytes]] = []
    for table, of_table in zip(HASHED_TABLES, hashes, strict=True):
        if not table.later:
            columns.append(of_table)
        elif any(digest != _NOTHING for digest in of_table):
            name = table.format.table.encode()
            columns.append([b"" if digest == _NOTHING else name + digest for digest in of_table])
    return [b"".join(of_entry) for of_entry in zip(*columns, strict=True)]


def link(previous: bytes, header: bytes, content: bytes) -> bytes:
    """One step of the chain. header: the entry's BATCH_HEADER row; content: of its rows, from contents()."""
    return sha256(b"".join((previous, header, content))).digest()


def links(previous: bytes, headers: Rows, of_entries: Iterable[bytes]) -> list[bytes]:
    """The link of each entry. headers: BATCH_HEADER rows; of_entries: contents() of the same entries."""
    size, data = headers.dtype.itemsize, headers.tobytes()
    made = []
    for at, content in enumerate(of_entries):
        previous = link(previous, data[at * size : (at + 1) * size], content)
        made.append(previous)
    return made
