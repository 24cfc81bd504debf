"""The sha256 chain: proves that nobody edited the ledger.

One link per journal entry: sha256(the link before, the entry's journal_batch row without the link, and the sha256
of the entry's rows in journal_event, transfer, ledger_entry and wallet, in this order). A row is hashed as Postgres'
binary COPY gives it, so the chain is rebuilt from table columns alone: the rows of a table by sequence, a
transfer's debit leg ahead of its credit leg. Each table has its own hash so that a verifier reads one at a time.

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
from persister.rows import JOURNAL_EVENT, LEDGER_ENTRY, TRANSFER, WALLET


class Hashed(NamedTuple):
    """A table in the chain. sequence: its column with the journal's sequence; order: of a shard's rows."""

    format: RowFormat
    sequence: str
    order: str


HASHED_TABLES = (
    Hashed(JOURNAL_EVENT, "sequence", "sequence"),
    Hashed(TRANSFER, "sequence", "sequence"),
    Hashed(LEDGER_ENTRY, "sequence", "sequence, amount"),
    Hashed(WALLET, "opened_sequence", "opened_sequence"),
)


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
        while len(self.hashes) < len(self._ends):
            self._close()
        return self.hashes

    def _close(self) -> None:
        self.hashes.append(self._open.digest())
        self._open = sha256()


def link(previous: bytes, header: bytes, hashes: Iterable[bytes]) -> bytes:
    """One step of the chain. header: the entry's BATCH_HEADER row; hashes: of HASHED_TABLES, in their order."""
    return sha256(b"".join((previous, header, *hashes))).digest()


def links(previous: bytes, headers: Rows, hashes: Sequence[Sequence[bytes]]) -> list[bytes]:
    """The link of each entry. headers: BATCH_HEADER rows; hashes: a TableHasher's for each of HASHED_TABLES."""
    size, data = headers.dtype.itemsize, headers.tobytes()
    made = []
    for at, of_entry in enumerate(zip(*hashes, strict=True)):
        previous = link(previous, data[at * size : (at + 1) * size], of_entry)
        made.append(previous)
    return made
