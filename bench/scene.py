"""Where every measurement happens: servers of its own, one hot merchant, 10,000 payers with money, and their payments.

Everything is on fresh embedded servers in a temporary directory, with the settings that `hotledger up` has.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, NamedTuple, Self

import redis

from engine import Engine, Kind, OpenWallet, Outcome, Transfer
from engine.domain.ids import key_fingerprint
from engine.wire import ZERO_HASH
from gateway.embedded import EmbeddedServers
from gateway.output import note
from persister.journal import Place
from persister.redis_shard import RedisShard

SHARD = 0
CURRENCY = "USD"
PAYERS = 10_000
MERCHANT = PAYERS + 1
FUNDS_MINOR = 1_000_000_000
AMOUNT_MINOR = 100
MAX_BACKLOG = MAX_OUTCOMES = 100_000_000
"""No measurement but that of the persister itself shall be refused for want of one."""

DEPLOYMENT = b"hotledger bench!"
_POLL_S = 0.02


class Pairs(Enum):
    """Who pays whom: any payer the one merchant, or any payer any other."""

    HOT = "hot"
    RANDOM = "random"


@contextmanager
def fresh_servers(directory: Path | None, *, postgres: bool = True) -> Iterator[EmbeddedServers]:
    """Empty servers in a temporary directory under `directory` (None: the system's). postgres: whether to keep it."""
    with (
        TemporaryDirectory(prefix="hotledger-bench-", dir=directory) as name,
        EmbeddedServers(Path(name) / "data") as servers,
    ):
        if not postgres:
            servers.stop_postgres()
        yield servers


def empty(redis_url: str) -> None:
    """Remove all data, from the append-only file too: else its rewriting falls into a later measurement."""
    with redis.Redis.from_url(redis_url) as client:
        client.execute_command("FLUSHALL", "SYNC")
        client.bgrewriteaof()
        wait_for_rewrite(client)


def begin_shard(redis_url: str) -> None:
    """An open shard without a persister, on an emptied server."""
    empty(redis_url)
    with RedisShard(redis_url, SHARD) as shard:
        shard.load_library()
        shard.initialise(DEPLOYMENT, key_fingerprint(DEPLOYMENT), epoch=1)
        shard.open_fence(
            Place(epoch=1, sequence=0, hash=ZERO_HASH), shard.state().replication_id, MAX_BACKLOG, MAX_OUTCOMES
        )


def wait_for_rewrite(client: redis.Redis) -> None:
    """Until no rewrite of the append-only file takes processor and disk."""
    while _is_rewriting(client.info("persistence")):
        time.sleep(_POLL_S)


def _is_rewriting(info: Any) -> bool:
    return bool(info["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"])


@asynccontextmanager
async def funded_engine(redis_url: str) -> AsyncIterator[Engine]:
    """An engine on an open shard, with the merchant and the payers opened and funded through the public API."""
    async with Engine.connect(redis_url, timeout_ms=60_000) as engine:
        wallets = [OpenWallet(wallet, owner_id=wallet, currency=CURRENCY) for wallet in range(1, MERCHANT + 1)]
        check(await engine.open_wallets(wallets))
        outside = engine.external_wallet(CURRENCY)
        top_ups = [
            Transfer(outside, payer, FUNDS_MINOR, key=f"funds:{payer}", kind=Kind.TOP_UP)
            for payer in range(1, PAYERS + 1)
        ]
        check(await engine.post(top_ups))
        yield engine


def payments(count: int, pairs: Pairs, name: str) -> list[Transfer]:
    """count payments with text keys that begin with `name`."""
    return [
        Transfer(*pair, AMOUNT_MINOR, key=f"{name}:{number}") for number, pair in enumerate(some_pairs(count, pairs))
    ]


def some_pairs(count: int, pairs: Pairs) -> list[tuple[int, int]]:
    """count of (debit, credit), drawn at random."""
    draw = random.randrange
    if pairs is Pairs.HOT:
        return [(draw(1, PAYERS + 1), MERCHANT) for _ in range(count)]
    return [_two_payers() for _ in range(count)]


def _two_payers() -> tuple[int, int]:
    debit, step = random.randrange(PAYERS), random.randrange(1, PAYERS)
    return debit + 1, (debit + step) % PAYERS + 1


def in_batches(transfers: Sequence[Transfer], size: int) -> Iterator[Sequence[Transfer]]:
    return (transfers[start : start + size] for start in range(0, len(transfers), size))


def check(outcomes: Iterable[Outcome]) -> None:
    """A figure made of refusals would be worth nothing. Raises RuntimeError."""
    for outcome in outcomes:
        if not outcome.posted:
            raise RuntimeError(f"the load was refused: {outcome}")


class Usage(NamedTuple):
    """What the load took. seconds: by the wall clock; client_s: of this process's processor time; calls: of `post`;
    server_s: inside them."""

    seconds: float
    client_s: float
    calls: int
    server_s: float


class Meter:
    """Measures what happens in its block, on both sides.

    What was prepared before is put out of the garbage collector's sight: it is the benchmark's, not the engine's.
    """

    def __init__(self, redis_url: str) -> None:
        self._redis = redis.Redis.from_url(redis_url)
        self._usage: Usage | None = None

    def __enter__(self) -> Self:
        gc.collect()
        gc.freeze()
        self._redis.config_resetstat()
        self._client_s, self._began_s = time.process_time(), time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        seconds, client_s = time.perf_counter() - self._began_s, time.process_time() - self._client_s
        info: Any = self._redis.info("commandstats")
        self._redis.close()
        gc.unfreeze()
        calls = info.get("cmdstat_fcall", {"calls": 0, "usec": 0})
        self._usage = Usage(seconds, client_s, calls["calls"], calls["usec"] / 1e6)

    @property
    def usage(self) -> Usage:
        """Of the block, once it has ended."""
        if self._usage is None:
            raise RuntimeError("the block has not ended")
        return self._usage


def progress(text: str) -> None:
    """A line on stderr."""
    note(f"bench: {text}")
