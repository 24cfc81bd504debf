"""Runs a simulated day against an engine: many callers at once beside senders in bulk, counted as they go."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from engine import Engine, HotledgerError, Kind, OpenWallet, Outcome, OutcomeUnknown, Status, Transfer, Unavailable
from engine.domain.transfer import Request
from engine.wire import MAX_BATCH
from gateway.demo_day import CURRENCY, Day
from gateway.replay import Wait, settle

CALLERS = 64
BULK_SENDERS = 2
BULK_SIZE = 256
BULK_SHARE = 0.4
"""How much of the day comes in bulk."""

LAG_INTERVAL_S = 0.2


class NotTheDemos(HotledgerError, RuntimeError):
    """A wallet of the demo is somebody else's here."""


@dataclass
class DayResult:
    """wallets: opened, now or in an earlier run. max_lag_records: the most that the ledger was behind, as sampled."""

    wallets: int = 0
    requests: int = 0
    replays: int = 0
    by_status: Counter[Status] = field(default_factory=Counter)
    seconds: float = 0.0
    max_lag_records: int = 0

    @property
    def transfers_per_s(self) -> float:
        return self.requests / self.seconds if self.seconds else 0.0

    def add(self, outcome: Outcome) -> None:
        self.requests += 1
        self.replays += outcome.replayed
        self.by_status[outcome.status] += 1


@dataclass(frozen=True)
class Watch:
    """How a run tells of itself. wait: see gateway.replay. lag_records: how far the ledger is behind; may block."""

    wait: Wait
    show: Callable[[DayResult], None]
    lag_records: Callable[[], int]


async def run_day(engine: Engine, day: Day, watch: Watch) -> DayResult:
    """Open the wallets, pay the salaries, and let the day happen. Raises NotTheDemos, Fatal, and what wait raises."""
    result = DayResult()
    await _open(engine, day.openings, watch, result)
    began_at = time.monotonic()
    sampler = asyncio.create_task(_sample_lag(watch, result))
    try:
        for part in _parts(day.salaries, MAX_BATCH):
            await _send_bulk(engine, part, watch, result)
        split = int(len(day.requests) * BULK_SHARE)
        async with asyncio.TaskGroup() as group:
            # The parts of each are taken from one iterator: whoever is free takes the next.
            bulk, singles = _parts(day.requests[:split], BULK_SIZE), iter(day.requests[split:])
            for _ in range(BULK_SENDERS):
                group.create_task(_bulk_sender(engine, bulk, watch, result))
            for _ in range(CALLERS):
                group.create_task(_caller(engine, singles, watch, result))
    finally:
        sampler.cancel()
    result.seconds = time.monotonic() - began_at
    return result


async def _open(engine: Engine, openings: Sequence[OpenWallet], watch: Watch, result: DayResult) -> None:
    outside = OpenWallet(engine.external_wallet(CURRENCY), 0, CURRENCY)
    for part in _parts((outside, *openings), MAX_BATCH):
        for opening, outcome in zip(part, await settle(engine, part, watch.wait), strict=True):
            if outcome.status is not Status.POSTED:
                raise NotTheDemos(f"wallet {opening} is not the demo's here ({outcome.status}): use another --data")
            result.wallets += 1
        watch.show(result)
    result.wallets -= 1  # the outside world


def _parts(requests: Sequence[Request], size: int) -> Iterator[list[Request]]:
    for start in range(0, len(requests), size):
        yield list(requests[start : start + size])


async def _bulk_sender(engine: Engine, parts: Iterator[list[Request]], watch: Watch, result: DayResult) -> None:
    for part in parts:
        await _send_bulk(engine, part, watch, result)


async def _send_bulk(engine: Engine, part: list[Request], watch: Watch, result: DayResult) -> None:
    for outcome in await settle(engine, part, watch.wait):
        result.add(outcome)
    watch.show(result)


async def _caller(engine: Engine, requests: Iterator[Transfer], watch: Watch, result: DayResult) -> None:
    for request in requests:
        result.add(await _until_answered(engine, request, watch.wait))
        if not result.requests % BULK_SIZE:
            watch.show(result)


async def _until_answered(engine: Engine, request: Transfer, wait: Wait) -> Outcome:
    """As any caller should do: the same key again, until there is an answer."""
    while True:
        try:
            return await _call(engine, request)
        except (Unavailable, OutcomeUnknown) as error:
            await wait(str(error))


def _call(engine: Engine, request: Transfer) -> Awaitable[Outcome]:
    debit, credit, amount_minor, key, _, kind, _, reference, metadata = request
    if kind is Kind.TOP_UP:
        return engine.top_up(credit, amount_minor, key=key, currency=CURRENCY, reference=reference, metadata=metadata)
    if kind is Kind.WITHDRAWAL:
        return engine.withdraw(debit, amount_minor, key=key, currency=CURRENCY, reference=reference, metadata=metadata)
    send = engine.pay if kind is Kind.PAYMENT else engine.transfer
    return send(debit, credit, amount_minor, key=key, reference=reference, metadata=metadata)


async def _sample_lag(watch: Watch, result: DayResult) -> None:
    while True:
        with suppress(Unavailable):  # the callers are waiting for it too
            result.max_lag_records = max(result.max_lag_records, await asyncio.to_thread(watch.lag_records))
        await asyncio.sleep(LAG_INTERVAL_S)
