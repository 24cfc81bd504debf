"""What one worker process has: its engine, its keys, its pool of ledger connections; how it begins and ends."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import structlog

from engine import Engine, Fatal, Status, Unavailable
from engine.domain.ids import id_deriver
from gateway.http import metrics
from gateway.http.access import Access
from gateway.http.keyring import Keyring
from gateway.http.ledger import Ledger, open_pool
from gateway.http.problems import Refused
from persister.redis_shard import LibraryMissing, RedisAway, RedisShard

SHARD = 0
RETRY_S = 0.5
BROKEN_RETRY_S = 5.0
WATCH_S = 1.0
SHARD_KEPT_S = 0.5

log = structlog.get_logger(__name__)


class Settings(NamedTuple):
    """timeout_ms: how long a request waits for its outcome. digest_key: None for the deployment's own."""

    redis_url: str
    postgres_url: str
    digest_key: bytes | None = None
    timeout_ms: int = 5_000
    log_requests: bool = False


class ShardNow(NamedTuple):
    """The shard as Redis has it. max_backlog: 0 while it is closed."""

    is_open: bool
    sequence: int
    persisted: int
    max_backlog: int


class Service:
    """Made inside the event loop. Requests that come before it has all it needs are refused as SHARD_NOT_OPEN."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ledger = Ledger(open_pool(settings.postgres_url), SHARD)
        self.access = Access(self.ledger)
        self.keyring = Keyring(self.ledger.pool)
        self._engine: Engine | None = None
        self._derive: Callable[[str, str], bytes] | None = None
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._shard: tuple[float, ShardNow] | None = None
        self._asking = asyncio.Lock()
        self._figures = metrics.EngineFigures()

    async def start(self) -> None:
        """Does not wait for the servers: /health/ready tells when they are there."""
        gc.collect()
        gc.freeze()  # what was imported lives as long as the process: the collector need not look at it again
        await self.ledger.pool.open(wait=False)
        self._tasks = [
            asyncio.create_task(self.keyring.keep_fresh()),
            asyncio.create_task(self._watch()),
            asyncio.create_task(self._have_engine()),
        ]

    async def close(self) -> None:
        """Answer what is under way, then end."""
        self._stop.set()
        *others, engine = self._tasks
        with suppress(asyncio.CancelledError):
            await engine
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.ledger.pool.close()
        metrics.worker_ends()

    @property
    def engine(self) -> Engine:
        """Raises Refused while there is none."""
        if self._engine is None:
            raise Refused(Status.SHARD_NOT_OPEN, "the service has no engine yet", retry_after_s=1)
        return self._engine

    def derive(self, scope: str, key: str) -> bytes:
        """A 16-byte id of an owner scope and a text. Raises Refused as engine."""
        if self._derive is None:
            raise Refused(Status.SHARD_NOT_OPEN, "the service has no engine yet", retry_after_s=1)
        return self._derive(scope, key)

    async def shard_now(self) -> ShardNow:
        """Read a moment ago at most. Raises Unavailable."""
        async with self._asking:
            if self._shard is None or time.monotonic() - self._shard[0] > SHARD_KEPT_S:
                self._shard = time.monotonic(), await asyncio.to_thread(_read_shard, self.settings.redis_url)
            return self._shard[1]

    def is_ready(self, shard: ShardNow | None) -> str:
        """'' if a payment would work, else why not."""
        if self._stop.is_set():
            return "the process ends"
        if self._engine is None:
            return "there is no engine yet"
        if not self.keyring.is_loaded:
            return "the keys are not loaded yet"
        if shard is None or not shard.is_open:
            return "the shard is not open"
        if shard.sequence - shard.persisted >= shard.max_backlog > 0:
            return "the ledger is too far behind"
        return ""

    async def metrics(self) -> bytes:
        return metrics.exposition()

    async def _watch(self) -> None:
        """Keep the gauges true."""
        while True:
            self._figures.take(self._engine)
            try:
                shard = await self.shard_now()
                metrics.OPEN.set(shard.is_open)
                metrics.BACKLOG.set(shard.sequence - shard.persisted)
                metrics.SEQUENCE.set(shard.sequence)
            except Unavailable:
                metrics.OPEN.set(0)
            await asyncio.sleep(WATCH_S)

    async def _have_engine(self) -> None:
        """An engine from the moment when the servers are there until the end, when its calls are answered."""
        settings = self.settings
        while not self._stop.is_set():
            pause_s = RETRY_S
            try:
                async with Engine.connect(
                    settings.redis_url,
                    settings.postgres_url,
                    shard=SHARD,
                    digest_key=settings.digest_key,
                    timeout_ms=settings.timeout_ms,
                ) as engine:
                    self._derive = id_deriver(settings.digest_key or await self._deployment())
                    self._engine = engine
                    log.info("service.ready")
                    await self._stop.wait()
                return
            except (Unavailable, Refused) as error:
                log.warning("service.waits", error=str(error))
            except Fatal as error:
                log.error("service.broken", error=str(error))
                pause_s = BROKEN_RETRY_S
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause_s)

    async def _deployment(self) -> bytes:
        rows = await self.ledger.rows("deployment")
        if not rows:
            raise Unavailable("the ledger has no deployment yet")
        return bytes(rows[0][0].bytes)


def _read_shard(redis_url: str) -> ShardNow:
    try:
        with RedisShard(redis_url, SHARD) as shard:
            state = shard.state()
    except (LibraryMissing, RedisAway) as error:
        raise Unavailable(str(error)) from error
    meta = state.meta or {"sequence": 0, "persisted": 0}
    return ShardNow(state.is_open, meta["sequence"], meta["persisted"], state.max_backlog)
