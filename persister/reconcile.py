"""Reconciliation: proves that the ledger adds up, that nobody edited it, and that Redis has the same balances.

The checks of the ledger see one snapshot (ledger_checks.py), the comparison with Redis needs none (live.py), and
neither stops the traffic. Nothing is ever repaired here.
"""

from __future__ import annotations

import time

import psycopg
import structlog
from psycopg import errors

from engine.errors import Unavailable
from persister import drift
from persister.connection import connect
from persister.ledger_checks import check_ledger, timed
from persister.live import compare_with_redis
from persister.redis_shard import LibraryMissing, RedisAway, RedisShard
from persister.report import Check, Difference, Report

REDIS_PROVES = "Redis has the ledger's balances, wallet by wallet"

__all__ = ["Check", "Difference", "Report", "reconcile"]


def reconcile(redis_url: str, postgres_url: str, shard: int = 0, *, note_it: bool = False) -> Report:
    """Run every check of one shard. What differs is in the Report, never raised.

    note_it: in the tables reconcile_run and drift, as far as this user may. Raises Unavailable if a server cannot be
    asked, Fatal if it answers what no server of ours does.
    """
    began_at = time.monotonic()
    try:
        with connect(postgres_url, application_name="hotledger reconcile") as connection:
            report = check_ledger(connection, shard)
            with RedisShard(redis_url, shard) as redis:
                timed(compare_with_redis, redis, connection, shard, report.check("redis", REDIS_PROVES))
            if note_it:
                _note(connection, report, time.monotonic() - began_at)
            return report
    except (RedisAway, LibraryMissing) as error:
        raise Unavailable(f"Redis cannot be asked: {error}") from error
    except psycopg.OperationalError as error:
        raise Unavailable(f"the ledger cannot be asked: {error}") from error


def _note(connection: psycopg.Connection, report: Report, seconds: float) -> None:
    try:
        drift.note(connection, report, drift.Kind.FULL, seconds=seconds, incomplete=report.why_incomplete)
    except (errors.InsufficientPrivilege, errors.ReadOnlySqlTransaction) as error:
        structlog.get_logger().warning("reconcile.not_noted", error=str(error).strip())
