"""What the HTTP API asks Postgres, over a small pool of each worker; the queries are in persister/sql/api."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from gateway.http.problems import Refused
from persister.sql import sql

WAIT_S = 2.0
"""How long a read waits for the ledger to have what was decided just before."""

POLL_S = 0.01
POOL_SIZE = 4
POOL_PATIENCE_S = 2.0
STATEMENT_TIMEOUT_MS = 5_000


def open_pool(postgres_url: str) -> AsyncConnectionPool:
    """A pool, not opened yet."""
    return AsyncConnectionPool(
        postgres_url,
        min_size=1,
        max_size=POOL_SIZE,
        timeout=POOL_PATIENCE_S,
        max_waiting=1000,
        kwargs={
            "autocommit": True,
            "application_name": "hotledger http",
            "connect_timeout": 5,
            "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS}",
        },
        open=False,
    )


class Ledger:
    """Raises Refused where psycopg would raise."""

    def __init__(self, pool: AsyncConnectionPool, shard: int) -> None:
        self.pool = pool
        self._shard = shard

    async def rows(self, query: str, **values: Any) -> list[tuple[Any, ...]]:
        """What `persister/sql/api/<query>.sql` finds."""
        try:
            async with self.pool.connection() as connection:
                return await (await connection.execute(sql(f"api/{query}"), values)).fetchall()
        except psycopg.DataError as error:
            raise Refused("INVALID_REQUEST", "a value that the ledger cannot be asked for") from error
        except (psycopg.Error, PoolTimeout) as error:
            raise Refused("LEDGER_UNAVAILABLE", retry_after_s=1) from error

    async def write(self, query: str, **values: Any) -> None:
        """As rows, for a statement that answers nothing."""
        try:
            async with self.pool.connection() as connection:
                await connection.execute(sql(f"api/{query}"), values)
        except (psycopg.Error, PoolTimeout) as error:
            raise Refused("LEDGER_UNAVAILABLE", retry_after_s=1) from error

    async def sequence(self) -> int:
        """How far the ledger is."""
        rows = await self.rows("ledger_sequence", shard=self._shard)
        return int(rows[0][0]) if rows else 0

    async def wait_for(self, sequence: int) -> None:
        """Until the ledger has a sequence, WAIT_S at most. Raises Refused: NOT_YET_IN_LEDGER."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + WAIT_S
        while (now_at := await self.sequence()) < sequence:
            if loop.time() >= until_s:
                raise Refused("NOT_YET_IN_LEDGER", f"the ledger is at sequence {now_at}", retry_after_s=1)
            await asyncio.sleep(POLL_S)
