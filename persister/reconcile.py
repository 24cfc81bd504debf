"""Reconciliation: proves that the ledger adds up, that nobody edited it, and that Redis has the same balances.

The checks of the ledger see one snapshot (ledger_checks.py), the comparison with Redis needs none (live.py), and
neither stops the traffic. Nothing is ever repaired here.
"""

from __future__ import annotations

import psycopg

from engine.errors import Unavailable
from persister.connection import connect
from persister.ledger_checks import check_ledger, timed
from persister.live import compare_with_redis
from persister.redis_shard import LibraryMissing, RedisAway, RedisShard
from persister.report import Check, Difference, Report

__all__ = ["Check", "Difference", "Report", "reconcile"]


def reconcile(redis_url: str, postgres_url: str, shard: int = 0) -> Report:
    """Run every check of one shard. What differs is in the Report, never raised.

    Raises Unavailable if a server cannot be asked, Fatal if it answers what no server of ours does.
    """
    try:
        with connect(postgres_url, application_name="hotledger reconcile") as connection:
            report = check_ledger(connection, shard)
            with RedisShard(redis_url, shard) as redis:
                check = Check("redis", "Redis has the ledger's balances, wallet by wallet")
                report.checks.append(timed(compare_with_redis, redis, connection, shard, check))
            return report
    except (RedisAway, LibraryMissing) as error:
        raise Unavailable(f"Redis cannot be asked: {error}") from error
    except psycopg.OperationalError as error:
        raise Unavailable(f"the ledger cannot be asked: {error}") from error
