"""What each durability level survives on the servers at hand, in words, from what those servers really do.

A setting that may not be read is taken for its weaker value.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple

import structlog

from engine.domain.durability import Durability
from engine.errors import Unavailable
from engine.loop import end
from engine.servers import RedisServer


class PostgresSettings(NamedTuple):
    """As a new session has them; the persister's own turns synchronous_commit on where it is off.

    standbys: synchronous_standby_names, '' for none.
    """

    fsync: bool
    synchronous_commit: str
    full_page_writes: bool
    standbys: str


class Guarantee(NamedTuple):
    """accepted, replicated, persisted: what an outcome of that level survives. default: the engine's level; replicas:
    how many a replicated outcome is on. warnings: what makes a level less than its name promises, and the remedy.
    redis, postgres: what was read; postgres is None without a postgres_url, or while Postgres is away."""

    accepted: str
    replicated: str
    persisted: str
    default: Durability
    replicas: int
    warnings: tuple[str, ...]
    redis: RedisServer
    postgres: PostgresSettings | None


def guarantee_of(
    redis: RedisServer, postgres: PostgresSettings | None, default: Durability, replicas: int
) -> Guarantee:
    """See Guarantee."""
    warnings = (*_about_the_disk(redis), *_about_replicas(redis, default, replicas), *_about_postgres(postgres))
    return Guarantee(
        f"{redis.accepted_survives}; not the loss of its machine",
        _replicated(redis, replicas),
        _persisted(postgres),
        default,
        replicas,
        warnings,
        redis,
        postgres,
    )


def _replicated(redis: RedisServer, replicas: int) -> str:
    if not replicas:
        own = "a power loss: it is on the server's disk" if redis.append_only else "nothing: it is in memory only"
        return f"{own}; no replica is waited for"
    others = "the disk of 1 replica" if replicas == 1 else f"the disks of {replicas} replicas"
    return f"the loss of the server's machine: it is on {'its disk and ' if redis.append_only else ''}{others}"


def _persisted(postgres: PostgresSettings | None) -> str:
    if postgres is None:
        return "the loss of every Redis; how safe Postgres is, is not known here"
    if not postgres.fsync:
        return "the loss of every Redis, but no power loss of Postgres' machine"
    if postgres.standbys and postgres.synchronous_commit not in ("off", "local"):
        return "the loss of every Redis, and of Postgres' machine: its standbys have it too"
    return "the loss of every Redis, and a power loss of Postgres' machine; not the loss of that machine"


def _about_the_disk(redis: RedisServer) -> Iterator[str]:
    if not redis.append_only:
        yield "accepted is in the server's memory only: set appendonly yes and appendfsync always"
    elif redis.appendfsync is None:
        yield "appendfsync may not be read (CONFIG GET): accepted is taken for less than a disk write"
    elif redis.appendfsync != "always":
        lost = "the last second or two" if redis.appendfsync == "everysec" else "what the system had not written yet"
        yield f"appendfsync is {redis.appendfsync}, so a power loss takes {lost} of what was accepted: set it to always"
    elif redis.no_fsync_on_rewrite is not False:
        yield "accepted is not synced while the append-only file is rewritten: set no-appendfsync-on-rewrite to no"


def _about_replicas(redis: RedisServer, default: Durability, replicas: int) -> Iterator[str]:
    if redis.replicas and not redis.min_replicas:
        why = "may not be read" if redis.min_replicas is None else "is 0"
        yield (
            f"accepted does not survive a split brain: there are replicas, and min-replicas-to-write {why}, so a "
            "primary that was cut off goes on accepting what is lost when a replica is promoted: set it to 1 or more"
        )
    if default is Durability.REPLICATED and redis.replicas < replicas:
        yield f"replicas that are connected: {redis.replicas}; that replicated waits for: {replicas}"


def _about_postgres(postgres: PostgresSettings | None) -> Iterator[str]:
    if postgres is None:
        return
    if not postgres.fsync:
        yield "Postgres' fsync is off: a power loss of its machine loses or damages what is persisted"
    if not postgres.full_page_writes:
        yield "Postgres' full_page_writes is off: a power loss may leave torn pages of what is persisted"


class GuaranteeWatch:
    """What holds on the servers at hand, read again behind each new connection. Belongs to one event loop.

    ask_postgres: reads its settings, raises Unavailable; None without a ledger to ask.
    """

    def __init__(
        self,
        redis: RedisServer,
        ask_postgres: Callable[[], Awaitable[PostgresSettings]] | None,
        postgres: PostgresSettings | None,
        default: Durability,
        replicas: int,
    ) -> None:
        """redis, postgres: as they were just read."""
        self._ask_postgres = ask_postgres
        self._default = default
        self._replicas = replicas
        self._asking: asyncio.Task[None] | None = None
        self.current = guarantee_of(redis, postgres, default, replicas)
        self._log()

    def met(self, redis: RedisServer) -> None:
        """A server was connected to, perhaps another one."""
        self._renew(redis, self.current.postgres)
        if self._ask_postgres is not None and (self._asking is None or self._asking.done()):
            self._asking = asyncio.get_running_loop().create_task(self._read_postgres(self._ask_postgres))

    async def close(self) -> None:
        await end(self._asking)

    async def _read_postgres(self, ask: Callable[[], Awaitable[PostgresSettings]]) -> None:
        try:
            postgres = await ask()
        except Unavailable:
            return  # what was read last stands
        self._renew(self.current.redis, postgres)

    def _renew(self, redis: RedisServer, postgres: PostgresSettings | None) -> None:
        before = self.current
        self.current = guarantee_of(redis, postgres, self._default, self._replicas)
        if self.current != before:
            self._log()

    def _log(self) -> None:
        now = self.current
        log = structlog.get_logger()
        log.info("engine.guarantee", accepted=now.accepted, replicated=now.replicated, persisted=now.persisted)
        for warning in now.warnings:
            log.warning("engine.guarantee_is_weaker", warning=warning)
