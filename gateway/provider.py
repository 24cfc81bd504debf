"""A simulated payment provider: a card scheme or bank that is asked for money, or to pay it out, and answers later.

What it does with a payment follows from its seed and the payment's id alone. As in life, its word comes after a while,
overtakes other words, comes twice, comes before we have written down what it is about, or never comes; and word that
was not taken is sent again, further and further apart.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from random import Random
from types import TracebackType
from typing import NamedTuple, Self
from uuid import UUID

from engine import Engine, OutcomeUnknown, Status, Unavailable
from engine.domain.status import RETRYABLE

MAX_ATTEMPTS = 10
FIRST_RETRY_S, MAX_RETRY_S = 0.02, 1.0

_REASONS = ("card declined", "account closed", "bank does not answer", "amount above the card's limit")
_NOT_TAKEN = RETRYABLE | {Status.HOLD_NOT_FOUND}
"""We have not written down yet what the word is about, or cannot: it has to come again."""


class Word(Enum):
    CONFIRMED = "confirmed"
    FAILED = "failed"


@dataclass(frozen=True)
class Habits:
    """Shares of payments, 0 to 1. fails: which it refuses; silent: of which it never says anything; twice: of which it
    sends word again. max_delay_s: how long word takes at most."""

    fails: float = 0.1
    silent: float = 0.03
    twice: float = 0.2
    max_delay_s: float = 0.2


class Plan(NamedTuple):
    """What becomes of one payment. word: None for never. after_s: when it is sent, once or more often."""

    word: Word | None
    text: str
    """The provider's reference, or why it failed."""
    after_s: tuple[float, ...]


def plan(seed: int, payment_id: UUID, habits: Habits) -> Plan:
    """The same for the same seed, payment and habits."""
    random = Random(f"{seed}:{payment_id}")
    if random.random() < habits.silent:
        return Plan(None, "", ())
    times = 1 + (random.random() < habits.twice)
    after_s = tuple(random.uniform(0, habits.max_delay_s) for _ in range(times))
    if random.random() < habits.fails:
        return Plan(Word.FAILED, random.choice(_REASONS), after_s)
    return Plan(Word.CONFIRMED, f"PSP-{random.randrange(10**12):012}", after_s)


class Provider:
    """Sends its words to one engine from within an `async with` block, whose end waits for the last of them.

    answers: what we said to each word, by (word, status). lost: words that were given up after MAX_ATTEMPTS.
    """

    def __init__(self, engine: Engine, seed: int, habits: Habits | None = None) -> None:
        self._engine = engine
        self._seed = seed
        self._habits = habits or Habits()
        self._words = asyncio.TaskGroup()
        self.answers: Counter[tuple[Word, Status]] = Counter()
        self.plans: dict[UUID, Plan] = {}
        self.lost = 0

    async def __aenter__(self) -> Self:
        await self._words.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._words.__aexit__(kind, error, traceback)

    def order(self, payment_id: UUID) -> Plan:
        """Ask for a payment; word of it comes by itself. The id is that of our pending top-up or withdrawal.

        Asking again changes nothing. A withdrawal must be pending before it is asked for, else it might be paid out
        without the money being locked; a top-up need not.
        """
        if payment_id not in self.plans:
            made = self.plans[payment_id] = plan(self._seed, payment_id, self._habits)
            for after_s in made.after_s:
                self._words.create_task(self._send(payment_id, made, after_s))
        return self.plans[payment_id]

    async def _send(self, payment_id: UUID, made: Plan, after_s: float) -> None:
        await asyncio.sleep(after_s)
        again_s = FIRST_RETRY_S
        for _ in range(MAX_ATTEMPTS):
            if await self._taken(payment_id, made):
                return
            await asyncio.sleep(again_s)
            again_s = min(2 * again_s, MAX_RETRY_S)
        self.lost += 1

    async def _taken(self, payment_id: UUID, made: Plan) -> bool:
        assert made.word is not None  # else there is nothing to send
        try:
            if made.word is Word.CONFIRMED:
                outcome = await self._engine.confirm(payment_id, made.text)
            else:
                outcome = await self._engine.fail(payment_id, made.text)
        except (Unavailable, OutcomeUnknown):
            return False
        self.answers[made.word, outcome.status] += 1
        return outcome.status not in _NOT_TAKEN
