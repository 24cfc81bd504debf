"""The checks of reconciliation that need the ledger only; together they see one snapshot of it.

Each invariant of the ledger is written down once, here or in a file of sql/checks, and used by reconciliation, by
tests and by the command line alike. Most can look at the whole ledger, or only at what came after a sequence.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.rows import dict_row

from engine.errors import CorruptRecord
from persister import details
from persister.chain import NO_HEAD, Head
from persister.copy_binary import BigintArray, UuidArray, register_arrays
from persister.report import MAX_DIFFERENCES, Check, Report
from persister.sql import sql
from persister.verify import ALL, ChainVerifier, head_before

RECENT_RECORDS = 50_000
"""Most that check_recent looks at in one snapshot."""

_DETAILS_AT_ONCE = 50_000


class SqlCheck(NamedTuple):
    """name: also the file's in sql/checks. proves: in words. looks_at: a column of sizes.sql. recent: the file that
    checks what is new; None if that needs the whole ledger."""

    name: str
    proves: str
    looks_at: str
    recent: str | None


SQL_CHECKS = (
    SqlCheck("conservation", "per currency, entries sum to zero", "entries", "conservation"),
    SqlCheck("balances", "each balance is the sum of its entries and its last entry", "wallets", "recent_balances"),
    SqlCheck("versions", "wallet versions have no gap and follow from each other", "entries", "versions"),
    SqlCheck("sequences", "sequences have no gap up to the shard's state", "events", "sequences"),
    SqlCheck("events", "each event did what its kind says, within one currency", "events", "events"),
    SqlCheck(
        "transfers", "a transfer made two entries that sum to zero, nothing else moved money", "entries", "transfers"
    ),
    SqlCheck("states", "each wallet is as it was opened and as its changes made it", "wallets", "states"),
    SqlCheck("overdrafts", "nothing but chargebacks took a wallet below its overdraft limit", "entries", None),
    SqlCheck("holds", "locked is what the open holds have left", "wallets", "holds"),
    SqlCheck("open_holds", "the open holds are as their last change left them", "holds", "open_holds"),
    SqlCheck("hold_changes", "each change of a hold follows from the one before", "hold_changes", "hold_changes"),
    SqlCheck("refunds", "no transfer was refunded by more than it moved", "refunds", None),
    SqlCheck("heads", "the sha256 chain is what earlier reconciliations noted of it", "heads", None),
)
_DETAILS_PROVES = "references and metadata are what their digests say"
_CHAIN_PROVES = "the sha256 chain over every row verifies"


class Recent(NamedTuple):
    """What check_recent looked at. head: the place in the chain that it came to; at_end: whether that was the ledger's
    end; wallets: those that changed, in ascending order."""

    head: Head
    at_end: bool
    wallets: NDArray[np.int64]


def check_ledger(connection: psycopg.Connection, shard: int) -> Report:
    """Every check of the whole ledger. connection: in autocommit mode, without a transaction."""
    report = Report(shard)
    with _snapshot(connection) as cursor:
        _note_end(cursor, report)
        part = _Part(shard, 0, ALL)
        sizes = _sizes(cursor, part)
        for sql_check in SQL_CHECKS:
            check = report.check(sql_check.name, sql_check.proves)
            check.checked = sizes[sql_check.looks_at]
            timed(_check_sql, cursor, part, sql_check.name, check)
        timed(_check_details, cursor, shard, report.check("details", _DETAILS_PROVES))
        after = head_before(connection, shard, 1) or NO_HEAD
        timed(_check_chain, cursor, report, after, ALL, report.check("chain", _CHAIN_PROVES))
    return report


def check_recent(connection: psycopg.Connection, report: Report, after: Head) -> Recent:
    """Check what came after a place in the chain, at most RECENT_RECORDS, and add what was found to the report.

    To look at all of it, call again with the head that is returned until that is at the end. connection: as of
    check_ledger.
    """
    with _snapshot(connection) as cursor:
        cursor.execute("SET LOCAL random_page_cost = 1.1")  # what is new is in memory, and so is what it needs
        end = _note_end(cursor, report)
        to = _step(cursor, report.shard, after.sequence, end)
        part = _changed(cursor, report.shard, after.sequence, to)
        sizes = _sizes(cursor, part)
        for sql_check in SQL_CHECKS:
            if sql_check.recent:
                check = report.check(sql_check.name, sql_check.proves)
                check.checked += sizes[sql_check.looks_at]
                timed(_check_sql, cursor, part, sql_check.recent, check)
        timed(_check_chain, cursor, report, after, to, report.check("chain", _CHAIN_PROVES))
        return Recent(report.head or after, to == ALL, part.wallets)


def timed(fill: Callable[..., None], *arguments: Any, **options: Any) -> Check:
    """The check, which is the last argument, after fill(*arguments, **options), with the time that took."""
    check: Check = arguments[-1]
    began_at = time.perf_counter()
    fill(*arguments, **options)
    check.seconds += time.perf_counter() - began_at
    return check


@contextmanager
def _snapshot(connection: psycopg.Connection) -> Iterator[psycopg.Cursor[Any]]:
    register_arrays(connection)
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        cursor.execute("SET LOCAL work_mem = '128MB'")
        cursor.execute("SET LOCAL jit = off")  # it would compile for longer than most of these run
        yield cursor


def _note_end(cursor: psycopg.Cursor[Any], report: Report) -> int:
    """How far the ledger is."""
    query = "SELECT sequence, encode(chain, 'hex') FROM shard_state WHERE shard = %s"
    report.sequence, report.chain = cursor.execute(query, (report.shard,)).fetchone() or (0, "")
    return report.sequence


def _step(cursor: psycopg.Cursor[Any], shard: int, after: int, end: int) -> int:
    """The sequence to look up to: the end of a journal entry, or ALL if the ledger's end is not far."""
    if end - after <= RECENT_RECORDS:
        return ALL
    values = {"shard": shard, "after": after, "bound": after + RECENT_RECORDS}
    row = cursor.execute(sql("checks/step"), values).fetchone()
    return row[0] if row and row[0] else ALL


class _Part(NamedTuple):
    """Which part of the ledger is looked at: what came after a sequence, up to another; 0 for everything. wallets,
    holds: those that changed in it."""

    shard: int
    after: int
    to: int
    wallets: NDArray[np.int64] = np.empty(0, np.int64)
    holds: NDArray[np.void] = np.empty(0, "V16")

    @property
    def values(self) -> dict[str, Any]:
        """Parameters of the queries."""
        return self._asdict() | {"wallets": BigintArray(self.wallets), "holds": UuidArray(self.holds)}


def _changed(cursor: psycopg.Cursor[Any], shard: int, after: int, to: int) -> _Part:
    def distinct(column: str, table: str) -> list[Any]:
        query = (
            f"SELECT DISTINCT {column} FROM {table} "  # noqa: S608  fixed names
            f"WHERE shard = %s AND sequence > %s AND sequence <= %s ORDER BY {column}"
        )
        return [row[0] for row in cursor.execute(query, (shard, after, to), prepare=False)]

    wallets = np.array(distinct("wallet_id", "ledger_entry"), np.int64)
    holds = b"".join(hold_id.bytes for hold_id in distinct("hold_id", "hold_change"))
    return _Part(shard, after, to, wallets, np.frombuffer(holds, "V16"))


def _sizes(cursor: psycopg.Cursor[Any], part: _Part) -> dict[str, Any]:
    with cursor.connection.cursor(row_factory=dict_row) as sizes:
        return sizes.execute(sql("checks/sizes"), part.values, prepare=False).fetchone() or {}


def _check_sql(cursor: psycopg.Cursor[Any], part: _Part, file: str, check: Check) -> None:
    """The query's rows are the differences: subject, found, expected, and how many there are in all."""
    # A prepared statement would be planned for any part of the ledger, and this one is everything or little.
    found = cursor.execute(sql(f"checks/{file}"), part.values | {"limit": MAX_DIFFERENCES}, prepare=False).fetchall()
    for subject, what, expected, _ in found:
        check.differs(subject, what, expected)
    if found:
        check.total += found[0][3] - len(found)


def _check_details(cursor: psycopg.Cursor[Any], shard: int, check: Check) -> None:
    with cursor.connection.cursor(name="details") as found:
        found.itersize = _DETAILS_AT_ONCE
        for subject, digest, reference, metadata in found.execute(sql("checks/details"), {"shard": shard}):
            check.checked += 1
            expected = 0 if reference is None and metadata is None else details.digest_of(reference, metadata)
            if digest != expected:
                check.differs(subject, f"digest {digest}", f"digest {expected} of its details")


def _check_chain(cursor: psycopg.Cursor[Any], report: Report, after: Head, to: int, check: Check) -> None:
    verifier = ChainVerifier(report.shard, after)
    try:
        verifier.run(cursor, to)
        if to == ALL:
            verifier.finish(cursor)
    except CorruptRecord as error:  # nothing of ours can write such rows
        check.give_up("the chain", str(error), "rows as the schema has them")
    check.checked += verifier.entries
    for bad in verifier.bad:
        check.differs(f"journal entry {bad.last_sequence}", f"its rows make {bad.made}", f"chain {bad.found}")
    check.total += verifier.bad_total - len(verifier.bad)
    for end in verifier.ends:
        check.differs(*end)
    report.head = verifier.head
