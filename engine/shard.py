"""One shard's functions on one server: the calls, and what their errors mean."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from engine.batcher import NoReply, NotApplied
from engine.errors import CorruptRecord, Fatal, LibraryMismatch, ServerRefused, ShardNotOpen, Unavailable
from engine.keys import ShardKeys
from engine.library import ensure_library
from engine.wire import META, REPLY_HEADER, WIRE_VERSION

SOCKET_TIMEOUT_S = 5.0


class ShardState(NamedTuple):
    """What hotledger_state answers. meta: the META record's fields, None on an empty server."""

    is_open: bool
    meta: dict[str, Any] | None
    journal_sequence: int
    replication_id: str
    idempotency_records: int


def connect_redis(url: str, *, connections: int = 8) -> Redis:
    """A client that never retries by itself: whether a lost reply may be asked again is decided here."""
    return Redis.from_url(
        url,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=SOCKET_TIMEOUT_S,
        max_connections=connections,
    )


def unpack_state(reply: Sequence[Any]) -> ShardState:
    is_open, meta, journal_sequence, replication_id, records = reply
    return ShardState(
        is_open == 1,
        META.unpack(meta) if meta else None,
        int(journal_sequence),
        replication_id.decode(),
        int(records),
    )


def meaning_of(error: Exception) -> Exception:
    """A server's error as NotApplied (send again), NoReply (in doubt), or a Fatal that says what is wrong."""
    if isinstance(error, BusyLoadingError | ReadOnlyError | OutOfMemoryError):
        return NotApplied(Unavailable(f"the server refused the batch: {error}"))
    if isinstance(error, AuthenticationError | NoPermissionError):
        return ServerRefused(f"the server's access rules refuse this user: {error}")
    if isinstance(error, RedisConnectionError | RedisTimeoutError | OSError):
        return NoReply()
    word = str(error).split(" ", 1)[0]
    if word in ("CORRUPT", "WRONGTYPE"):
        return CorruptRecord(str(error))
    if word in ("WIRE", "INVALID"):
        return LibraryMismatch(f"the server's library does not take this engine's requests: {error}")
    if word == "CLOSED":
        return ShardNotOpen("the shard waits for its persister to check its history")
    if word in ("MISCONF", "MASTERDOWN", "NOREPLICAS", "BUSY", "CLUSTERDOWN", "TRYAGAIN"):
        return NotApplied(Unavailable(f"the server refused the batch: {error}"))
    return Fatal(f"the server answered with an unknown error: {error}")


class Shard:
    """The functions of one shard, over a redis client that this object does not own."""

    def __init__(self, redis: Redis, shard: int) -> None:
        self.keys = ShardKeys(shard)
        self._redis = redis

    async def post(self, records: bytes, details: bytes, not_after_ms: int) -> bytes:
        """The Transport of a Batcher; see lua/functions/post.lua."""
        try:
            reply: bytes = await self._redis.execute_command(
                "FCALL", "hotledger_post", 1, self.keys.tag, WIRE_VERSION, records, details, not_after_ms
            )
        except RedisError as error:
            if _function_is_missing(error):
                await self._reload()
                raise NotApplied(ShardNotOpen("the server had lost its function library; it is loaded again")) from None
            raise meaning_of(error) from error
        except OSError as error:
            raise NoReply from error
        return reply

    async def state(self) -> ShardState:
        return unpack_state(await self._read("hotledger_state"))

    async def wallets(self, wallet_ids: Sequence[int]) -> list[bytes]:
        """The packed WALLET of each id, b'' for none; at most MAX_BATCH ids. Raises Unavailable."""
        packed: list[bytes] = await self._read("hotledger_wallets", struct.pack(f"<{len(wallet_ids)}q", *wallet_ids))
        return packed[1:]

    async def lookup(self, transfer_id: bytes) -> tuple[int, bytes]:
        """(the server's time in ms, the packed IDEMPOTENCY record or b''). Raises Unavailable."""
        header, record = await self._read("hotledger_lookup", transfer_id)
        return int(REPLY_HEADER.struct.unpack(header)[0]), record

    async def _read(self, function: str, *args: bytes) -> Any:
        """Call a function that writes nothing. Every failure to reach it is Unavailable: reading again is safe."""
        try:
            return await self._redis.execute_command("FCALL_RO", function, 1, self.keys.tag, *args)
        except (RedisError, OSError) as error:
            if _function_is_missing(error):
                await self._reload()
                raise ShardNotOpen("the server had lost its function library; it is loaded again") from None
            match meaning_of(error):
                case NotApplied() as refused:
                    raise refused.reason from error
                case NoReply():
                    raise Unavailable(f"the server cannot be reached: {error}") from error
                case meant:
                    raise meant from error

    async def _reload(self) -> None:
        structlog.get_logger().warning("library.lost", shard=self.keys.tag.decode())
        try:
            await ensure_library(self._redis)
        except (RedisConnectionError, RedisTimeoutError, ReadOnlyError, BusyLoadingError, OSError):
            return  # the next call finds out


def _function_is_missing(error: Exception) -> bool:
    return isinstance(error, ResponseError) and "Function not found" in str(error)
