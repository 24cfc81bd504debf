"""Replays real input in its order: opens wallets at first sight, sends one movement per row, counts what happened.

Order decides who is refused, so a chunk leaves only when every request of the one before has its final answer; the
next one is parsed while the server decides. Every request has a key that follows from the file alone, so sending
a chunk again, after a lost answer or in a second run, changes nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field

from engine import (
    Engine,
    Kind,
    OpenWallet,
    Outcome,
    OutcomeUnknown,
    SetTierLimits,
    Status,
    Transfer,
    Unavailable,
    WalletChange,
)
from engine.domain.money import default_exponent
from engine.domain.status import RETRYABLE
from engine.domain.transfer import Request
from engine.wire import MAX_BATCH
from gateway.replay_rows import BadRow, Row, outside_of
from gateway.replay_rules import Rules, Stopped

OPENING_KEY = "paysim:opening:{wallet}"
POST_TIMEOUT_MS = 10_000
REQUESTS_PER_ROW = 9
"""At most: two external wallets, two openings, two tiers, two top-ups, one movement."""


@dataclass(slots=True)
class Chunk:
    """Requests in order, at most MAX_BATCH. at: which of them are the movements of rows; fraud: the label of each."""

    requests: list[Request] = field(default_factory=list)
    at: list[int] = field(default_factory=list)
    fraud: list[bool] = field(default_factory=list)
    bad: int = 0


@dataclass(slots=True)
class Tally:
    """What became of the rows. A row counts once, by its movement; openings count in none of the figures.

    posted: rows whose outcome is POSTED, replayed or not; declined: decided otherwise; replayed: answered from the
    record; bad: skipped. volume_minor: what the posted rows moved. openings_declined: opening top-ups and tiers that
    the engine refused or that had another amount in an earlier run, by status. stopped: by fraud rules, if there are.
    """

    rows: int = 0
    posted: int = 0
    replayed: int = 0
    bad: int = 0
    volume_minor: int = 0
    by_status: Counter[Status] = field(default_factory=Counter)
    openings_declined: Counter[Status] = field(default_factory=Counter)
    stopped: Stopped | None = None

    @property
    def declined(self) -> int:
        return sum(self.by_status.values()) - self.posted

    def add(self, chunk: Chunk, outcomes: list[Outcome]) -> None:
        self.rows += len(chunk.at) + chunk.bad
        self.bad += chunk.bad
        for at, fraud in zip(chunk.at, chunk.fraud, strict=True):
            outcome, movement = outcomes[at], chunk.requests[at]
            self.by_status[outcome.status] += 1
            self.replayed += outcome.replayed
            if outcome.status is Status.POSTED and isinstance(movement, Transfer):
                self.posted += 1
                self.volume_minor += movement.amount_minor
            if self.stopped is not None and isinstance(movement, Transfer):
                self.stopped.add(movement.amount_minor, outcome, fraud)
        if len(chunk.at) < len(outcomes):
            self._add_openings(chunk, outcomes)

    def _add_openings(self, chunk: Chunk, outcomes: list[Outcome]) -> None:
        rows = set(chunk.at)
        for at, (request, outcome) in enumerate(zip(chunk.requests, outcomes, strict=True)):
            if outcome.status is not Status.POSTED and not isinstance(request, OpenWallet) and at not in rows:
                self.openings_declined[outcome.status] += 1


class Planner:
    """Rows to chunks, with the wallets that have not been seen yet opened ahead of their first row."""

    def __init__(self, *, skip_bad: bool = False, rules: Rules | None = None) -> None:
        """rules: set ahead of the rows; each wallet is put into its tier at first sight."""
        self._skip_bad = skip_bad
        self._rules = rules
        self._currencies: set[str] = set()
        self.wallets: set[int] = set()
        """Every user's wallet that a row named."""

    def chunks(self, rows: Iterable[Row | BadRow]) -> Iterator[Chunk]:
        """Raises BadRow where a bad row is not to be skipped, after giving what was ahead of it."""
        chunk = Chunk()
        if self._rules:
            chunk.requests += [SetTierLimits(tier, limits) for tier, limits in self._rules.tiers.items()]
        for row in rows:
            if isinstance(row, BadRow):
                if not self._skip_bad:
                    yield chunk
                    raise row
                chunk.bad += 1
                continue
            requests = chunk.requests
            for wallet_id, currency, opening_minor in row.sights:
                if wallet_id not in self.wallets:
                    requests += self._opening(wallet_id, currency, opening_minor)
            chunk.at.append(len(requests))
            chunk.fraud.append(row.fraud)
            requests.append(row.movement)
            if len(requests) > MAX_BATCH - REQUESTS_PER_ROW:
                yield chunk
                chunk = Chunk()
        yield chunk

    def _opening(self, wallet_id: int, currency: str, opening_minor: int) -> Iterator[Request]:
        """A wallet that exists already, with whatever owner or currency, stays as it is: the movement will tell."""
        self.wallets.add(wallet_id)
        outside = outside_of(currency)
        if currency not in self._currencies:
            self._currencies.add(currency)
            yield OpenWallet(outside, 0, currency, default_exponent(currency))
        yield OpenWallet(wallet_id, wallet_id, currency)
        if self._rules:
            yield WalletChange(wallet_id, Kind.SET_TIER, self._rules.tier_of(wallet_id))
        if opening_minor:
            key = OPENING_KEY.format(wallet=wallet_id)
            yield Transfer(outside, wallet_id, opening_minor, key, kind=Kind.TOP_UP)


Wait = Callable[[str], Awaitable[None]]
"""Called with why the engine takes nothing now; returns when it is worth another try, or raises to give up."""


async def replay(
    engine: Engine, chunks: Iterator[Chunk], tally: Tally, wait: Wait, progress: Callable[[Tally], None]
) -> None:
    """Send every chunk in order and count its outcomes in tally. Raises what chunks raises, and Fatal."""
    sending: asyncio.Task[list[Outcome]] | None = None
    sent = Chunk()
    try:
        for chunk in chunks:  # parsed here while the one before is decided
            if sending:
                tally.add(sent, await sending)
                progress(tally)
            sent, sending = chunk, asyncio.create_task(settle(engine, chunk.requests, wait))
            await asyncio.sleep(0)  # on its way before the next one is parsed
    finally:
        if sending:
            tally.add(sent, await sending)
            progress(tally)


async def settle(engine: Engine, requests: list[Request], wait: Wait) -> list[Outcome]:
    """The final outcome of each request. What meets a full backlog or a closed shard is sent again, in order.

    After the first request that was put off, none of the batch was newly decided (lua/functions/post.lua), so
    going on from there keeps the order.
    """
    outcomes: list[Outcome] = []
    while len(outcomes) < len(requests):
        try:
            answered = await engine.post(requests[len(outcomes) :], timeout_ms=POST_TIMEOUT_MS)
        except (Unavailable, OutcomeUnknown) as error:
            await wait(str(error))
            continue
        final = next((at for at, outcome in enumerate(answered) if outcome.status in RETRYABLE), len(answered))
        outcomes += answered[:final]
        if final < len(answered):
            await wait(f"status {answered[final].status}")
    return outcomes
