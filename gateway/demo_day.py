"""A simulated day of a mobile-money town: who has a wallet, and what they ask for, all of it from one seed. Pure.

People get salaries in the morning, then pay merchants (a few of which get most of it, by Zipf's law), send each
other money, and withdraw. As in life, some lack the money, some clients send a request twice because the answer
got lost, and a few send the same key with another amount by mistake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from engine import Kind, OpenWallet, Transfer, external_wallet_id

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
RETRY_WITHIN = 500
"""How many requests later a lost answer's retry comes, at most."""

_MIX = {Kind.PAYMENT: 0.55, Kind.TRANSFER: 0.30, Kind.WITHDRAWAL: 0.08, Kind.TOP_UP: 0.07}
_AMOUNTS_MINOR = {
    Kind.PAYMENT: (50, 4_000),
    Kind.TRANSFER: (100, 20_000),
    Kind.WITHDRAWAL: (1_000, 50_000),
    Kind.TOP_UP: (500, 20_000),
}
_SALARY_MINOR = (40_000, 90_000)
_OUTSIDE = external_wallet_id(CURRENCY)


@dataclass(frozen=True)
class Day:
    """salaries come first; the rest in any order, because many people act at once."""

    openings: tuple[OpenWallet, ...]
    salaries: tuple[Transfer, ...]
    requests: tuple[Transfer, ...]

    @property
    def hot_merchant(self) -> int:
        return FIRST_MERCHANT


def simulate(seed: int, count: int) -> Day:
    """A day of count requests, salaries among them; the same for the same seed and count.

    count: at least MIN_REQUESTS. With few requests only a part of the people acts, so that money still goes round.
    """
    random = Random(seed)
    merchants = range(FIRST_MERCHANT, FIRST_MERCHANT + len(MERCHANTS))
    people = range(FIRST_PERSON, FIRST_PERSON + PEOPLE)
    active = people[: max(10, min(PEOPLE, count // 20))]
    openings = (*(OpenWallet(m, TOWN, CURRENCY) for m in merchants), *(OpenWallet(p, p, CURRENCY) for p in people))
    prefix = f"demo:{seed}:{count}"
    salaries = tuple(
        Transfer(_OUTSIDE, person, random.randint(*_SALARY_MINOR), f"{prefix}:salary:{person}", kind=Kind.TOP_UP)
        for person in active
        if random.random() < SALARIED
    )
    return Day(openings, salaries, tuple(_requests(random, prefix, count - len(salaries), active, merchants)))


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


def _mixed_in(random: Random, made: list[Transfer], again: list[tuple[int, Transfer]]) -> list[Transfer]:
    """Each of again some time after the request at its number."""
    timed = [(float(at), request) for at, request in enumerate(made)]
    timed += [(at + random.uniform(1, RETRY_WITHIN), request) for at, request in again]
    timed.sort(key=lambda item: item[0])
    return [request for _, request in timed]
