"""`python -m bench ledger`: how fast accepted payments reach the Postgres ledger, and how late.

How to read it. transfers_per_s counts transfers committed to Postgres: each with its event, its two ledger entries,
both balances and its links in both hash chains, in one transaction with the offset. p50_ms and p99_ms are from the
engine's answer to the ledger. Servers, persister and load share one machine.

ceiling_1024          As in `bench engine`: what Valkey alone decides here. ratio_to_ceiling is to it.
persister_alone_*     A stream filled while no persister ran, drained with nothing else running; hot is one merchant,
                      random any wallet to any other.
engine_and_persister  Lists of 1,024 to engine.post as fast as it takes them, with the persister as a process of its
                      own, as `hotledger up` runs it. The engine is faster than the ledger, so the load pauses while
                      more than backlog_limit records wait (paused_share says how much of the time): p50_ms and p99_ms
                      are those of a full backlog. backlog_slope_per_s is over the last third; the backlog counts as
                      not growing below 2 % of the rate.
idle_latency          Single payments on an otherwise idle system, looked for in Postgres until they are there.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import redis
import redis.asyncio

import engine
from bench.engine import DURABILITY as ACCEPTED
from bench.engine import HOT_CEILING, ceiling
from bench.measure import Case, Sample, Target, at_least, percentiles_ms, ratio
from bench.scene import (
    AMOUNT_MINOR,
    MAX_BACKLOG,
    MERCHANT,
    PAYERS,
    SHARD,
    Pairs,
    check,
    fresh_servers,
    funded_engine,
    payments,
    progress,
    wait_for_rewrite,
)
from engine import Engine
from engine.keys import ShardKeys
from engine.wire import MAX_BATCH, META
from gateway.embedded import EmbeddedServers
from gateway.persister_process import PersisterProcess
from persister.connection import connect
from persister.drain import Persister
from persister.migrate import migrate
from persister.queries import transfer as find_transfer

DURABILITY = "persisted, synchronous_commit on, appendfsync always"
CEILING_SECONDS = 2.0
BACKLOG_LIMIT = 32_768
GROWING_SHARE = 0.02
"""Of the ledger's rate: a backlog that grows by less is not growing, it only swings by the size of a transaction."""

_POLL_S = 0.01
_IDLE_PAUSE_S = (0.05, 0.15)
_LOOK_S = 0.0005


class Sizes(NamedTuple):
    """seconds: of engine and persister together. transfers: in the stream that is drained. singles: idle payments."""

    seconds: float
    rounds: int
    transfers: int
    singles: int = 200


QUICK = Sizes(seconds=1, rounds=1, transfers=10_240, singles=5)


def cases(sizes: Sizes, directory: Path | None) -> Iterator[Case]:
    """Measure and yield one case after the other, each on servers of its own."""
    progress("ceiling")
    with fresh_servers(directory, postgres=False) as servers:
        top = ceiling(servers.redis_url, min(CEILING_SECONDS, sizes.seconds), size=MAX_BATCH, pairs=Pairs.HOT)
    yield Case.of(HOT_CEILING, ACCEPTED, [top], ratio_to_ceiling=1.0)
    for pairs in Pairs:
        yield _persister_alone(pairs, sizes, top, directory)
    progress(f"engine and persister together, {sizes.seconds:.0f} s")
    yield _together(sizes.seconds, top, directory)
    progress(f"{sizes.singles} payments on an idle system")
    yield _idle(sizes.singles, directory)


# The persister alone


def _persister_alone(pairs: Pairs, sizes: Sizes, top: Sample, directory: Path | None) -> Case:
    samples = []
    for number in range(sizes.rounds):
        progress(f"persister alone, {pairs.value} pairs, round {number + 1} of {sizes.rounds}")
        samples.append(_drain_full_stream(pairs, sizes.transfers, directory))
    rates = [sample.transfers_per_s for sample in samples]
    case = Case.of(
        f"persister_alone_{pairs.value}",
        DURABILITY,
        samples,
        ratio_to_ceiling=ratio(rates, [top.transfers_per_s] * len(rates)),
        details={"transfers": sizes.transfers},
    )
    return case.judged(Target("transfers_per_s >= 50,000", lambda it: at_least(it.transfers_per_s, 50_000)))


def _drain_full_stream(pairs: Pairs, transfers: int, directory: Path | None) -> Sample:
    with fresh_servers(directory) as servers:
        migrate(servers.postgres_url)
        _drain(servers)  # opens the shard
        engine.run(_fill(servers, transfers, pairs))
        with redis.Redis.from_url(servers.redis_url) as client:
            wait_for_rewrite(client)
        began_s = time.perf_counter()
        _drain(servers)
        seconds = time.perf_counter() - began_s
        _check_transfers(servers, transfers + PAYERS)
    return Sample(transfers / seconds, batch=transfers / ceil(transfers / MAX_BATCH))


def _drain(servers: EmbeddedServers) -> None:
    Persister(servers.redis_url, servers.postgres_url, SHARD, max_backlog=MAX_BACKLOG).drain()


async def _fill(servers: EmbeddedServers, transfers: int, pairs: Pairs) -> None:
    """Fund the wallets, see that into the ledger, then leave `transfers` payments in the stream."""
    async with funded_engine(servers.redis_url) as paying:
        await asyncio.to_thread(_drain, servers)
        for start in range(0, transfers, MAX_BATCH):
            size = min(MAX_BATCH, transfers - start)
            check(await paying.post(payments(size, pairs, f"pay:{start}")))


def _check_transfers(servers: EmbeddedServers, expected: int) -> None:
    """A rate of transfers that are not all there would be worth nothing. Raises RuntimeError."""
    with connect(servers.postgres_url) as connection:
        row = connection.execute("SELECT count(*) FROM transfer").fetchone()
    if row is None or row[0] != expected:
        raise RuntimeError(f"the ledger has {row and row[0]} transfers, {expected} were accepted")


# Engine and persister together


class Look(NamedTuple):
    """The shard at one moment: the journal's last sequence, and how much of it the ledger has."""

    at_s: float
    sequence: int
    persisted: int

    @property
    def backlog(self) -> int:
        return self.sequence - self.persisted


class Watch:
    """Looks at the shard every 10 ms, and says when the load may go on.

    persisted is advanced just after the commit, so a lag is overstated by that and by a look's distance.
    """

    def __init__(self, client: redis.asyncio.Redis, persister: PersisterProcess) -> None:
        self._client = client
        self._persister = persister
        self._unpersisted: deque[tuple[int, float]] = deque()
        self.may_pay = asyncio.Event()
        self.looks: list[Look] = []
        self.lags_s: list[float] = []

    async def keep_looking(self) -> None:
        """Until cancelled. Raises Fatal if the persister stopped for good."""
        while True:
            self._see(await self.look())
            self._persister.check()
            await asyncio.sleep(_POLL_S)

    async def look(self) -> Look:
        packed: Any = await self._client.get(ShardKeys(SHARD).meta)
        meta = META.unpack(packed)
        return Look(time.perf_counter(), meta["sequence"], meta["persisted"])

    def accepted(self, sequence: int) -> None:
        """The engine has just answered for the records up to here."""
        self._unpersisted.append((sequence, time.perf_counter()))

    async def drained(self) -> None:
        """Wait until the ledger has everything."""
        while (await self.look()).backlog:  # noqa: ASYNC110  another process does it
            await asyncio.sleep(_POLL_S)

    async def settled(self) -> None:
        """Wait until all that was accepted was seen in the ledger."""
        while self._unpersisted:  # noqa: ASYNC110  as above
            await asyncio.sleep(_POLL_S)

    def _see(self, look: Look) -> None:
        self.looks.append(look)
        while self._unpersisted and self._unpersisted[0][0] <= look.persisted:
            self.lags_s.append(look.at_s - self._unpersisted.popleft()[1])
        if look.backlog < BACKLOG_LIMIT:
            self.may_pay.set()
        else:
            self.may_pay.clear()


class Load(NamedTuple):
    """What the load did. lists: of MAX_BATCH payments each; paused_s: how long it waited for the ledger.
    looks: while it ran. lags_s: of every list."""

    lists: int
    seconds: float
    paused_s: float
    looks: list[Look]
    lags_s: list[float]


def _together(seconds: float, top: Sample, directory: Path | None) -> Case:
    with (
        fresh_servers(directory) as servers,
        PersisterProcess(servers.redis_url, servers.postgres_url, None) as persister,
    ):
        load = engine.run(_load_and_watch(servers.redis_url, persister, seconds))
        _check_transfers(servers, load.lists * MAX_BATCH + PAYERS)
    looks = load.looks
    rate = (looks[-1].persisted - looks[0].persisted) / (looks[-1].at_s - looks[0].at_s)
    slope = _slope_per_s(looks[len(looks) * 2 // 3 :])
    sample = Sample(rate, *percentiles_ms(load.lags_s), batch=MAX_BATCH)
    case = Case.of(
        "engine_and_persister",
        DURABILITY,
        [sample],
        ratio_to_ceiling=ratio([rate], [top.transfers_per_s]),
        details={
            "seconds": load.seconds,
            "accepted_per_s": load.lists * MAX_BATCH / load.seconds,
            "backlog_limit": BACKLOG_LIMIT,
            "paused_share": load.paused_s / load.seconds,
            "backlog_at_end": looks[-1].backlog,
            "backlog_max": max(look.backlog for look in looks),
            "backlog_slope_per_s": slope,
            "backlog_grows": slope > GROWING_SHARE * rate,
        },
    )
    return case.judged(_TOGETHER)


_TOGETHER = Target(
    "transfers_per_s >= 25,000 and not backlog_grows",
    lambda case: at_least(case.transfers_per_s, 25_000) and not case.details["backlog_grows"],
)


async def _load_and_watch(redis_url: str, persister: PersisterProcess, seconds: float) -> Load:
    async with (
        funded_engine(redis_url) as paying,
        redis.asyncio.Redis.from_url(redis_url) as client,
        asyncio.TaskGroup() as tasks,
    ):
        watch = Watch(client, persister)
        await watch.drained()
        looking = tasks.create_task(watch.keep_looking())
        load = await _pay(paying, watch, seconds)
        await watch.settled()
        looking.cancel()
    return load


async def _pay(paying: Engine, watch: Watch, seconds: float) -> Load:
    began_s = time.perf_counter()
    paused_s, lists = 0.0, 0
    while time.perf_counter() - began_s < seconds:
        outcomes = await paying.post(payments(MAX_BATCH, Pairs.HOT, f"pay:{lists}"))
        watch.accepted(outcomes[-1].sequence)
        check(outcomes)
        lists += 1
        stopped_s = time.perf_counter()
        await watch.may_pay.wait()
        paused_s += time.perf_counter() - stopped_s
    return Load(lists, time.perf_counter() - began_s, paused_s, list(watch.looks), watch.lags_s)


def _slope_per_s(looks: list[Look]) -> float:
    """Records per second by which the backlog grew, as a straight line through the looks."""
    at_s = np.array([look.at_s for look in looks])
    backlog = np.array([look.backlog for look in looks])
    return float(np.polyfit(at_s - at_s[0], backlog, 1)[0])


# An idle system


def _idle(singles: int, directory: Path | None) -> Case:
    with (
        fresh_servers(directory) as servers,
        PersisterProcess(servers.redis_url, servers.postgres_url, None) as persister,
    ):
        lags_s = engine.run(_pay_singly(servers, persister, singles))
    p50_ms, p99_ms = percentiles_ms(lags_s)
    case = Case(
        case="idle_latency",
        durability=DURABILITY,
        p50_ms=p50_ms,
        p99_ms=p99_ms,
        batch=1.0,
        details={"payments": singles},
    )
    return case.judged(Target("p99_ms < 50", lambda it: it.p99_ms is not None and it.p99_ms < 50))


async def _pay_singly(servers: EmbeddedServers, persister: PersisterProcess, singles: int) -> list[float]:
    """Seconds from each answer until Postgres has the transfer."""
    lags_s = []
    async with funded_engine(servers.redis_url) as paying, redis.asyncio.Redis.from_url(servers.redis_url) as client:
        await Watch(client, persister).drained()
        with connect(servers.postgres_url) as connection:
            for number in range(singles):
                # Never in step with the persister's own intervals.
                await asyncio.sleep(random.uniform(*_IDLE_PAUSE_S))
                outcome = await paying.transfer(1, MERCHANT, AMOUNT_MINOR, key=f"pay:{number}")
                answered_s = time.perf_counter()
                check([outcome])
                while find_transfer(connection, outcome.transfer_id) is None:
                    persister.check()
                    await asyncio.sleep(_LOOK_S)
                lags_s.append(time.perf_counter() - answered_s)
    return lags_s
