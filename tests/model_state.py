"""What the oracle remembers: wallets, holds, what was moved, and what counts towards the fraud rules."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple
from uuid import UUID

from engine import HoldState, Kind, Review, TierLimits

LIMIT = 2**53 - 1
"""Of amounts, balances, and of what is counted."""

DAY_MS = 86_400_000


class Answer(NamedTuple):
    """What a request must be answered with; the fields of an Outcome but its id."""

    status: str
    sequence: int
    replayed: bool = False
    debit_available_minor: int = 0
    credit_available_minor: int = 0
    amount_minor: int = 0
    rule: int = 0
    used: int = 0
    retry_at_ms: int = 0


@dataclass
class Sliding:
    """A count over the last window_ms, of two counters: that of the window before, spread evenly, and this one's."""

    window: int = 0
    before: int = 0
    count: int = 0

    def at(self, now_ms: int, window_ms: int) -> Sliding:
        """As it is now, in the window of now."""
        window = now_ms // window_ms
        if self.window == window:
            return Sliding(window, self.before, self.count)
        return Sliding(window, self.count if self.window == window - 1 else 0, 0)

    def add(self, now_ms: int, window_ms: int, more: int) -> None:
        now = self.at(now_ms, window_ms)
        self.window, self.before, self.count = now.window, now.before, min(now.count + more, LIMIT)

    def used(self, now_ms: int, window_ms: int) -> Fraction:
        now = self.at(now_ms, window_ms)
        return now.count + Fraction(now.before * (window_ms - now_ms % window_ms), window_ms)

    def room_from_ms(self, now_ms: int, window_ms: int, keep: int) -> int:
        """When no more than keep is used, if nothing is added, to the millisecond after; 0 if never."""
        if keep < 0:
            return 0
        now = self.at(now_ms, window_ms)
        begin_ms = now.window * window_ms
        if now.count <= keep:
            return begin_ms + _slid_out(now.before, keep - now.count, window_ms) + 1
        return begin_ms + window_ms + _slid_out(now.count, keep, window_ms) + 1


def _slid_out(counted: int, keep: int, window_ms: int) -> int:
    """How far into a window the part of the window before that still counts is down to keep."""
    return 0 if counted <= keep else -(-window_ms * (counted - keep) // counted)


@dataclass
class Usage:
    """What a wallet used of its tier's limits. devices: those it used last, and since when, the last one at the end."""

    day: int = 0
    day_amount: int = 0
    day_count: int = 0
    hour_amount: Sliding = field(default_factory=Sliding)
    window_count: Sliding = field(default_factory=Sliding)

    def today(self, now_ms: int) -> tuple[int, int]:
        """(amount, count) of this UTC day."""
        return (self.day_amount, self.day_count) if self.day == now_ms // DAY_MS else (0, 0)


@dataclass
class ModelWallet:
    """limit: how far below zero it may go, of an external wallet its currency's exponent. debt: a chargeback's that
    need not be paid back first, so that the wallet may go as much lower. devices: used successfully, since when."""

    currency: str
    limit: int
    external: bool
    available: int = 0
    locked: int = 0
    version: int = 0
    debits_frozen: bool = False
    credits_frozen: bool = False
    closed: bool = False
    tier: int = 0
    debt: int = 0
    usage: Usage = field(default_factory=Usage)
    devices: dict[str, int] = field(default_factory=dict)

    @property
    def floor(self) -> int:
        return -self.limit - self.debt


@dataclass
class ModelHold:
    """ended_in: the idempotency generation in which it ended."""

    debit: int
    credit: int
    purpose: Kind
    remaining: int
    expires_at_ms: int | None
    review: Review
    captured: int = 0
    state: HoldState = HoldState.OPEN
    ended_in: int = 0


class Moved(NamedTuple):
    """A movement that was posted. kind: of a capture, what its hold was for."""

    kind: Kind
    debit: int
    credit: int
    amount: int


class Kept(NamedTuple):
    """An answer under an id, and what was asked: by the word of the status that tells the difference."""

    content: dict[str, object]
    answer: Answer
    generation: int


@dataclass
class State:
    """All that a chain that fails puts back. refunded: (total, generation) by the refunded transfer's id."""

    wallets: dict[int, ModelWallet] = field(default_factory=dict)
    holds: dict[UUID, ModelHold] = field(default_factory=dict)
    moved: dict[UUID, Moved] = field(default_factory=dict)
    refunded: dict[UUID, tuple[int, int]] = field(default_factory=dict)
    tiers: dict[int, TierLimits] = field(default_factory=dict)
    kept: dict[UUID, Kept] = field(default_factory=dict)
    sequence: int = 0
    time_ms: int = 0

    def copy(self) -> State:
        return State(
            deepcopy(self.wallets),
            deepcopy(self.holds),
            dict(self.moved),
            dict(self.refunded),
            dict(self.tiers),
            dict(self.kept),
            self.sequence,
            self.time_ms,
        )
