"""A simulated day of a mobile-money town: who has a wallet, and what they ask for, all of it from one seed. Pure.

People get salaries in the morning, then pay merchants (a few of which get most of it, by Zipf's law), send each
other money, and withdraw. As in life, some lack the money, some clients send a request twice because the answer
got lost, and a few send the same key with another amount by mistake. A small share of the day are stories, which go
on after their first request: money that is reserved and then taken or given back, purchases that are returned, and
top-ups and withdrawals that a provider answers later. And some people are newcomers, whom a fraud rule does not trust
with large amounts yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import accumulate
from random import Random
from typing import NamedTuple
from uuid import UUID

from engine import Hold, Kind, OpenWallet, Rule, SetTierLimits, TierLimits, Transfer, WalletChange, external_wallet_id
from engine.domain.money import default_exponent

CURRENCY = "KES"
PEOPLE = 9_992
MERCHANTS = ("Power company", "Supermarket", "Bus line", "Phone credit", "Pharmacy", "School", "Fuel station", "Cafe")
"""By how much of the trade they get."""

# Like telephone numbers, and out of the way of wallets that a data directory may have.
FIRST_PERSON = 254_700_000_001
FIRST_MERCHANT = 254_900_000_001
TOWN = 254
"""Who owns the merchants' wallets; a person owns his."""

MIN_REQUESTS = 100
SALARIED = 0.8
RETRIED = 0.02
MISTAKEN = 0.0005
ANNOTATED = 0.05
STORIES = 0.01
NEWCOMERS = 0.02
RETRY_WITHIN = 500
"""How many requests later a lost answer's retry comes, at most."""

_MIX = {Kind.PAYMENT: 0.55, Kind.TRANSFER: 0.30, Kind.WITHDRAWAL: 0.08, Kind.TOP_UP: 0.07}
_AMOUNTS_MINOR = {
    Kind.PAYMENT: (50, 4_000),
    Kind.TRANSFER: (100, 20_000),
    Kind.WITHDRAWAL: (1_000, 50_000),
    Kind.TOP_UP: (500, 20_000),
}
NEWCOMERS_TIER = 254
NEWCOMERS_LIMITS = TierLimits(max_amount_minor=15_000, day_amount_minor=120_000, review=frozenset({Rule.MAX_AMOUNT}))
"""Of one movement, with an operator's word for more; and of a day, for good."""

_SALARY_MINOR = (40_000, 90_000)
_OUTSIDE = external_wallet_id(CURRENCY)
HOLD_MS, PENDING_MS = 7 * 86_400_000, 86_400_000


class Then(Enum):
    """How a story goes on once its first request was accepted."""

    PROVIDER = auto()
    CAPTURE = auto()
    VOID = auto()
    REFUND = auto()


_THEN = {Then.PROVIDER: 0.4, Then.CAPTURE: 0.3, Then.VOID: 0.1, Then.REFUND: 0.2}


class Story(NamedTuple):
    """first: a Hold, or for a refund the payment. amount_minor: of the capture or refund; None for all."""

    first: Hold | Transfer
    then: Then
    amount_minor: int | None = None


@dataclass(frozen=True)
class Day:
    """rules and salaries come first; the rest in any order, because many people act at once."""

    openings: tuple[OpenWallet, ...]
    rules: tuple[SetTierLimits | WalletChange, ...]
    salaries: tuple[Transfer, ...]
    requests: tuple[Transfer, ...]
    stories: tuple[Story, ...]

    @property
    def hot_merchant(self) -> int:
        return FIRST_MERCHANT


def simulate(seed: int, count: int) -> Day:
    """A day of count requests, salaries and first requests of stories among them; the same for the same seed and count.

    count: at least MIN_REQUESTS. With few requests only a part of the people acts, so that money still goes round.
    """
    random = Random(seed)
    merchants = range(FIRST_MERCHANT, FIRST_MERCHANT + len(MERCHANTS))
    people = range(FIRST_PERSON, FIRST_PERSON + PEOPLE)
    active = people[: max(10, min(PEOPLE, count // 20))]
    outside = OpenWallet(_OUTSIDE, 0, CURRENCY, default_exponent(CURRENCY))
    users = (*(OpenWallet(m, TOWN, CURRENCY) for m in merchants), *(OpenWallet(p, p, CURRENCY) for p in people))
    prefix = f"demo:{seed}:{count}"
    salaries = tuple(
        Transfer(_OUTSIDE, person, random.randint(*_SALARY_MINOR), f"{prefix}:salary:{person}", kind=Kind.TOP_UP)
        for person in active
        if random.random() < SALARIED
    )
    newcomers = active[: max(1, round(len(active) * NEWCOMERS))]
    rules: tuple[SetTierLimits | WalletChange, ...] = (
        SetTierLimits(NEWCOMERS_TIER, NEWCOMERS_LIMITS),
        *(WalletChange(person, Kind.SET_TIER, NEWCOMERS_TIER) for person in newcomers),
    )
    stories = tuple(_stories(random, prefix, max(len(Then), round(count * STORIES)), active, merchants))
    requests = tuple(_requests(random, prefix, count - len(salaries) - len(stories), active, merchants))
    return Day((outside, *users), rules, salaries, requests, stories)


def _requests(
    random: Random, prefix: str, count: int, people: Sequence[int], merchants: Sequence[int]
) -> list[Transfer]:
    retries, mistakes = round(count * RETRIED), max(1, round(count * MISTAKEN))
    fresh = count - retries - mistakes
    zipf = list(accumulate(1 / rank for rank in range(1, len(merchants) + 1)))
    kinds = random.choices(list(_MIX), list(_MIX.values()), k=fresh)
    payers = random.choices(people, k=fresh)
    shops = random.choices(merchants, cum_weights=zipf, k=fresh)
    made = [
        _movement(random, f"{prefix}:{n}", kind, payer, shop, people)
        for n, (kind, payer, shop) in enumerate(zip(kinds, payers, shops, strict=True))
    ]
    again = [(at, made[at]) for at in random.choices(range(fresh), k=retries)]
    again += [
        (at, made[at]._replace(amount_minor=made[at].amount_minor + 1)) for at in random.sample(range(fresh), mistakes)
    ]
    return _mixed_in(random, made, again)


def _movement(random: Random, key: str, kind: Kind, payer: int, shop: int, people: Sequence[int]) -> Transfer:
    debit, credit = payer, shop
    if kind is Kind.TRANSFER:
        credit = random.choice(people)
        while credit == debit:
            credit = random.choice(people)
    elif kind is Kind.WITHDRAWAL:
        credit = _OUTSIDE
    elif kind is Kind.TOP_UP:
        debit, credit = _OUTSIDE, payer
    reference, metadata = None, None
    if random.random() < ANNOTATED:
        reference, metadata = f"receipt {random.randrange(10**8):08}", {"till": random.randrange(20), "app": "demo"}
    amount_minor = random.randint(*_AMOUNTS_MINOR[kind])
    return Transfer(debit, credit, amount_minor, key, None, kind, None, reference, metadata)


def _stories(
    random: Random, prefix: str, count: int, people: Sequence[int], merchants: Sequence[int]
) -> Iterator[Story]:
    """At least one of each."""
    for n in range(count):
        then = list(Then)[n] if n < len(Then) else random.choices(list(_THEN), list(_THEN.values()))[0]
        payer, shop, key = random.choice(people), random.choice(merchants), f"{prefix}:story:{n}"
        amount_minor = random.randint(*_AMOUNTS_MINOR[Kind.PAYMENT])
        part = random.randint(1, amount_minor) if random.random() < 0.5 else None  # the bill was smaller; one came back
        match then:
            case Then.PROVIDER:
                yield Story(_pending(random, payer), then)
            case Then.REFUND:
                yield Story(Transfer(payer, shop, amount_minor, key, kind=Kind.PAYMENT), then, part)
            case Then.CAPTURE | Then.VOID:
                hold = Hold(payer, shop, amount_minor, key, purpose=Kind.PAYMENT, expires_in_ms=HOLD_MS)
                yield Story(hold, then, part if then is Then.CAPTURE else None)


def _pending(random: Random, person: int) -> Hold:
    """With an id, because a provider is told of it and may answer before it is there."""
    id = UUID(int=random.getrandbits(128), version=4)
    purpose = random.choice((Kind.TOP_UP, Kind.WITHDRAWAL))
    debit, credit = (_OUTSIDE, person) if purpose is Kind.TOP_UP else (person, _OUTSIDE)
    amount_minor = random.randint(*_AMOUNTS_MINOR[purpose])
    return Hold(debit, credit, amount_minor, id=id, purpose=purpose, expires_in_ms=PENDING_MS)


def _mixed_in(random: Random, made: list[Transfer], again: list[tuple[int, Transfer]]) -> list[Transfer]:
    """Each of again some time after the request at its number."""
    timed = [(float(at), request) for at, request in enumerate(made)]
    timed += [(at + random.uniform(1, RETRY_WITHIN), request) for at, request in again]
    timed.sort(key=lambda item: item[0])
    return [request for _, request in timed]
