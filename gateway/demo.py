"""Runs a simulated day against an engine: many callers at once beside senders in bulk, counted as they go.

Beside them stories go on: holds are captured, purchases returned, a simulated provider answers; and when the day is
over, an operator decides what a fraud rule held back.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from random import Random
from uuid import UUID

from engine import Engine, Hold, HotledgerError, Kind, Outcome, OutcomeUnknown, Status, Transfer, Unavailable
from engine.domain.transfer import Request
from engine.wire import MAX_BATCH
from gateway.demo_day import CURRENCY, Day, Story, Then
from gateway.provider import Provider, Word
from gateway.replay import Wait, settle

CALLERS = 64
BULK_SENDERS = 2
BULK_SIZE = 256
STORYTELLERS = 8
APPROVED = 0.75
"""How much of what a fraud rule held back the operator lets go on."""

BULK_SHARE = 0.4
"""How much of the day comes in bulk."""

LAG_INTERVAL_S = 0.2


class NotTheDemos(HotledgerError, RuntimeError):
    """A wallet of the demo is somebody else's here."""


class Step(StrEnum):
    """What comes after a request."""

    CAPTURE = "capture"
    VOID = "void"
    REFUND = "refund"
    CONFIRM = "confirm"
    FAIL = "fail"
    APPROVE = "approve"
    REJECT = "reject"


@dataclass
class DayResult:
    """wallets: opened, now or in an earlier run. requests, by_status: what people asked for; later: what came after.

    reviews: ids of what a fraud rule held back. pending: top-ups and withdrawals that the provider never answers.
    seconds: for the requests. max_lag_records: the most that the ledger was behind, as sampled.
    """

    wallets: int = 0
    requests: int = 0
    replays: int = 0
    by_status: Counter[Status] = field(default_factory=Counter)
    later: Counter[tuple[Step, Status]] = field(default_factory=Counter)
    reviews: dict[UUID, None] = field(default_factory=dict)
    pending: int = 0
    seconds: float = 0.0
    max_lag_records: int = 0

    @property
    def transfers_per_s(self) -> float:
        return self.requests / self.seconds if self.seconds else 0.0

    def add(self, outcome: Outcome) -> None:
        self.requests += 1
        self.replays += outcome.replayed
        self.by_status[outcome.status] += 1
        if outcome.status is Status.UNDER_REVIEW:
            self.reviews[outcome.transfer_id] = None


@dataclass(frozen=True)
class Watch:
    """How a run tells of itself. wait: see gateway.replay. lag_records: how far the ledger is behind; may block."""

    wait: Wait
    show: Callable[[DayResult], None]
    lag_records: Callable[[], int]


async def run_day(engine: Engine, day: Day, seed: int, watch: Watch) -> DayResult:
    """Open the wallets, pay the salaries, let the day happen, and settle what it left open.

    Raises NotTheDemos, Fatal, and what wait raises.
    """
    result = DayResult()
    await _open(engine, day, watch, result)
    began_at = time.monotonic()
    sampler = asyncio.create_task(_sample_lag(watch, result))
    try:
        async with Provider(engine, seed) as provider:
            await _happen(engine, day, provider, watch, result)
            result.seconds = time.monotonic() - began_at
        for (word, status), count in provider.answers.items():
            result.later[Step.CONFIRM if word is Word.CONFIRMED else Step.FAIL, status] += count
        await _review(engine, seed, watch, result)
    finally:
        sampler.cancel()
    return result


async def _happen(engine: Engine, day: Day, provider: Provider, watch: Watch, result: DayResult) -> None:
    for part in _parts(day.salaries, MAX_BATCH):
        await _send_bulk(engine, part, watch, result)
    split = int(len(day.requests) * BULK_SHARE)
    async with asyncio.TaskGroup() as group:
        # The parts of each are taken from one iterator: whoever is free takes the next.
        bulk, singles = _parts(day.requests[:split], BULK_SIZE), iter(day.requests[split:])
        stories = iter(day.stories)
        for _ in range(BULK_SENDERS):
            group.create_task(_bulk_sender(engine, bulk, watch, result))
        for _ in range(CALLERS):
            group.create_task(_caller(engine, singles, watch, result))
        for _ in range(STORYTELLERS):
            group.create_task(_storyteller(engine, stories, provider, watch, result))


async def _open(engine: Engine, day: Day, watch: Watch, result: DayResult) -> None:
    for part in _parts((*day.openings, *day.rules), MAX_BATCH):
        for request, outcome in zip(part, await settle(engine, part, watch.wait), strict=True):
            if outcome.status is not Status.POSTED:
                raise NotTheDemos(f"{request} is not the demo's here ({outcome.status}): use another --data")
        watch.show(result)
    result.wallets = len(day.openings) - 1  # without the outside world


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
        result.add(await _until_answered(partial(_call, engine, request), watch.wait))
        if not result.requests % BULK_SIZE:
            watch.show(result)


async def _storyteller(
    engine: Engine, stories: Iterator[Story], provider: Provider, watch: Watch, result: DayResult
) -> None:
    for story in stories:
        first = await _begin(engine, story, provider, watch, result)
        if first.status is Status.POSTED and (later := _end(engine, story, first.transfer_id)):
            step, call = later
            outcome = await _until_answered(call, watch.wait)
            result.later[step, outcome.status] += 1


async def _begin(engine: Engine, story: Story, provider: Provider, watch: Watch, result: DayResult) -> Outcome:
    """A card is charged by its provider before we hear of it; a payout is asked for once the money is locked."""
    request = story.first
    if isinstance(request, Hold) and request.purpose is Kind.TOP_UP and request.id is not None:
        provider.order(request.id)
    [outcome] = await settle(engine, [request], watch.wait)
    result.add(outcome)
    if story.then is Then.PROVIDER and outcome.status is Status.POSTED:
        result.pending += provider.order(outcome.transfer_id).word is None
    return outcome


def _end(engine: Engine, story: Story, id: UUID) -> tuple[Step, Call] | None:
    """What comes next of the story whose first request has this id; None for what comes by itself."""
    match story.then:
        case Then.CAPTURE:
            return Step.CAPTURE, lambda: engine.capture(id, story.amount_minor)
        case Then.VOID:
            return Step.VOID, lambda: engine.void(id)
        case Then.REFUND:
            return Step.REFUND, lambda: engine.refund(id, story.amount_minor, key=f"{story.first.key}:refund")
        case Then.PROVIDER:
            return None


async def _review(engine: Engine, seed: int, watch: Watch, result: DayResult) -> None:
    """The operator's work at the end of the day."""
    reviews = iter(result.reviews)

    async def decide() -> None:
        for id in reviews:
            approved = Random(f"{seed}:{id}").random() < APPROVED
            step, decision = (Step.APPROVE, engine.approve) if approved else (Step.REJECT, engine.reject)
            outcome = await _until_answered(partial(decision, id), watch.wait)
            result.later[step, outcome.status] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(STORYTELLERS):
            group.create_task(decide())


Call = Callable[[], Awaitable[Outcome]]


async def _until_answered(call: Call, wait: Wait) -> Outcome:
    """As any caller should do: the same key again, until there is an answer."""
    while True:
        try:
            return await call()
        except (Unavailable, OutcomeUnknown) as error:
            await wait(str(error))


def _call(engine: Engine, request: Transfer) -> Awaitable[Outcome]:
    debit, credit, amount_minor, key = request[:4]
    reference, metadata = request.reference, request.metadata
    if request.kind is Kind.TOP_UP:
        return engine.top_up(credit, amount_minor, key=key, currency=CURRENCY, reference=reference, metadata=metadata)
    if request.kind is Kind.WITHDRAWAL:
        return engine.withdraw(debit, amount_minor, key=key, currency=CURRENCY, reference=reference, metadata=metadata)
    send = engine.pay if request.kind is Kind.PAYMENT else engine.transfer
    return send(debit, credit, amount_minor, key=key, reference=reference, metadata=metadata)


async def _sample_lag(watch: Watch, result: DayResult) -> None:
    while True:
        with suppress(Unavailable):  # the callers are waiting for it too
            result.max_lag_records = max(result.max_lag_records, await asyncio.to_thread(watch.lag_records))
        await asyncio.sleep(LAG_INTERVAL_S)
