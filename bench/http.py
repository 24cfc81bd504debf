"""`python -m bench http`: how fast the HTTP service takes payments, with everything on one machine.

How to read it. Service (one worker process, unless said otherwise), Valkey with appendfsync always, Postgres, persister
and load generator share the processors. One hot merchant, 10,000 payers, the API key checked, every fraud rule on.
transfers_per_s counts answers of 201 by the load generator's clock; p50_ms and p99_ms are of one request.

noop            GET /health/live: what the load generator and the HTTP server can do at most.
singles_64      POST /v1/payments over 64 keep-alive connections as fast as they are answered.
singles_2000    2,000 a second offered, whether answers come or not; latency counts from when a request was due.
batches_100     POST /v1/transfers/batch with 100 movements, over 8 connections.
idle_1000       As singles_64, with 1,000 more connections that do nothing: ratio_to_without says what they cost.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import orjson

import engine
from bench.engine import DURABILITY
from bench.http_load import Plan
from bench.loads import ALL_RULES
from bench.measure import Case, Sample, Target, at_least, at_most
from bench.scene import MERCHANT, PAYERS, fresh_servers, funded_engine, progress
from gateway.embedded import EmbeddedServers
from gateway.http.keyring import MAX_RATE_PER_S, create_key
from gateway.persister_process import PersisterProcess
from persister.connection import connect
from persister.migrate import migrate

BATCH = 100
BATCH_CONNECTIONS = 8
IDLE = 1000
OFFERED_PER_S = 2_000
PATIENCE_S = 60.0

TARGETS = {
    "singles_64": Target(
        "transfers_per_s >= 8000 and p99_ms <= 25",
        lambda case: at_least(case.transfers_per_s, 8000) and at_most(case.p99_ms, 25),
    ),
    "singles_2000": Target("p99_ms <= 10", lambda case: at_most(case.p99_ms, 10)),
    "batches_100": Target("transfers_per_s >= 25000", lambda case: at_least(case.transfers_per_s, 25_000)),
    "idle_1000": Target(
        "ratio_to_without >= 0.9 and none is lost",
        lambda case: at_least(case.details["ratio_to_without"], 0.9) and case.details["idle_lost"] == 0,
    ),
}


class Sizes(NamedTuple):
    """seconds: of one run. rounds: of each case, of which the median counts. workers: processes that serve."""

    seconds: float = 5.0
    rounds: int = 3
    workers: int = 1


QUICK = Sizes(0.3, 1, 1)


def cases(sizes: Sizes, directory: Path | None) -> Iterator[Case]:
    """All of them, as they are measured."""
    with fresh_servers(directory) as servers:
        migrate(servers.postgres_url)
        with PersisterProcess(servers.redis_url, servers.postgres_url, None) as persister:
            progress("opening and funding 10,000 wallets")
            _until(lambda: _funded(servers, persister))
            with closing(connect(servers.postgres_url)) as ledger:
                key = create_key(ledger, "bench", ["read", "write"], rate_per_s=MAX_RATE_PER_S).text
            with _serving(servers, sizes.workers) as port:
                yield from _cases(sizes, port, key)


def _funded(servers: EmbeddedServers, persister: PersisterProcess) -> bool:
    async def fund() -> None:
        async with funded_engine(servers.redis_url) as made:
            await ALL_RULES.prepare(made)

    persister.check()
    engine.run(fund())
    return True


def _cases(sizes: Sizes, port: int, key: str) -> Iterator[Case]:
    def run(case: str, what: str, items: int = 1, **more: Any) -> tuple[list[Sample], list[dict[str, Any]]]:
        progress(case)
        found = []
        for number in range(sizes.rounds):
            name, wallets = f"{case}-{number}", {"payers": PAYERS, "merchant": MERCHANT}
            found.append(_load(Plan(port, key, name, what, sizes.seconds, batch=BATCH, **wallets, **more)))
        return [
            Sample(one["requests"] * items / one["seconds"], one["p50_ms"], one["p99_ms"], client_us=one["cpu_us"])
            for one in found
        ], found

    details = {"workers": sizes.workers}
    run("warm up", "single")
    noop, _ = run("noop", "noop")
    yield Case.of("noop", "none", noop, details=details)
    ceiling = median(sample.transfers_per_s for sample in noop)
    singles, _ = run("singles_64", "single")
    yield _case("singles_64", singles, {**details, "ratio_to_noop": _rate(singles) / ceiling})
    offered, _ = run("singles_2000", "single", offered_per_s=OFFERED_PER_S)
    yield _case("singles_2000", offered, details)
    batches, _ = run("batches_100", "batch", BATCH, connections=BATCH_CONNECTIONS)
    yield _case("batches_100", batches, {**details, "connections": BATCH_CONNECTIONS})
    without, _ = run("singles_64 again", "single")
    idle, found = run("idle_1000", "single", idle=IDLE)
    lost = sum(one["idle_lost"] for one in found)
    ratio = _rate(idle) / _rate(without)
    yield _case("idle_1000", idle, {**details, "ratio_to_without": ratio, "idle_lost": lost})


def _case(name: str, samples: Sequence[Sample], details: dict[str, Any]) -> Case:
    return Case.of(name, DURABILITY, samples, details=details).judged(TARGETS[name])


def _rate(samples: Sequence[Sample]) -> float:
    return median(sample.transfers_per_s for sample in samples)


def _load(plan: Plan) -> dict[str, Any]:
    """What the load generator counted. Raises RuntimeError if anything but the expected was answered."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.http_load"],
        input=orjson.dumps(plan._asdict()),
        capture_output=True,
        timeout=plan.seconds + 3 * PATIENCE_S,
        check=True,
    )
    found: dict[str, Any] = orjson.loads(done.stdout)
    if found["statuses"].keys() - {"200", "201"}:
        raise RuntimeError(f"the load was refused: {found['statuses']}")
    return found


@contextmanager
def _serving(servers: EmbeddedServers, workers: int) -> Iterator[int]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    urls = {"HOTLEDGER_REDIS_URL": servers.redis_url, "HOTLEDGER_POSTGRES_URL": servers.postgres_url}
    command = [sys.executable, "-m", "gateway.cli", "serve", "--listen", f"127.0.0.1:{port}", "--workers", str(workers)]
    environment = os.environ | urls | {"HOTLEDGER_LOG_LEVEL": "warning"}
    with subprocess.Popen(command, env=environment, stdout=sys.stderr) as process:
        try:
            _until(lambda: process.poll() is not None or _is_ready(port))
            yield port
        finally:
            process.terminate()


def _is_ready(port: int) -> bool:
    with suppress(OSError), closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == 200
    return False


def _until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            if condition():
                return
        except engine.Unavailable:
            pass
        if time.monotonic() > deadline:
            raise RuntimeError("the servers did not become ready")
        time.sleep(0.05)
