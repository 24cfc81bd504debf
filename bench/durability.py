"""`python -m bench durability`: what waiting for each durability level adds to a payment's answer.

How to read it. Single payments to one hot merchant are offered at an even rate, whatever the answers take, and a
payment's time counts from when it was due: p50_ms and p99_ms are what a caller sees. Valkey with appendfsync always,
a replica of it likewise, Postgres, the persister as a process of its own, and the load share this machine. Each
round runs the levels one after the other, and added_*_ms is to `accepted` in the same round. late_share is of the
payments that were offered more than 5 ms after they were due, because this process was busy.

accepted    Valkey's answer.
replicated  On Valkey's disk and on the replica's.
persisted   Committed by Postgres.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import redis

import engine
from bench.measure import Case, Sample, Target, at_most, percentiles_ms
from bench.scene import AMOUNT_MINOR, MERCHANT, PAYERS, check, fresh_servers, funded_engine, progress
from engine import Durability, Engine
from gateway import valkey
from gateway.embedded import EmbeddedServers
from gateway.persister_process import PersisterProcess

RATE_PER_S = 1000
ADDED_P99_MS = 40.0
WARM_UP_S = 0.5

_LATE_S = 0.005
_POLL_S = 0.02
_TIMEOUT_MS = 30_000


class Sizes(NamedTuple):
    """seconds: of each level in each round."""

    seconds: float
    rounds: int
    rate_per_s: int = RATE_PER_S


QUICK = Sizes(seconds=0.3, rounds=1, rate_per_s=200)


class Offered(NamedTuple):
    """One run. latencies_s: of every payment, from when it was due. late: how many were offered late."""

    seconds: float
    latencies_s: list[float]
    late: int


def cases(sizes: Sizes, directory: Path | None) -> Iterator[Case]:
    """Measure all levels in turns, then yield a case of each."""
    runs: dict[Durability, list[Offered]] = {level: [] for level in Durability}
    with (
        fresh_servers(directory) as servers,
        replica_of(servers, directory),
        PersisterProcess(servers.redis_url, servers.postgres_url, None) as persister,
    ):
        guarantee = engine.run(_measure(servers, persister, sizes, runs))
    base = [percentiles_ms(run.latencies_s) for run in runs[Durability.ACCEPTED]]
    for level, offered in runs.items():
        yield _case(level, getattr(guarantee, level), offered, base, sizes)


async def _measure(
    servers: EmbeddedServers, persister: PersisterProcess, sizes: Sizes, runs: dict[Durability, list[Offered]]
) -> engine.Guarantee:
    async with funded_engine(servers.redis_url) as paying:
        # What the funding left is in the ledger, and each way of waiting has begun.
        for level in Durability:
            await _offer(paying, level, min(WARM_UP_S, sizes.seconds), sizes.rate_per_s, f"warm:{level}")
        for number in range(sizes.rounds):
            for level, done in runs.items():
                progress(f"{level}, round {number + 1} of {sizes.rounds}")
                done.append(await _offer(paying, level, sizes.seconds, sizes.rate_per_s, f"{level}:{number}"))
                persister.check()
    async with Engine.connect(servers.redis_url, servers.postgres_url) as looking:
        return looking.guarantee


async def _offer(paying: Engine, level: Durability, seconds: float, rate_per_s: int, name: str) -> Offered:
    """Offer rate_per_s payments a second for so long, and wait for their answers."""
    latencies_s: list[float] = []
    late = 0

    async def pay(number: int, due_s: float) -> None:
        outcome = await paying.transfer(
            random.randrange(1, PAYERS + 1),
            MERCHANT,
            AMOUNT_MINOR,
            key=f"{name}:{number}",
            durability=level,
            timeout_ms=_TIMEOUT_MS,
        )
        latencies_s.append(time.perf_counter() - due_s)
        check([outcome])

    began_s = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(int(seconds * rate_per_s)):
            due_s = began_s + number / rate_per_s
            await asyncio.sleep(max(due_s - time.perf_counter(), 0))
            late += time.perf_counter() - due_s > _LATE_S
            tasks.create_task(pay(number, due_s))
    return Offered(time.perf_counter() - began_s, latencies_s, late)


def _case(
    level: Durability, survives: str, runs: list[Offered], base: list[tuple[float | None, float | None]], sizes: Sizes
) -> Case:
    samples = [Sample(len(run.latencies_s) / run.seconds, *percentiles_ms(run.latencies_s)) for run in runs]
    added: dict[str, Any] = {}
    if level is not Durability.ACCEPTED:
        pairs = list(zip(samples, base, strict=True))
        added = {
            "added_p50_ms": median(sample.p50_ms - p50 for sample, (p50, _) in pairs if sample.p50_ms and p50),
            "added_p99_ms": median(sample.p99_ms - p99 for sample, (_, p99) in pairs if sample.p99_ms and p99),
        }
    payments = sum(len(run.latencies_s) for run in runs)
    details = {"offered_per_s": sizes.rate_per_s, "late_share": sum(run.late for run in runs) / payments} | added
    return Case.of(f"durability_{level}", f"{level}: {survives}", samples, details=details).judged(_target(level))


def _target(level: Durability) -> Target | None:
    if level is not Durability.PERSISTED:
        return None
    return Target(
        f"added_p99_ms < {ADDED_P99_MS:.0f} at {RATE_PER_S:,}/s",
        lambda case: at_most(case.details["added_p99_ms"], ADDED_P99_MS),
    )


@contextmanager
def replica_of(servers: EmbeddedServers, directory: Path | None) -> Iterator[None]:
    """A replica of the embedded Valkey for the block, with its settings; in step with it when the block begins."""
    with (
        TemporaryDirectory(prefix="hotledger-bench-", dir=directory) as name,
        redis.Redis.from_url(servers.redis_url) as primary,
    ):
        home = Path(name)
        port = _listen(primary)
        with (home / "log").open("wb") as log:
            process: list[subprocess.Popen[bytes]] = []

            def spawn(command: list[str]) -> subprocess.Popen[bytes]:
                following = ["--replicaof", f"127.0.0.1 {port}", "--repl-diskless-sync-delay", "0"]
                process.append(subprocess.Popen([*command, *following], stdout=log, stderr=log))
                return process[0]

            valkey.launch(spawn, Path(primary.info("server")["executable"]), home / "data", home)
            try:
                while not _in_step(primary):
                    if process[0].poll() is not None:
                        raise RuntimeError(f"the replica ended: {(home / 'log').read_text()}")
                    time.sleep(_POLL_S)
                primary.config_set("min-replicas-to-write", 1)
                yield
            finally:
                process[0].terminate()
                process[0].wait()


def _listen(primary: redis.Redis) -> int:
    """Have the server listen on a free port of the loopback, besides its socket."""
    primary.config_set("bind", "127.0.0.1")
    primary.config_set("repl-diskless-sync-delay", 0)
    for port in random.sample(range(20_000, 60_000), 20):
        try:
            primary.config_set("port", port)
            return port
        except redis.ResponseError:  # taken
            continue
    raise RuntimeError("no free port")


def _in_step(primary: redis.Redis) -> bool:
    info: Any = primary.info("replication")
    replica = info.get("slave0")
    return bool(replica and replica["state"] == "online" and replica["offset"] >= info["master_repl_offset"])
