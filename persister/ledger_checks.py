"""The checks of reconciliation that need the ledger only; together they see one snapshot of it.

Each invariant of the ledger is written down once, here or in a file of sql/checks, and used by reconciliation, by
tests and by the command line alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.rows import dict_row

from persister import chain, details, rows
from persister.copy_binary import RowFormat, Rows
from persister.formats import JOURNAL_BATCH
from persister.report import MAX_DIFFERENCES, Check, Report
from persister.sql import sql

_ROWS_AT_ONCE = 50_000

SQL_CHECKS = (
    ("conservation", "per currency, entries sum to zero", "entries"),
    ("balances", "each balance is the sum of its entries and its last entry", "wallets"),
    ("versions", "wallet versions have no gap and follow from each other", "entries"),
    ("sequences", "sequences have no gap up to the shard's state", "events"),
    ("events", "each event did what its kind says, within one currency", "events"),
    ("transfers", "each transfer made two entries that sum to zero, and nothing else moved money", "entries"),
    ("states", "each wallet is as it was opened and as its changes made it", "wallets"),
    ("overdrafts", "nothing but chargebacks took a wallet below its overdraft limit", "entries"),
    ("holds", "locked is what the open holds have left", "wallets"),
    ("open_holds", "the open holds are as their last change left them", "holds"),
    ("hold_changes", "each change of a hold follows from the one before", "hold_changes"),
    ("refunds", "no transfer was refunded by more than it moved", "refunds"),
)
"""A check's name, which is also its file's in sql/checks, what it proves, and what it looks at."""


def check_ledger(connection: psycopg.Connection, shard: int) -> Report:
    """Every check of the ledger itself. connection: in autocommit mode, without a transaction."""
    report = Report(shard)
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        cursor.execute("SET LOCAL work_mem = '128MB'")
        cursor.execute("SET LOCAL jit = off")  # it would compile for longer than most of these run
        sizes = _sizes(cursor, shard)
        report.sequence, report.chain = sizes["sequence"] or 0, sizes["chain"] or ""
        for name, proves, looks_at in SQL_CHECKS:
            report.checks.append(timed(_check_sql, cursor, shard, Check(name, proves, sizes[looks_at])))
        report.checks.append(timed(_check_details, cursor, shard, Check("details", _DETAILS_PROVES)))
        report.checks.append(timed(_check_chain, cursor, shard, Check("chain", _CHAIN_PROVES, sizes["batches"])))
    return report


def timed(fill: Callable[..., None], *arguments: Any) -> Check:
    """The check, which is the last argument, after fill(*arguments), with the time that took."""
    check: Check = arguments[-1]
    began_at = time.perf_counter()
    fill(*arguments)
    check.seconds = time.perf_counter() - began_at
    return check


def _sizes(cursor: psycopg.Cursor[Any], shard: int) -> dict[str, Any]:
    with cursor.connection.cursor(row_factory=dict_row) as sizes:
        return sizes.execute(sql("checks/sizes"), {"shard": shard}).fetchone() or {}


def _check_sql(cursor: psycopg.Cursor[Any], shard: int, check: Check) -> None:
    """The query's rows are the differences: subject, found, expected, and how many there are in all."""
    values = {"shard": shard, "limit": MAX_DIFFERENCES}
    for subject, found, expected, total in cursor.execute(sql(f"checks/{check.name}"), values).fetchall():
        check.differs(subject, found, expected)
        check.total = total


_DETAILS_PROVES = "references and metadata are what their digests say"


def _check_details(cursor: psycopg.Cursor[Any], shard: int, check: Check) -> None:
    with cursor.connection.cursor(name="details") as found:
        found.itersize = _ROWS_AT_ONCE
        for subject, digest, reference, metadata in found.execute(sql("checks/details"), {"shard": shard}):
            check.checked += 1
            expected = 0 if reference is None and metadata is None else details.digest_of(reference, metadata)
            if digest != expected:
                check.differs(subject, f"digest {digest}", f"digest {expected} of its details")


_CHAIN_PROVES = "the sha256 chain over every row verifies"


def _check_chain(cursor: psycopg.Cursor[Any], shard: int, check: Check) -> None:
    """Recompute each link from table columns and the stored link before it.

    Takes memory for some 400 bytes per journal entry, and none per row.
    """
    batches = np.concatenate(list(_read(cursor, JOURNAL_BATCH, shard, "last_sequence")))
    ends = batches["last_sequence"].astype(np.int64)
    hashes = [_hashes(cursor, shard, ends, table, check) for table in chain.HASHED_TABLES]
    row = cursor.execute("SELECT id FROM deployment").fetchone()
    previous = chain.genesis(row[0], shard) if row else b""
    headers = rows.headers_of(batches)
    for at, content in enumerate(chain.contents(hashes)):
        stored = batches["chain"][at].tobytes()
        link = chain.link(previous, headers[at].tobytes(), content)
        if link != stored:
            check.differs(f"journal entry {ends[at]}", f"its rows make {link.hex()}", f"chain {stored.hex()}")
        previous = stored  # so that each altered entry is named, and not all after the first
    head = cursor.execute("SELECT chain FROM shard_state WHERE shard = %s", (shard,)).fetchone()
    if head and head[0] != previous:
        check.differs("shard_state", f"chain {head[0].hex()}", f"chain {previous.hex()} of the last journal entry")


def _hashes(
    cursor: psycopg.Cursor[Any], shard: int, ends: NDArray[np.int64], hashed: chain.Hashed, check: Check
) -> list[bytes]:
    """The hash of each journal entry's rows in one table."""
    hasher = chain.TableHasher(ends)
    for block in _read(cursor, hashed.format, shard, hashed.order):
        hasher.add(block, block[hashed.sequence])
    if hasher.stray:
        check.differs(hashed.format.table, f"{hasher.stray} rows after the last journal entry", "none")
    return hasher.finish()


def _read(cursor: psycopg.Cursor[Any], table: RowFormat, shard: int, order: str) -> Iterator[Rows]:
    return table.copy_out(cursor, f"WHERE shard = {shard:d} ORDER BY {order}", _ROWS_AT_ONCE)
