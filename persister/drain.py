"""The persister: keeps a shard's ledger up to date through every failure of a server or of itself.

One leader per shard: a session lock of Postgres on the very connection that writes, so a persister that lost the
lock cannot write either. What a leader does is in leader.py; this file owns getting to be one, again and again.
"""

from __future__ import annotations

import threading
import time

import psycopg
import structlog
from psycopg import errors

from engine.errors import Fatal
from engine.servers import redact_url
from persister.connection import connect
from persister.follower import Settings
from persister.leader import Leader
from persister.ledger import Ledger
from persister.redis_shard import RedisAway, RedisShard

STANDBY_INTERVAL_S = 0.2
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.05, 1.0

POSTGRES_AWAY = (psycopg.OperationalError, psycopg.InterfaceError, errors.ReadOnlySqlTransaction)


class Persister:
    """Leads one shard and drains its journal into the ledger, for as long as run() runs."""

    def __init__(
        self,
        redis_url: str,
        postgres_url: str,
        shard: int = 0,
        *,
        max_backlog: int = Settings.max_backlog,
        safety_tail: int = Settings.safety_tail,
        batch_records: int = Settings.batch_records,
        idempotency_window_s: float = Settings.idempotency_window_s,
        max_idempotency_records: int = Settings.max_idempotency_records,
        digest_key: bytes | None = None,
    ) -> None:
        """redis_url: redis://, rediss:// or unix://. postgres_url: whatever psycopg.connect takes.

        The settings are those of follower.Settings.
        """
        self._redis_url = redis_url
        self._postgres_url = postgres_url
        self._settings = Settings(
            shard=shard,
            max_backlog=max_backlog,
            safety_tail=safety_tail,
            batch_records=batch_records,
            idempotency_window_s=idempotency_window_s,
            max_idempotency_records=max_idempotency_records,
            digest_key=digest_key,
        )
        self._log = structlog.get_logger().bind(shard=shard)

    def run(self, stop: threading.Event) -> None:
        """Lead, open, drain, until stop is set. A server that is away is waited for.

        Raises Fatal: JournalGap, LedgerImbalance or CorruptRecord (the shard is closed then), HistoryMismatch,
        ServerRefused, LibraryMismatch.
        """
        self._keep_on(stop, until_drained=False)

    def drain(self, stop: threading.Event | None = None) -> None:
        """Like run, but return at the first moment when the ledger has all that the journal has."""
        self._keep_on(stop or threading.Event(), until_drained=True)

    def _keep_on(self, stop: threading.Event, *, until_drained: bool) -> None:
        backoff_s = FIRST_BACKOFF_S
        while not stop.is_set():
            began_at = time.monotonic()
            try:
                self._session(stop, until_drained)
                return
            except RedisAway as error:
                self._log.warning("redis.away", url=redact_url(self._redis_url), error=str(error))
            except POSTGRES_AWAY as error:
                self._log.warning("postgres.away", url=redact_url(self._postgres_url), error=str(error).strip())
            if time.monotonic() - began_at > MAX_BACKOFF_S:
                backoff_s = FIRST_BACKOFF_S
            stop.wait(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    def _session(self, stop: threading.Event, until_drained: bool) -> None:
        """One connection to each server, from taking the lead to losing either."""
        with connect(self._postgres_url, application_name="hotledger persister") as connection:
            ledger = Ledger(connection, self._settings.shard)
            if not self._lead(ledger, stop):
                return
            with RedisShard(self._redis_url, self._settings.shard) as redis:
                leader = Leader(ledger, redis, self._settings, stop)
                try:
                    leader.serve(until_drained=until_drained)
                except Fatal as error:
                    leader.give_up(error)
                    raise

    def _lead(self, ledger: Ledger, stop: threading.Event) -> bool:
        """Wait for the leadership; False if stop was set first."""
        waited = False
        while not ledger.try_to_lead():
            if not waited:
                self._log.info("persister.standby")
            waited = True
            if stop.wait(STANDBY_INTERVAL_S):
                return False
        self._log.info("persister.leads")
        return True
