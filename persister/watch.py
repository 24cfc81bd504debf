"""The continuous reconciler: a full pass at an interval, and in between a look at what came since the last one.

What it finds goes to the table drift, to the log, and to whoever is told. It repairs nothing. One of a shard's
reconcilers works, the others stand by. A server that is away is waited for: without Redis the ledger is still checked.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import psycopg
import structlog
from numpy.typing import NDArray

from engine.errors import Fatal
from engine.servers import redact_url
from persister import drift
from persister.chain import NO_HEAD, Head
from persister.connection import connect
from persister.drain import FIRST_BACKOFF_S, MAX_BACKOFF_S, POSTGRES_AWAY, STANDBY_INTERVAL_S
from persister.drift import Drift, Kind
from persister.ledger_checks import check_ledger, check_recent, timed
from persister.live import compare_with_redis
from persister.reconcile import REDIS_PROVES
from persister.redis_shard import LibraryMissing, RedisAway, RedisShard
from persister.report import Check, Report
from persister.verify import head_before

RECONCILER_LOCK = 0x484C5243
"""First number of the advisory locks of the reconcilers; the second is the shard."""

MAX_UNCOMPARED = 100_000
"""Wallets that changed while Redis could not be asked; with more of them, a full pass is due."""

MAX_LOGGED = 20
"""Of the drift that one reconciliation finds; all of it is in the table."""

_NONE = np.empty(0, np.int64)
_WALLET = re.compile(r"wallet (-?\d+)$")


class Reconciled(NamedTuple):
    """What is told after each reconciliation. incomplete: why not everything was looked at; None if it was.
    open_drift: how many rows of the table drift are open now."""

    kind: Kind
    report: Report
    seconds: float
    incomplete: str | None
    new: list[Drift]
    gone: list[Drift]
    open_drift: int


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Seconds between the beginnings of two looks, and of two full passes."""

    every_s: float = 10.0
    full_s: float = 3600.0


class Watcher:
    """Reconciles one shard for as long as run() runs."""

    def __init__(
        self,
        redis_url: str,
        postgres_url: str,
        shard: int = 0,
        *,
        intervals: Intervals,
        told: Callable[[Reconciled], None] = lambda _: None,
    ) -> None:
        """The URLs are as of Persister. told: called after each reconciliation, from run's thread."""
        self._redis_url = redis_url
        self._postgres_url = postgres_url
        self._shard = shard
        self._intervals = intervals
        self._told = told
        self._log = structlog.get_logger().bind(shard=shard)
        self._uncompared = _NONE

    def run(self, stop: threading.Event) -> None:
        """Until stop is set. Raises Fatal if a server is not one that can be reconciled."""
        backoff_s = FIRST_BACKOFF_S
        while not stop.is_set():
            began_at = time.monotonic()
            try:
                with connect(self._postgres_url, application_name="hotledger reconciler") as connection:
                    if self._wait_for_turn(connection, stop):
                        self._keep_looking(connection, stop)
                return
            except POSTGRES_AWAY as error:
                self._log.warning("postgres.away", url=redact_url(self._postgres_url), error=str(error).strip())
            if time.monotonic() - began_at > MAX_BACKOFF_S:
                backoff_s = FIRST_BACKOFF_S
            stop.wait(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    def _wait_for_turn(self, connection: psycopg.Connection, stop: threading.Event) -> bool:
        """Until no other reconciler works on the shard; False if stop was set first."""
        query = "SELECT pg_try_advisory_lock(%s, %s)"
        while (row := connection.execute(query, (RECONCILER_LOCK, self._shard)).fetchone()) and not row[0]:
            if stop.wait(STANDBY_INTERVAL_S):
                return False
        return True

    def _keep_looking(self, connection: psycopg.Connection, stop: threading.Event) -> None:
        last_full, last = (drift.last_run(connection, self._shard, kind) for kind in (Kind.FULL, None))
        head = last.head if last and not last.incomplete else None
        full_at = time.monotonic() + (self._intervals.full_s - last_full.age_s if last_full else 0)
        next_at = time.monotonic()
        while not stop.is_set():
            began_at = time.monotonic()
            full_is_due = head is None or began_at >= full_at or len(self._uncompared) > MAX_UNCOMPARED
            if head is None or full_is_due or not self._is_still_there(connection, head):
                head = self._full_pass(connection)
                ended_at = time.monotonic()
                # Where they take long, there is time for looks in between.
                full_at = max(began_at + self._intervals.full_s, 2 * ended_at - began_at)
            else:
                head = self._look(connection, head, stop)
            # Whoever cannot keep up looks at more the next time, and not more often.
            next_at = max(next_at + self._intervals.every_s, time.monotonic())
            stop.wait(max(0, min(next_at, full_at) - time.monotonic()))

    def _is_still_there(self, connection: psycopg.Connection, head: Head) -> bool:
        """Whether the ledger has what was looked at last; not one that was restored from a backup, or written anew."""
        here = head_before(connection, self._shard, head.sequence + 1) or NO_HEAD
        if here != head and head.sequence:
            self._log.error("ledger.other_history", looked_at=head.sequence, has=here.sequence)
        return here == head

    def _full_pass(self, connection: psycopg.Connection) -> Head | None:
        began_at = time.monotonic()
        report = check_ledger(connection, self._shard)
        incomplete = self._compare(connection, report, None)
        if not incomplete:
            self._uncompared = _NONE
        self._note(connection, Kind.FULL, report, began_at, 0, incomplete)
        return report.head

    def _look(self, connection: psycopg.Connection, head: Head, stop: threading.Event) -> Head:
        """At what came after a place in the chain, and again at the wallets that differ."""
        began_at, began_after = time.monotonic(), head.sequence
        report = Report(self._shard)
        differing = self._differing_wallets(connection)
        wallets = np.union1d(differing, self._uncompared)
        while True:
            recent = check_recent(connection, report, head)
            head, wallets = recent.head, np.union1d(wallets, recent.wallets)
            incomplete = self._compare(connection, report, wallets)
            self._uncompared = wallets = wallets if incomplete else _NONE
            if recent.at_end or stop.is_set():
                break
        again = [f"wallet {wallet_id}" for wallet_id in differing.tolist()]
        self._note(connection, Kind.RECENT, report, began_at, began_after, incomplete, again)
        return head

    def _differing_wallets(self, connection: psycopg.Connection) -> NDArray[np.int64]:
        """Those that drift is open of, between Redis and the ledger."""
        of_redis = (it for it in drift.open_drift(connection, self._shard) if it.check_name == "redis")
        found = filter(None, (_WALLET.match(it.subject) for it in of_redis))
        return np.array(sorted({int(subject[1]) for subject in found}), np.int64)

    def _compare(self, connection: psycopg.Connection, report: Report, wallets: NDArray[np.int64] | None) -> str | None:
        """Compare wallets, or everything, with Redis. Returns why that was not possible."""
        check = Check("redis", REDIS_PROVES)
        try:
            with RedisShard(self._redis_url, self._shard) as redis:
                timed(compare_with_redis, redis, connection, self._shard, check, wallet_ids=wallets)
        except (RedisAway, LibraryMissing, Fatal) as error:
            # What was found until then may be half of a look: it will be found again.
            return redact_url(f"Redis cannot be asked: {error}")
        report.merge(check)
        return f"{check.incomplete.subject}: {check.incomplete.found}" if check.incomplete else None

    def _note(
        self,
        connection: psycopg.Connection,
        kind: Kind,
        report: Report,
        began_at: float,
        after: int,
        incomplete: str | None,
        again: list[str] | None = None,
    ) -> None:
        seconds = time.monotonic() - began_at
        reason = incomplete or report.why_incomplete
        noted = drift.note(
            connection, report, kind, after=after, seconds=seconds, incomplete=reason, looked_at_again=again or ()
        )
        for it in noted.new[:MAX_LOGGED]:
            self._log.error("drift.found", **_in_words(it))
        for it in noted.gone[:MAX_LOGGED]:
            self._log.warning("drift.gone", **_in_words(it))
        tell = self._log.error if noted.open else self._log.warning if reason else self._log.info
        tell(
            "reconciled",
            kind=kind.value,
            sequence=report.sequence,
            chain=report.chain,
            checked=report.checked,
            differences=report.total,
            open_drift=noted.open,
            incomplete=reason,
            seconds=round(seconds, 3),
        )
        self._told(Reconciled(kind, report, seconds, reason, *noted))


def _in_words(it: Drift) -> dict[str, object]:
    return {
        "check": it.check_name,
        "subject": it.subject,
        "found": it.found,
        "expected": it.expected,
        "redis_version": it.redis_version,
        "ledger_version": it.ledger_version,
    }
