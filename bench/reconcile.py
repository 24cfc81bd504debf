"""`python -m bench reconcile`: how long it takes to compare every wallet of Redis with the ledger.

How to read it. seconds is of the whole comparison: wallets, holds and tiers, from the first query to the last; it is
the check `redis` of `hotledger reconcile`. Servers, persister, load and comparison share one machine.

compare_idle          With nothing else running.
compare_under_load    While top-ups of random wallets go on, as many as offered_per_s says, with a persister.
                      A difference would be a false alarm, and ends the run.
full_pass             Every check of `hotledger reconcile`, with nothing else running.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import NamedTuple

import engine
from bench.measure import Case, Target, at_most
from bench.scene import AMOUNT_MINOR, CURRENCY, FUNDS_MINOR, SHARD, check, fresh_servers, progress
from engine import Engine, Kind, OpenWallet, Transfer
from engine.wire import MAX_BATCH
from gateway.embedded import EmbeddedServers
from gateway.logs import configure_logs
from gateway.persister_process import PersisterProcess
from persister.connection import connect
from persister.live import compare_with_redis
from persister.reconcile import reconcile
from persister.redis_shard import RedisShard
from persister.report import Check

DURABILITY = "persisted, synchronous_commit on, appendfsync always"
OFFERED_PER_S = 2000
_LIST = 100
_OPENED_AT_ONCE = 32 * MAX_BATCH


class Sizes(NamedTuple):
    """wallets: to compare. payments: between random wallets before that. rounds: of each comparison."""

    wallets: int
    payments: int
    rounds: int


def sizes(wallets: int, rounds: int) -> Sizes:
    return Sizes(wallets, max(1, wallets // 10), rounds)


QUICK = Sizes(wallets=3000, payments=1000, rounds=1)


def cases(sizes: Sizes, directory: Path | None) -> Iterator[Case]:
    """Measure on one pair of servers and yield one case after the other."""
    with (
        fresh_servers(directory) as servers,
        PersisterProcess(servers.redis_url, servers.postgres_url, None) as persister,
    ):
        progress(f"{sizes.wallets:,} wallets")
        engine.run(_fill(servers, persister, sizes))
        target = Target("seconds <= 10 per 1,000,000 wallets", lambda it: at_most(it.details["s_per_million"], 10))
        progress("compare")
        yield _case("compare_idle", sizes, [_compare(servers) for _ in range(sizes.rounds)], target)
        progress(f"compare while {OFFERED_PER_S:,} payments/s go on")
        with _load(servers, sizes.wallets):
            seconds = [_compare(servers) for _ in range(sizes.rounds)]
        yield _case("compare_under_load", sizes, seconds, target, {"offered_per_s": OFFERED_PER_S})
        progress("full pass")
        engine.run(_drained(servers, persister))
        yield _case("full_pass", sizes, [_full_pass(servers)], None)


def _case(
    name: str, sizes: Sizes, seconds: list[float], target: Target | None, more: dict[str, float] | None = None
) -> Case:
    middle = sorted(seconds)[len(seconds) // 2]
    details = {
        "rounds": len(seconds),
        "wallets": sizes.wallets,
        "seconds": middle,
        "s_per_million": middle / sizes.wallets * 1e6,
        "wallets_per_s": sizes.wallets / middle,
        **(more or {}),
    }
    # A rate of wallets is none of transfers.
    return Case(case=name, durability=DURABILITY, details=details).judged(target)


def _compare(servers: EmbeddedServers) -> float:
    found = Check("redis", "")
    with connect(servers.postgres_url) as connection, RedisShard(servers.redis_url, SHARD) as redis:
        began_s = time.perf_counter()
        compare_with_redis(redis, connection, SHARD, found)
        seconds = time.perf_counter() - began_s
    if not found.ok:
        raise RuntimeError(f"a false alarm: {found.differences[:3]}")
    return seconds


def _full_pass(servers: EmbeddedServers) -> float:
    began_s = time.perf_counter()
    report = reconcile(servers.redis_url, servers.postgres_url)
    if not report.ok:
        raise RuntimeError(f"a false alarm: {report.differences[:3]}")
    return time.perf_counter() - began_s


async def _fill(servers: EmbeddedServers, persister: PersisterProcess, sizes: Sizes) -> None:
    """Open and fund the wallets, and pay among them until each table has rows; all of it in the ledger."""
    async with Engine.connect(servers.redis_url, timeout_ms=60_000) as paying:
        for start in range(1, sizes.wallets + 1, _OPENED_AT_ONCE):
            some = range(start, min(start + _OPENED_AT_ONCE, sizes.wallets + 1))
            check(await paying.open_wallets([OpenWallet(id, owner_id=id, currency=CURRENCY) for id in some]))
        outside = paying.external_wallet(CURRENCY)
        for start in range(0, sizes.payments, MAX_BATCH):
            top_ups = [
                Transfer(outside, random.randint(1, sizes.wallets), FUNDS_MINOR, key=f"funds:{n}", kind=Kind.TOP_UP)
                for n in range(start, min(start + MAX_BATCH, sizes.payments))
            ]
            check(await paying.post(top_ups))
    await _drained(servers, persister)


async def _drained(servers: EmbeddedServers, persister: PersisterProcess) -> None:
    with RedisShard(servers.redis_url, SHARD) as redis:
        while (meta := redis.state().meta) is None or meta["persisted"] < meta["sequence"]:
            persister.check()
            await asyncio.sleep(0.05)


@contextmanager
def _load(servers: EmbeddedServers, wallets: int) -> Iterator[None]:
    """Payments to random wallets, from a process of its own, for as long as the block runs."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    process = context.Process(target=_keep_paying, args=(servers.redis_url, wallets, stop))
    process.start()
    try:
        yield
    finally:
        stop.set()
        process.join()


def _keep_paying(redis_url: str, wallets: int, stop: Event) -> None:
    configure_logs()
    engine.run(_pay(redis_url, wallets, stop))


async def _pay(redis_url: str, wallets: int, stop: Event) -> None:
    async with Engine.connect(redis_url) as paying:
        outside, number = paying.external_wallet(CURRENCY), 0
        while not stop.is_set():
            began_s = time.perf_counter()
            payments = [
                Transfer(outside, random.randint(1, wallets), AMOUNT_MINOR, key=f"pay:{number + n}", kind=Kind.TOP_UP)
                for n in range(_LIST)
            ]
            check(await paying.post(payments))
            number += _LIST
            await asyncio.sleep(max(0.0, _LIST / OFFERED_PER_S - (time.perf_counter() - began_s)))
