"""The persister's side of one shard in Redis: its functions, its journal, and what the server's errors mean.

One connection that never comes back once it is lost. WAITAOF speaks only of its own connection's writes; and what
was read over one connection is known durable only if the same server process answers that, so a client that
silently connects again, perhaps to a server that restarted and forgot, would defeat it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import redis
import redis.asyncio
from numpy.typing import NDArray
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, ReadOnlyError, ResponseError
from redis.retry import Retry

from engine.domain.status import STATUS_OF, Status
from engine.errors import CorruptRecord, Fatal, ServerRefused, ShardNotOpen
from engine.keys import ShardKeys
from engine.library import ensure_library
from engine.servers import CONFIG_NAMES, RedisServer, check_redis
from engine.shard import ShardState, check_access, unpack_state
from engine.urls import check_redis_url
from engine.wire import ANSWER, DECLINED_FIELD, META, REPLY_HEADER, WIRE_VERSION
from persister.journal import Place, RawEntry

SOCKET_TIMEOUT_S = 5.0
WAITAOF_TIMEOUT_MS = 3000
POST_TIMEOUT_MS = 5000

_HOLDS_AT_ONCE = _KEYS_AT_ONCE = 1000
_SCANNED_AT_ONCE = 5000

_T = TypeVar("_T")


class RedisAway(Exception):
    """The server cannot be reached, or refuses for now: back off and connect again."""


class LibraryMissing(Exception):
    """The server has no function library: load it, and open the shard again."""


class Moved(Exception):
    """The shard is not at the place that was compared with the ledger: compare again."""


class RedisShard:
    """One shard on one server. Methods raise RedisAway, LibraryMissing, or a Fatal that says what is wrong.

    After RedisAway the object is of no more use.
    """

    def __init__(self, url: str, shard: int) -> None:
        """url: redis://, rediss:// or unix://."""
        self._url = check_redis_url(url)
        self._keys = ShardKeys(shard)
        self._unanswered = 0
        self._redis = self._call(
            lambda: redis.Redis.from_url(
                url,
                single_connection_client=True,
                protocol=2,
                retry=Retry(NoBackoff(), 0),
                socket_timeout=SOCKET_TIMEOUT_S,
                socket_connect_timeout=SOCKET_TIMEOUT_S,
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._redis.close()

    def check_server(self) -> RedisServer:
        """The server's version and settings, judged. Raises ServerRefused besides."""
        info = self._call(self._redis.info)
        try:
            config: Any = self._redis.config_get(*CONFIG_NAMES)
        except ResponseError:  # some hosts rename or forbid CONFIG
            config = None
        except (redis.RedisError, OSError) as error:
            raise _meaning_of(error) from error
        return check_redis(info, config)

    def load_library(self) -> bool:
        """Load the function library unless the server has it. True if it was loaded now; LibraryMismatch if it
        has one that this program cannot use."""

        async def load() -> bool:
            client = redis.asyncio.Redis.from_url(self._url, socket_timeout=SOCKET_TIMEOUT_S)
            try:
                return await ensure_library(client)
            finally:
                await client.aclose()

        return self._call(lambda: asyncio.run(load()))

    def state(self) -> ShardState:
        return unpack_state(self._read("hotledger_state"))

    def initialise(self, deployment: bytes, key_fingerprint: bytes, epoch: int) -> None:
        """Make an empty shard. Raises Moved if it is not empty (any more)."""
        self._function("hotledger_initialise", deployment, key_fingerprint, epoch)

    def open_fence(self, place: Place, replication_id: str, max_backlog: int, max_outcomes: int) -> None:
        """Let payments in, if the shard is exactly at place, in the server process of this replication id.

        max_backlog, max_outcomes: records that the ledger may lack, and that one idempotency generation may hold.
        Raises Moved if it is not: what was compared with the ledger is not what is there now.
        """
        check_access(self._read("hotledger_access"))
        compared = (place.epoch, place.sequence, place.hash, replication_id.encode())
        self._function("hotledger_open", *compared, max_backlog, max_outcomes)

    def close_fence(self) -> None:
        """Let no payment in until the next open."""
        self._function("hotledger_close")

    def advance(self, epoch: int, persisted: int, trim_before: int) -> None:
        """Tell how far the ledger is; entries that end before trim_before may go. Raises Moved."""
        self._function("hotledger_advance", epoch, persisted, max(trim_before, 0))

    def end_generation(self, epoch: int, generation: int) -> bool:
        """End the idempotency generation; False if it is too early or was done already. Raises Moved."""
        return bool(self._function("hotledger_end_generation", epoch, generation) == 1)

    def server_ms(self) -> int:
        """The server's clock."""
        seconds, microseconds = self._call(self._redis.time)
        return int(seconds) * 1000 + int(microseconds) // 1000

    def due_holds(self, limit: int) -> list[bytes]:
        """The ids of open holds whose time is over by the server's clock, the first due first."""
        due: list[bytes] = self._read("hotledger_due", limit)
        return due

    def post(self, deployment: bytes, requests: Sequence[bytes]) -> list[Status]:
        """Have packed REQUESTs without details and attachments decided, 1 to MAX_BATCH. Raises CorruptRecord, Moved."""
        not_after_ms = self.server_ms() + POST_TIMEOUT_MS
        reply: bytes = self._function(
            "hotledger_post", WIRE_VERSION, deployment, b"".join(requests), b"", not_after_ms, b""
        )
        return [STATUS_OF[answer[0]] for answer in ANSWER.struct.iter_unpack(reply[REPLY_HEADER.size :])]

    def declined(self, after: str, limit: int) -> list[tuple[str, bytes]]:
        """At most limit entries of the side stream of refused movements: (id, packed DECLINEDs)."""
        key = self._keys.declined
        entries: Any = self._call(lambda: self._redis.xrange(key, f"({after}", count=limit))
        return [(entry_id.decode(), fields.get(DECLINED_FIELD, b"")) for entry_id, fields in entries]

    def open_holds(self) -> dict[bytes, bytes]:
        """Every open hold: its id and its packed HOLD. Raises CorruptRecord.

        Whoever is open all along is among them; of those that begin or end meanwhile some are.
        """
        return self._call(lambda: dict(self._redis.hscan_iter(self._keys.holds, count=5000)))

    def tiers(self) -> dict[int, bytes]:
        """Every tier that has limits, with its packed TIER_LIMITS. Raises CorruptRecord."""
        packed: Any = self._call(lambda: self._redis.hgetall(self._keys.tiers))
        return {int.from_bytes(tier, "little"): limits for tier, limits in packed.items()}

    def deadlines(self, hold_ids: Sequence[bytes]) -> Iterator[tuple[bytes, bytes | None, float | None]]:
        """Of each hold, from one moment: its id, its packed HOLD if it is open, when the sweeper will look at it."""
        for start in range(0, len(hold_ids), _HOLDS_AT_ONCE):
            some = hold_ids[start : start + _HOLDS_AT_ONCE]
            with self._redis.pipeline(transaction=True) as pipe:
                pipe.hmget(self._keys.holds, some)
                pipe.execute_command("ZMSCORE", self._keys.due, *some)
                packed, times = self._call(partial(_results, pipe))
            yield from zip(some, packed, (None if at is None else float(at) for at in times), strict=True)

    def stored_wallets(self, wallet_ids: NDArray[np.int64]) -> tuple[int, list[bytes | None]]:
        """What is stored under each wallet's key, None for nothing; and a sequence that the shard had reached then.

        Read as it is, whether the shard is open or not.
        """
        prefix, packed = self._keys.wallet(0)[:-8], wallet_ids.astype("<i8").tobytes()
        keys = [prefix + packed[at : at + 8] for at in range(0, len(packed), 8)]
        with self._redis.pipeline(transaction=False) as pipe:
            for start in range(0, len(keys), _KEYS_AT_ONCE):
                pipe.mget(self._keys.meta, *keys[start : start + _KEYS_AT_ONCE])
            replies = self._call(partial(_results, pipe))
        sequences = [META.unpack(reply[0])["sequence"] for reply in replies if reply[0] is not None]
        return max(sequences, default=0), [stored for reply in replies for stored in reply[1:]]

    def wallet_ids(self) -> NDArray[np.int64]:
        """Every wallet that has a key, whatever is in it, in ascending order; one that a scan met twice, twice."""
        prefix = self._keys.wallet(0)[:-8]
        size = len(prefix) + 8
        found, cursor = [], None
        while cursor != 0:
            reply: Any = self._call(partial(self._redis.scan, cursor or 0, prefix + b"*", _SCANNED_AT_ONCE))
            cursor, keys = reply
            names = np.frombuffer(b"".join(key for key in keys if len(key) == size), f"V{len(prefix)}, <i8")
            found.append(names["f1"])
        return np.sort(np.concatenate(found))

    def read(self, after: int, limit: int) -> list[RawEntry]:
        """The entries after a sequence that end at most `limit` records later; [] if there are none.

        Since an entry's id is its last sequence, the range itself bounds the records, however they are batched.
        """
        key, first, last = self._keys.journal, f"{after + 1}-0", f"{after + limit}-0"
        entries: Any = self._call(lambda: self._redis.xrange(key, first, last))
        return list(entries)

    def read_one(self, after: int, timeout_ms: int | None = None) -> list[RawEntry]:
        """The first entry after a sequence, wherever it ends; [] if none came within timeout_ms (None: at once)."""
        since: Any = {self._keys.journal: f"{after}-0"}
        streams: Any = self._call(lambda: self._redis.xread(since, count=1, block=timeout_ms))
        return list(streams[0][1]) if streams else []

    def wait_until_durable(self) -> bool:
        """True once all that this server did until now is on its disk; False if it takes too long."""
        self._function("hotledger_touch")
        local, _ = self._call(lambda: self._redis.execute_command("WAITAOF", 1, 0, WAITAOF_TIMEOUT_MS))
        return bool(local >= 1)

    # For loads (loading.py), which are worth writing ahead of the answers

    def call(self, function: str, *args: bytes | int | str) -> Any:
        """The answer of a function of the library."""
        return self._function(function, *args)

    def ask(self, function: str, *args: bytes | int | str) -> None:
        """Call a function whose answer is taken later; until then nothing else may be asked over this connection."""
        connection = self._redis.connection
        if connection is None:
            raise RedisAway("the connection is lost")
        self._call(lambda: connection.send_command("FCALL", function, 1, self._keys.tag, *args))
        self._unanswered += 1

    def take_answers(self, leave: int) -> None:
        """Until at most `leave` calls wait for their answers. Raises the first error among them, once all are taken."""
        error: Exception | None = None
        while self._unanswered > (0 if error else leave):
            self._unanswered -= 1
            try:
                self._call(self._redis.connection.read_response)  # type: ignore[union-attr]
            except RedisAway:
                self._unanswered = 0
                raise
            except (LibraryMissing, Moved, Fatal) as found:
                error = error or found
        if error:
            raise error

    def abandon_answers(self) -> None:
        """Take what is still to be answered, whatever it is, so that the connection is of use again."""
        try:
            self.take_answers(leave=0)
        except (RedisAway, LibraryMissing, Moved, Fatal):
            return

    def scan_keys(self, pattern: bytes) -> Iterator[list[bytes]]:
        """The keys that match, in blocks; one may come twice."""
        cursor: int | None = None
        while cursor != 0:
            reply: Any = self._call(partial(self._redis.scan, cursor or 0, pattern, _SCANNED_AT_ONCE))
            cursor, keys = reply
            yield keys

    def stored_strings(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """What is stored under each key, None for nothing; after all that was asked before."""
        self.take_answers(leave=0)
        found: list[bytes | None] = []
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            some: Any = self._call(partial(self._redis.mget, keys[start : start + _KEYS_AT_ONCE]))
            found += some
        return found

    def _function(self, name: str, *args: bytes | int | str) -> Any:
        return self._call(lambda: self._redis.execute_command("FCALL", name, 1, self._keys.tag, *args))

    def _read(self, name: str, *args: bytes | int | str) -> Any:
        """A function that writes nothing: whoever may only read may call no other."""
        return self._call(lambda: self._redis.execute_command("FCALL_RO", name, 1, self._keys.tag, *args))

    def _call(self, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except (redis.RedisError, OSError) as error:
            raise _meaning_of(error) from error


def _results(pipe: Any) -> list[Any]:
    """Of each command; an error as the server worded it, which the client would not leave at the beginning."""
    results: list[Any] = pipe.execute(raise_on_error=False)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def _meaning_of(error: Exception) -> Exception:
    text = str(error)
    if isinstance(error, NoPermissionError) or "ACL failure" in text:
        return ServerRefused(f"the Redis user lacks a permission: {text}")
    word = text.split(" ", 1)[0]
    if not isinstance(error, ResponseError) or isinstance(error, ReadOnlyError):
        return RedisAway(text)
    if "Function not found" in text:
        return LibraryMissing(text)
    if word in ("CHANGED", "EXISTS", "FOREIGN"):
        return Moved(text)
    if word in ("CORRUPT", "WRONGTYPE"):
        return CorruptRecord(text)
    if word == "CLOSED":
        return ShardNotOpen("the shard is not open: no persister has checked its history")
    if word in ("INVALID", "WIRE"):
        return Fatal(f"the library does not understand this program: {text}")
    return RedisAway(text)
