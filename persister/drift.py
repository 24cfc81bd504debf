"""The tables reconcile_run and drift: what reconciliation did, what it found, and what is found no more.

They are bounded: the oldest runs and resolved drift go, and there is a most of open drift, beyond which it is counted
in the runs alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import Enum
from typing import Any, NamedTuple

import psycopg

from persister.chain import NO_HEAD, Head
from persister.report import Check, Difference, Report
from persister.sql import sql

MAX_OPEN_DRIFT = 10_000
KEPT_RUNS = 10_000
"""Of each kind, and of resolved drift as many: with a look every ten seconds that is more than a day."""

_MAX_TEXT = 500
"""Characters of what is kept of a value."""


class Kind(Enum):
    """Of a reconciliation: everything, or what came since the one before."""

    FULL = "full"
    RECENT = "recent"


class Drift(NamedTuple):
    """A difference that is open, or was. resolved_at: when it was found no more."""

    check_name: str
    subject: str
    found: str
    expected: str
    redis_version: int | None
    ledger_version: int | None
    found_at: datetime
    seen_at: datetime
    resolved_at: datetime | None = None


class Run(NamedTuple):
    """A reconciliation that was noted. age_s: how long ago it ended. incomplete: why not everything was looked at."""

    kind: str
    began_at: datetime
    seconds: float
    after_sequence: int
    sequence: int
    chain: bytes
    checked: int
    differences: int
    incomplete: str | None
    age_s: float

    @property
    def head(self) -> Head:
        return Head(self.sequence, self.chain)


class Noted(NamedTuple):
    """What noting a reconciliation changed: drift that is new, drift that is gone, and how much is open now."""

    new: list[Drift]
    gone: list[Drift]
    open: int


def note(
    connection: psycopg.Connection[Any],
    report: Report,
    kind: Kind,
    *,
    after: int = 0,
    seconds: float,
    incomplete: str | None = None,
    looked_at_again: Iterable[str] = (),
) -> Noted:
    """Note a reconciliation in one transaction.

    after: the sequence that it began behind. incomplete: why not everything was looked at. looked_at_again: subjects of
    the check `redis` that a RECENT one looked at besides; drift of theirs that it does not report is gone. A FULL one
    looks at every subject of its checks.
    """
    head = report.head or NO_HEAD
    run = {
        "shard": report.shard,
        "kind": kind.value,
        "seconds": seconds,
        "after": after,
        "sequence": head.sequence,
        "chain": head.link,
        "checked": report.checked,
        "differences": report.total,
        "incomplete": incomplete,
    }
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(sql("drift/add_run"), run)
        new = _open(cursor, report)
        gone = _resolve(cursor, report, _looked_at(report.checks, kind, looked_at_again))
        for file in ("drift/prune_runs", "drift/prune_drift"):
            cursor.execute(sql(file), {"shard": report.shard, "keep": KEPT_RUNS})
        return Noted(new, gone, count_open(connection, report.shard))


def last_run(connection: psycopg.Connection[Any], shard: int, kind: Kind | None = None) -> Run | None:
    """The last reconciliation, of one kind or of any. None if there was none."""
    values = {"shard": shard, "kind": kind and kind.value}
    row = connection.execute(sql("drift/last_run"), values).fetchone()
    return Run(*row) if row else None


def open_drift(connection: psycopg.Connection[Any], shard: int, limit: int = MAX_OPEN_DRIFT) -> list[Drift]:
    """The oldest first."""
    return [Drift(*row) for row in connection.execute(sql("drift/open_drift"), {"shard": shard, "limit": limit})]


def count_open(connection: psycopg.Connection[Any], shard: int) -> int:
    query = "SELECT count(*) FROM drift WHERE shard = %s AND resolved_at IS NULL"
    row = connection.execute(query, (shard,)).fetchone()
    return int(row[0]) if row else 0


def _open(cursor: psycopg.Cursor[Any], report: Report) -> list[Drift]:
    """Keep the report's differences as open drift; returns those that were not open already."""
    found: dict[tuple[str, str], Difference] = {}
    for check in report.checks:
        for difference in check.drift:
            found.setdefault((difference.check, _kept(difference.subject)), difference)
    columns: Sequence[Sequence[Any]] = tuple(zip(*found.values(), strict=True)) or ((),) * len(Difference._fields)
    texts = [[_kept(text) for text in column] for column in columns[:4]]
    values: dict[str, Any] = dict(zip(Difference._fields, [*texts, *map(list, columns[4:])], strict=True))
    values |= {"shard": report.shard, "most": MAX_OPEN_DRIFT}
    return [Drift(*row[:8]) for row in cursor.execute(sql("drift/open"), values) if row[8]]


def _looked_at(checks: Iterable[Check], kind: Kind, subjects: Iterable[str]) -> dict[str, list[str] | None]:
    """Of each check that could tell whether drift is gone: the subjects that it looked at, None for all."""
    whole = {check.name: check for check in checks if not check.incomplete and check.total == len(check.differences)}
    if kind is Kind.FULL:
        return dict.fromkeys(whole)
    return {"redis": list(subjects)} if "redis" in whole else {}


def _resolve(cursor: psycopg.Cursor[Any], report: Report, looked_at: dict[str, list[str] | None]) -> list[Drift]:
    """End the open drift that was looked for and not found."""
    gone: list[Drift] = []
    for name, subjects in looked_at.items():
        still = [_kept(difference.subject) for difference in report.check(name, "").drift]
        values = {"shard": report.shard, "check": name, "subjects": subjects, "still": still}
        gone += [Drift(*row) for row in cursor.execute(sql("drift/resolve"), values)]
    return gone


def _kept(text: str) -> str:
    return text[:_MAX_TEXT].replace("\0", "\\0")  # a damaged record may have any byte, Postgres' text not
