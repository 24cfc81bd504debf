"""One shard's functions on one server: the calls, and what their errors mean."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ExecAbortError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from engine.batcher import NoReply, NotApplied
from engine.errors import (
    CorruptRecord,
    Fatal,
    HistoryMismatch,
    LibraryMismatch,
    ServerRefused,
    ShardNotOpen,
    Unavailable,
)
from engine.keys import ShardKeys
from engine.library import ensure_library
from engine.link import Link, LinkLost, ReplyError
from engine.servers import RedisServer, check_redis_server
from engine.urls import check_redis_url
from engine.wire import META, REPLY_HEADER, WIRE_VERSION

SOCKET_TIMEOUT_S = 5.0


class Confirmed(NamedTuple):
    """What hotledger_confirm answers. persisted: the sequence that the ledger has reached, as the server knows it;
    held: of each item, whether the server has exactly that answer under that id."""

    persisted: int
    held: list[bool]


class ShardState(NamedTuple):
    """What hotledger_state answers. meta: the META record's fields, None on an empty server. loading: whether a load
    is under way, or was cut short. max_backlog, max_outcomes: of the open fence, 0 if it is closed."""

    is_open: bool
    meta: dict[str, Any] | None
    journal_sequence: int
    replication_id: str
    idempotency_records: int
    loading: bool = False
    max_backlog: int = 0
    max_outcomes: int = 0


def connect_redis(url: str, *, connections: int = 8) -> Redis:
    """A client that never retries by itself: whether a lost reply may be asked again is decided here.

    connections: more calls at once wait for one.
    """
    pool = BlockingConnectionPool.from_url(
        check_redis_url(url),
        retry=Retry(NoBackoff(), 0),
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=SOCKET_TIMEOUT_S,
        max_connections=connections,
        protocol=2,  # no push messages: engine/link.py takes every reply for an answer
    )
    return Redis.from_pool(pool)


def check_access(missing: Sequence[bytes]) -> None:
    """missing: what hotledger_access answers. Raises ServerRefused: post could stop between its writes."""
    if missing:
        names = ", ".join(sorted({name.decode() for name in missing}))
        raise ServerRefused(f"the Redis user may not {names}: post needs that; `hotledger acl` prints the rules")


def unpack_state(reply: Sequence[Any]) -> ShardState:
    is_open, meta, journal_sequence, replication_id, records, loading, max_backlog, max_outcomes = reply
    return ShardState(
        is_open == 1,
        META.unpack(meta) if meta else None,
        int(journal_sequence),
        replication_id.decode(),
        int(records),
        loading == 1,
        int(max_backlog),
        int(max_outcomes),
    )


def unpack_confirmed(reply: Sequence[Any]) -> Confirmed:
    persisted, flags = reply
    return Confirmed(int(persisted), [flag == _HELD for flag in flags])


_HELD = ord("1")

_WORD_OF: dict[type[Exception], str] = {
    BusyLoadingError: "LOADING",
    ReadOnlyError: "READONLY",
    OutOfMemoryError: "OOM",
    AuthenticationError: "NOAUTH",
    NoPermissionError: "NOPERM",
    ClusterDownError: "CLUSTERDOWN",
    MasterDownError: "MASTERDOWN",
    TryAgainError: "TRYAGAIN",
    ExecAbortError: "EXECABORT",
}
"""The first words that redis-py takes off an error reply when it has a class of its own for it."""

_TRY_AGAIN = frozenset(
    (
        "LOADING",
        "READONLY",
        "OOM",
        "MISCONF",
        "MASTERDOWN",
        "NOREPLICAS",
        "BUSY",
        "CLUSTERDOWN",
        "TRYAGAIN",
        "EXECABORT",
    )
)
"""First words of replies that refuse a call before it ran."""


def meaning_of(error: Exception) -> Exception:
    """A failed call as NotApplied (send again), NoReply (in doubt), or a Fatal that says what is wrong."""
    if isinstance(error, RedisConnectionError | RedisTimeoutError | OSError | LinkLost) and type(error) not in _WORD_OF:
        return NoReply()
    text = str(error)
    word = _WORD_OF.get(type(error)) or text.split(" ", 1)[0]
    if word in _TRY_AGAIN:
        return NotApplied(Unavailable(f"the server refused the call: {text}"))
    if word == "CLOSED":
        return NotApplied(ShardNotOpen("the shard waits for its persister to check its history"))
    if word in ("CORRUPT", "WRONGTYPE"):
        return CorruptRecord(text)
    if word == "FOREIGN":
        return HistoryMismatch(f"this is not the server that the engine connected to: {text}")
    if word in ("WIRE", "INVALID"):
        return LibraryMismatch(f"the server's library does not take this engine's requests: {text}")
    if word in ("NOAUTH", "NOPERM", "WRONGPASS") or "ACL failure" in text:
        return ServerRefused(f"the server's access rules refuse this user: {text}")
    return Fatal(f"the server answered with an unknown error: {text}")


class Shard:
    """The functions of one shard, over a redis client that this object does not own. Made inside an event loop."""

    def __init__(self, redis: Redis, shard: int) -> None:
        self.keys = ShardKeys(shard)
        self._redis = redis
        self._loop = asyncio.get_running_loop()
        self._link: Link | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._may_load = True
        self._deployment = b""

    async def connect(self, deployment: bytes, met: Callable[[RedisServer], None] | None = None) -> None:
        """Make the link that post uses. deployment: the 16-byte id that the server's shard must have.

        met: called with the server behind each new link, once it passed the checks.
        """
        self._deployment = deployment

        async def meet() -> None:
            with errors_translated():
                server = await check_redis_server(self._redis)
            if met is not None:
                met(server)

        head = (b"FCALL", b"hotledger_post", b"1", self.keys.tag, b"%d" % WIRE_VERSION, deployment)
        prefix = b"*%d\r\n" % (len(head) + 4) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in head)
        self._link = Link(self._redis, prefix, SOCKET_TIMEOUT_S, meet)
        await self._link.connected()

    async def close(self) -> None:
        if self._link is not None:
            await self._link.close()
        if self._reloading is not None:
            self._reloading.cancel()
            await asyncio.wait([self._reloading])

    def post(self, records: bytes, details: bytes, attachments: bytes, not_after_ms: int) -> asyncio.Future[bytes]:
        """The Transport of a Batcher, once connected; see lua/functions/post.lua."""
        assert self._link is not None
        answer: asyncio.Future[bytes] = self._loop.create_future()
        try:
            reply = self._link.call(records, details, b"%d" % not_after_ms, attachments)
        except Unavailable as error:
            answer.set_exception(NotApplied(error))
            return answer
        except Fatal as error:
            answer.set_exception(error)
            return answer

        def translate(done: asyncio.Future[bytes]) -> None:
            error = done.exception()
            if error is None:
                answer.set_result(done.result())
            elif _function_is_missing(error):
                self._reload_soon()
                answer.set_exception(NotApplied(ShardNotOpen("the server had lost its function library")))
            else:
                answer.set_exception(meaning_of(error) if isinstance(error, Exception) else error)

        reply.add_done_callback(translate)
        return answer

    async def state(self) -> ShardState:
        return unpack_state(await self._read("hotledger_state"))

    async def wallets(self, wallet_ids: Sequence[int]) -> list[bytes]:
        """The packed WALLET of each id, b'' for none; at most MAX_BATCH ids. Raises Unavailable."""
        packed: list[bytes] = await self._read("hotledger_wallets", struct.pack(f"<{len(wallet_ids)}q", *wallet_ids))
        return packed[1:]

    async def holds(self, hold_ids: Sequence[bytes]) -> list[bytes]:
        """The packed HOLD of each 16-byte id, b'' for none; at most MAX_BATCH ids. Raises Unavailable."""
        packed: list[bytes] = await self._read("hotledger_holds", b"".join(hold_ids))
        return packed[1:]

    async def tier(self, number: int) -> bytes:
        """The packed TIER_LIMITS of a tier, b'' for none. Raises Unavailable."""
        packed: bytes = await self._read("hotledger_tier", b"%d" % number)
        return packed

    async def lookup(self, transfer_id: bytes) -> tuple[int, bytes]:
        """(the server's time in ms, the packed IDEMPOTENCY record or b''). Raises Unavailable."""
        header, record = await self._read("hotledger_lookup", transfer_id)
        return int(REPLY_HEADER.struct.unpack(header)[0]), record

    def confirmation(self, items: bytes, *, write: bool) -> tuple[bytes | int, ...]:
        """The command that asks for packed CONFIRMATIONs; see lua/functions/confirm.lua."""
        return (b"FCALL", b"hotledger_confirm", 1, self.keys.tag, self._deployment, items, int(write))

    async def confirm(self, items: bytes) -> Confirmed:
        """Whether the server has what packed CONFIRMATIONs say, at most MAX_BATCH. Raises Unavailable."""
        return unpack_confirmed(await self._call(*self.confirmation(items, write=False)))

    def own_connection(self) -> AbstractConnection:
        """One that is not of the pool, for who cares which connection wrote what; not connected yet."""
        connection: AbstractConnection = self._redis.connection_pool.make_connection()
        return connection

    def subscriber(self) -> PubSub:
        """For messages; it takes a connection of the pool when it subscribes."""
        return self._redis.pubsub()

    async def prepare(self) -> RedisServer:
        """Judge the server and load the library if need be. Raises ServerRefused, LibraryMismatch, Unavailable."""
        with errors_translated():
            server = await check_redis_server(self._redis)
            await ensure_library(self._redis)
        check_access(await self._read("hotledger_access"))
        return server

    async def time_ms(self) -> float:
        with errors_translated():
            seconds, microseconds = await self._redis.time()
            return float(seconds * 1000 + microseconds / 1000)

    async def _read(self, function: str, *args: bytes) -> Any:
        """Call a function that writes nothing. Raises as _call."""
        return await self._call("FCALL_RO", function, 1, self.keys.tag, *args)

    async def _call(self, *command: Any) -> Any:
        """For what may simply be called again: every failure to reach it is Unavailable."""
        with errors_translated():
            try:
                return await self._redis.execute_command(*command)
            except ResponseError as error:
                if not _function_is_missing(error):
                    raise
            await self._reload()
            raise ShardNotOpen("the server had lost its function library; it is loaded again")

    def _reload_soon(self) -> None:
        if self._reloading is None or self._reloading.done():
            self._reloading = self._loop.create_task(self._reload())

    async def _reload(self) -> None:
        if not self._may_load:
            return
        structlog.get_logger().warning("library.lost", shard=self.keys.tag.decode())
        try:
            await ensure_library(self._redis)
        except ShardNotOpen as error:
            self._may_load = False
            structlog.get_logger().warning("library.left_to_persisters", reason=str(error))
        except (RedisError, OSError, LibraryMismatch) as error:
            structlog.get_logger().error("library.not_loaded", error=str(error))  # the next call tries again


@contextmanager
def errors_translated() -> Iterator[None]:
    """For calls that may simply be made again: what is no one's fault becomes Unavailable."""
    try:
        yield
    except (RedisError, OSError) as error:
        meant = meaning_of(error)
        if isinstance(meant, NotApplied):
            raise meant.reason from error
        if isinstance(meant, NoReply):
            raise Unavailable(f"the server cannot be reached: {error}") from error
        raise meant from error


def _function_is_missing(error: BaseException) -> bool:
    return isinstance(error, ResponseError | ReplyError) and "Function not found" in str(error)
