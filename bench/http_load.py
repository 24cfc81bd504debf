"""The load generator of `bench http`, a process of its own: raw asyncio on uvloop, keep-alive connections.

Reads one JSON object from stdin, prints one to stdout. It only counts: what an answer says besides its status line and
length is not looked at.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

import engine
from bench.measure import percentiles_ms

PATIENCE_S = 30.0


class Plan(NamedTuple):
    """key: the API key. name: what the Idempotency-Keys of this run begin with. what: noop, single or batch.
    offered_per_s: None for as fast as the connections get answers. idle: connections that do nothing besides."""

    port: int
    key: str
    name: str
    what: str
    seconds: float
    connections: int = 64
    offered_per_s: int | None = None
    idle: int = 0
    payers: int = 1
    merchant: int = 2
    batch: int = 100


def requests_of(plan: Plan) -> Callable[[], bytes]:
    """A function that makes the next request."""
    numbers, draw = itertools.count(), random.Random(7).randrange
    if plan.what == "noop":
        noop = b"GET /health/live HTTP/1.1\r\nHost: bench\r\n\r\n"
        return lambda: noop
    path = b"/v1/payments" if plan.what == "single" else b"/v1/transfers/batch"
    head = b"POST %b HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer %b\r\nContent-Type: application/json\r\n" % (
        path,
        plan.key.encode(),
    )
    merchant = plan.merchant

    def item() -> bytes:
        payer = draw(1, plan.payers + 1)
        return (
            b'{"debit_wallet_id":%d,"credit_wallet_id":%d,"amount_minor":1,"device":"device %d","ip":"10.0.0.%d"}'
            % (payer, merchant, payer, payer % 250)
        )

    def make() -> bytes:
        body = (
            item() if plan.what == "single" else b'{"transfers":[%b]}' % b",".join([item() for _ in range(plan.batch)])
        )
        name = b"%b-%d" % (plan.name.encode(), next(numbers))
        return b"%bIdempotency-Key: %b\r\nContent-Length: %d\r\n\r\n%b" % (head, name, len(body), body)

    return make


class Wire(asyncio.Protocol):
    """One connection with one request at a time. done: called with this and the status when it was answered."""

    def __init__(self, done: Callable[[Wire, bytes], None]) -> None:
        self._done = done
        self._parts = b""
        self._missing = 0
        self.since_s = 0.0
        self.transport: asyncio.Transport

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        self._done(self, b"lost")

    def send(self, request: bytes, since_s: float) -> None:
        self.since_s = since_s
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        parts = self._parts = self._parts + data if self._parts else data
        end = parts.find(b"\r\n\r\n")
        if end < 0:
            return
        at = parts.find(b"content-length: ", 0, end)
        size = int(parts[at + 16 : parts.index(b"\r", at)]) if at > 0 else 0
        if len(parts) >= end + 4 + size:
            self._parts = b""
            self._done(self, parts[9:12])


class Load:
    """Sends and counts."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._make = requests_of(plan)
        self._free: deque[Wire] = deque()
        self._waiting: deque[float] = deque()
        self._ends_s = 0.0
        self.latencies: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.open = 0
        self.last_s = 0.0

    async def run(self) -> dict[str, Any]:
        loop, plan = asyncio.get_running_loop(), self._plan
        idle = [(await loop.create_connection(asyncio.Protocol, "127.0.0.1", plan.port))[0] for _ in range(plan.idle)]
        wires = [
            (await loop.create_connection(lambda: Wire(self._done), "127.0.0.1", plan.port))[1]
            for _ in range(plan.connections)
        ]
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        self._ends_s = began_s + plan.seconds
        if plan.offered_per_s is None:
            for wire in wires:
                self._send(wire, time.perf_counter())
        else:
            self._free.extend(wires)
            await self._offer(plan.offered_per_s, began_s)
        while self.open and time.perf_counter() < self._ends_s + PATIENCE_S:  # noqa: ASYNC110  an event costs each answer
            await asyncio.sleep(0.005)
        cpu_s = time.process_time() - began_cpu_s
        lost = sum(one.is_closing() for one in idle)
        p50_ms, p99_ms = percentiles_ms(self.latencies)
        return {
            "requests": len(self.latencies),
            "seconds": max(self.last_s, self._ends_s) - began_s,  # until the last answer
            "p50_ms": p50_ms,
            "p99_ms": p99_ms,
            "statuses": dict(self.statuses),
            "cpu_us": cpu_s / max(1, len(self.latencies)) * 1e6,
            "idle_lost": lost,
        }

    async def _offer(self, per_s: int, began_s: float) -> None:
        """At the pace of the clock, whether answers come or not: latency counts from when a request was due."""
        sent = 0
        while (now_s := time.perf_counter()) < self._ends_s:
            due = int((now_s - began_s) * per_s)
            for number in range(sent, due):
                self._waiting.append(began_s + number / per_s)
            sent = due
            self._serve()
            await asyncio.sleep(0.0005)

    def _serve(self) -> None:
        while self._waiting and self._free:
            self._send(self._free.popleft(), self._waiting.popleft())

    def _send(self, wire: Wire, since_s: float) -> None:
        self.open += 1
        wire.send(self._make(), since_s)

    def _done(self, wire: Wire, status: bytes) -> None:
        now_s = time.perf_counter()
        if status == b"lost" and wire.since_s == 0.0:  # had nothing under way
            return
        since_s, wire.since_s = wire.since_s, 0.0
        self.open -= 1
        self.statuses[status.decode()] += 1
        self.latencies.append(now_s - since_s)
        self.last_s = now_s
        if status == b"lost" or now_s >= self._ends_s:
            return
        if self._plan.offered_per_s is None:
            self._send(wire, now_s)
        else:
            self._free.append(wire)
            self._serve()


def main() -> None:
    plan = Plan(**orjson.loads(sys.stdin.buffer.read()))

    async def load() -> dict[str, Any]:
        return await Load(plan).run()

    sys.stdout.buffer.write(orjson.dumps(engine.run(load())))


if __name__ == "__main__":
    main()
