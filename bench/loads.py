"""Loads besides plain payments, packed beforehand: every fraud rule on, holds and captures, chains, retries."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple
from uuid import UUID

from bench.scene import AMOUNT_MINOR, DEPLOYMENT, MERCHANT, PAYERS, SHARD, Pairs, check, payments, some_pairs
from engine import Engine, Hold, HoldChange, Kind, Transfer, WalletChange
from engine.chains import batches
from engine.domain.ids import id_deriver, origin_digester
from engine.domain.limits import TierLimits
from engine.domain.transfer import Request
from engine.requests import Packed, RequestPacker

TIER = 1
LIMITS = TierLimits(
    max_amount_minor=10**9,
    day_amount_minor=10**12,
    day_count=10**9,
    window_count=10**9,
    window_minutes=10,
    hour_amount_minor=10**12,
    device_attempts=10**9,
    ip_attempts=10**9,
    attempts_window_minutes=10,
    device_wallets=16,
    new_device_amount_minor=10**9,
    new_device_hours=1,
)
"""Every rule is on, and none ever stops a payment."""

RETRY_SHARE = 0.2
IPS = 1000
CHAIN = 3


class Load(NamedTuple):
    """prepare: once, on funded wallets. requests: about so many, each decided as POSTED."""

    prepare: Callable[[Engine], Awaitable[None]]
    requests: Callable[[int], Sequence[Request]]


def packed_batches(load: Load, count: int, size: int) -> Iterator[list[Packed]]:
    """The load's requests as post takes them, in batches of size; no chain is cut."""
    packer = RequestPacker(id_deriver(DEPLOYMENT), origin_digester(DEPLOYMENT), "", SHARD)
    packed = iter([packer.pack(request) for request in load.requests(count)])
    while batch := list(islice(packed, size)):
        for placed in batches(batch, [None] * len(batch)):
            yield [request for _, request in placed]


async def _nothing(_: Engine) -> None:
    pass


async def _all_rules(engine: Engine) -> None:
    check([await engine.set_tier_limits(TIER, LIMITS)])
    check(await engine.post([WalletChange(payer, Kind.SET_TIER, TIER) for payer in range(1, PAYERS + 1)]))


def _with_origins(count: int) -> list[Request]:
    """Each payer has a device of its own, and one of a thousand addresses."""
    return [
        Transfer(payer, MERCHANT, AMOUNT_MINOR, f"pay:{number}", device=f"device {payer}", ip=f"10.0.0.{payer % IPS}")
        for number, (payer, _) in enumerate(some_pairs(count, Pairs.HOT))
    ]


def _half_holds(count: int) -> list[Request]:
    """Of four requests two are payments, one is a hold, and one captures an earlier hold."""
    pairs = some_pairs(count, Pairs.HOT)
    made: list[Request] = []
    for number in range(0, count - count % 4, 4):
        hold_id = UUID(int=number + 1)
        made += [
            Transfer(*pairs[number], AMOUNT_MINOR, f"pay:{number}"),
            Hold(*pairs[number + 1], AMOUNT_MINOR, id=hold_id, purpose=Kind.PAYMENT, expires_in_ms=3_600_000),
            Transfer(*pairs[number + 2], AMOUNT_MINOR, f"pay:{number + 2}"),
            HoldChange(hold_id, Kind.CAPTURE, key=f"capture:{number}"),
        ]
    return made


def _chains(count: int) -> list[Request]:
    """A payment, its fee and its tip: all three or none. A batch holds whole chains."""
    made: list[Request] = []
    for number in range(0, count - count % CHAIN, CHAIN):
        payer = random.randrange(1, PAYERS + 1)
        made += [
            Transfer(payer, MERCHANT, AMOUNT_MINOR, f"chain:{number + part}", linked=part < CHAIN - 1)
            for part in range(CHAIN)
        ]
    return made


def _with_retries(count: int) -> list[Request]:
    """A fifth are payments that were sent before."""
    made: list[Request] = list(payments(count, Pairs.HOT, "pay"))
    for number in range(1, count):
        if random.random() < RETRY_SHARE:
            made[number] = made[random.randrange(number)]
    return made


PLAIN = Load(_nothing, lambda count: payments(count, Pairs.HOT, "pay"))
PLAIN_RANDOM = Load(_nothing, lambda count: payments(count, Pairs.RANDOM, "pay"))
ALL_RULES = Load(_all_rules, _with_origins)
HALF_HOLDS = Load(_nothing, _half_holds)
CHAINS_OF_3 = Load(_nothing, _chains)
RETRIES = Load(_nothing, _with_retries)
