"""How a command reaches the servers: by URL, through a running `hotledger up`, or by starting them itself.

A running `up` leaves servers.json (0600) in its data directory. The file is believed only while the directory's
lock is held by the process that the file names, so one left by a crash misleads nobody.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import orjson
import psycopg
import structlog

from engine import Engine, InvalidRequest, ShardNotOpen, Unavailable
from engine.servers import redact_url
from engine.shard import ShardState
from engine.urls import HIDDEN, POSTGRES_URL, REDIS_URL, check_postgres_url, check_redis_url
from gateway.embedded import DataDirectoryBusy, EmbeddedServers, default_data_dir
from gateway.persister_process import PersisterProcess
from persister.connection import connect
from persister.redis_shard import LibraryMissing, RedisAway, RedisShard

SHARD = 0
SERVERS_FILE = "servers.json"
BUSY_PATIENCE_S, BUSY_POLL_S = 10.0, 0.1
OPEN_TIMEOUT_S = 20.0
POLL_S = 0.02
DIGEST_KEY_VARIABLE = "HOTLEDGER_DIGEST_KEY"

log = structlog.get_logger(__name__)


class Origin(Enum):
    GIVEN = "given by URL"
    ATTACHED = "of a running `hotledger up`"
    STARTED = "started for this command"


@dataclass(frozen=True)
class Settings:
    """data_dir: None for this user's default. The URLs are given both or not at all."""

    data_dir: Path | None = None
    redis_url: str | None = None
    postgres_url: str | None = None

    def __post_init__(self) -> None:
        """Raises InvalidRequest."""
        for given, missing, name in (
            (self.redis_url, self.postgres_url, "--postgres-url"),
            (self.postgres_url, self.redis_url, "--redis-url"),
        ):
            if given and not missing:
                variable = "HOTLEDGER_" + name.strip("-").replace("-", "_").upper()
                raise InvalidRequest(name, f"given too, or {variable} set: both servers or neither", missing)
        if self.redis_url and self.data_dir is not None:
            raise InvalidRequest("--data", "absent where servers are given by URL", str(self.data_dir))

    @property
    def by_url(self) -> bool:
        return bool(self.redis_url)

    @property
    def directory(self) -> Path:
        return self.data_dir or default_data_dir()

    @property
    def digest_key(self) -> bytes | None:
        """From the environment alone, because a command line is seen by every user of the machine."""
        text = os.environ.get(DIGEST_KEY_VARIABLE)
        if not text:
            return None
        key = text.encode()
        if not 16 <= len(key) <= 64:
            raise InvalidRequest(DIGEST_KEY_VARIABLE, "text of 16 to 64 bytes", f"{len(key)} bytes")
        return key


@dataclass(frozen=True)
class Servers:
    redis_url: str
    postgres_url: str
    origin: Origin


@dataclass(frozen=True)
class Session:
    """Servers that take payments. persister: the one of this command, None where `up` runs it."""

    servers: Servers
    digest_key: bytes | None
    persister: PersisterProcess | None

    @asynccontextmanager
    async def engine(self, **settings: Any) -> AsyncIterator[Engine]:
        """settings: of Engine.connect. Raises what that raises."""
        urls = self.servers.redis_url, self.servers.postgres_url
        async with Engine.connect(*urls, shard=SHARD, digest_key=self.digest_key, **settings) as engine:
            yield engine

    @contextmanager
    def ledger(self) -> Iterator[psycopg.Connection]:
        with closing(connect(self.servers.postgres_url)) as connection:
            yield connection

    def check(self) -> None:
        """Raises Fatal if the persister stopped for good."""
        if self.persister:
            self.persister.check()

    def journal_state(self) -> ShardState:
        """Raises Unavailable."""
        return _state(self.servers.redis_url)

    def lag_records(self) -> int:
        """How many journal records the ledger lacks, as Redis knows. Raises Unavailable."""
        meta = self.journal_state().meta
        return meta["sequence"] - meta["persisted"] if meta else 0

    def wait_until_drained(self, timeout_s: float = float("inf")) -> None:
        """Until the ledger has all that was journalled when this was called. Raises Unavailable, Fatal."""
        deadline = time.monotonic() + timeout_s
        target: int | None = None
        while True:
            with suppress(Unavailable):
                meta = self.journal_state().meta
                if meta is not None:
                    target = meta["sequence"] if target is None else target
                    if meta["persisted"] >= target:
                        return
            self.check()
            if time.monotonic() > deadline:
                raise Unavailable(f"the ledger did not reach sequence {target} in {timeout_s:.0f} s")
            time.sleep(POLL_S)


@contextmanager
def open_session(settings: Settings, *, attach: bool = True) -> Iterator[Session]:
    """Servers with an open shard, and a persister for as long as the command runs unless `up` has one.

    attach: whether the servers of a running `up` will do. Raises DataDirectoryBusy, EmbeddedServerError,
    Unavailable, Fatal.
    """
    digest_key = settings.digest_key
    with open_servers(settings, attach=attach) as servers:
        if servers.origin is Origin.ATTACHED:
            wait_until_open(servers, None)
            yield Session(servers, digest_key, None)
            return
        with PersisterProcess(servers.redis_url, servers.postgres_url, digest_key) as persister:
            wait_until_open(servers, persister)
            yield Session(servers, digest_key, persister)


@contextmanager
def open_servers(settings: Settings, *, attach: bool = True, reachable: bool = True) -> Iterator[Servers]:
    """The servers alone, with nothing done in them. reachable: whether those given by URL must be, both of them.

    Raises as open_session.
    """
    if settings.redis_url and settings.postgres_url:
        if reachable:
            check_reachable(settings.redis_url, settings.postgres_url)
        check_redis_url(settings.redis_url, "--redis-url")
        check_postgres_url(settings.postgres_url, "--postgres-url")
        yield Servers(settings.redis_url, settings.postgres_url, Origin.GIVEN)
        return
    embedded = EmbeddedServers(settings.directory)
    running = _start_or_find(embedded, attach)
    if running:
        yield running
        return
    with closing_servers(embedded):
        yield Servers(embedded.redis_url, embedded.postgres_url, Origin.STARTED)


@contextmanager
def closing_servers(embedded: EmbeddedServers) -> Iterator[None]:
    try:
        yield
    finally:
        embedded.stop()


def _start_or_find(embedded: EmbeddedServers, attach: bool) -> Servers | None:
    """None once embedded has started, else what `up` runs. A short command ahead of this one is waited for."""
    deadline = time.monotonic() + BUSY_PATIENCE_S
    while True:
        try:
            embedded.start()
            return None
        except DataDirectoryBusy:
            if not attach:
                raise
            running = published(embedded.data_dir)
            if running or time.monotonic() > deadline:
                if running is None:
                    raise
                return running
            time.sleep(BUSY_POLL_S)


def publish(embedded: EmbeddedServers) -> Path:
    """Let other commands attach. The caller holds the directory, and removes the file before letting go of it."""
    path = embedded.data_dir / SERVERS_FILE
    unfinished = path.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    content = {"pid": os.getpid(), "redis_url": embedded.redis_url, "postgres_url": embedded.postgres_url}
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(orjson.dumps(content))
    unfinished.replace(path)
    return path


def published(data_dir: Path) -> Servers | None:
    """What the process that holds the directory published; None if it did not. Call it when the lock is held."""
    try:
        holder = int((data_dir / "lock").read_text())
        content = orjson.loads((data_dir / SERVERS_FILE).read_bytes())
        if content["pid"] != holder:
            return None  # of an earlier one that was killed
        return Servers(content["redis_url"], content["postgres_url"], Origin.ATTACHED)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def wait_until_open(servers: Servers, persister: PersisterProcess | None, stop: threading.Event | None = None) -> None:
    """Until the shard takes payments, or stop is set. Raises Unavailable, and Fatal if the persister cannot open it.

    Our own servers may have a long tail to drain first, so they are waited for as long as the persister works.
    """
    deadline = time.monotonic() + OPEN_TIMEOUT_S
    while not (stop and stop.is_set()):
        with suppress(Unavailable):
            if _state(servers.redis_url).is_open:
                return
        if persister:
            persister.check_start()
        if time.monotonic() > deadline and servers.origin is not Origin.STARTED:
            raise ShardNotOpen(f"no persister opened the shard within {OPEN_TIMEOUT_S:.0f} s")
        time.sleep(POLL_S)


def check_reachable(redis_url: str, postgres_url: str) -> None:
    """Raises Unavailable, InvalidRequest for a URL that is none, ServerRefused."""
    check_redis_url(redis_url, "--redis-url")
    check_postgres_url(postgres_url, "--postgres-url")
    try:
        with RedisShard(redis_url, SHARD) as shard:
            shard.check_server()
    except RedisAway as error:
        raise Unavailable(f"Redis at {redact_url(redis_url)} cannot be reached: {error}") from error
    except ValueError:
        raise InvalidRequest("--redis-url", REDIS_URL, HIDDEN) from None
    try:
        connect(postgres_url).close()
    except psycopg.OperationalError as error:
        message = redact_url(str(error).strip())
        raise Unavailable(f"Postgres at {redact_url(postgres_url)} cannot be reached: {message}") from error
    except psycopg.ProgrammingError:
        raise InvalidRequest("--postgres-url", POSTGRES_URL, HIDDEN) from None


def _state(redis_url: str) -> ShardState:
    try:
        with RedisShard(redis_url, SHARD) as shard:
            return shard.state()
    except LibraryMissing as error:
        raise ShardNotOpen("the server has no function library yet") from error
    except RedisAway as error:
        raise Unavailable(f"Redis cannot be reached: {error}") from error
