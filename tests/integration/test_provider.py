"""Top-ups and withdrawals that a simulated provider answers late, twice, out of order, too early, or never."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from random import Random
from typing import NamedTuple
from uuid import UUID

import pytest

from engine import Engine, HoldState, Kind, Status, Unavailable
from gateway.provider import MAX_ATTEMPTS, Habits, Plan, Provider, Word, plan
from persister import hold_queries
from tests.fixtures.ledger import LedgerWorld

WALLETS = range(1, 21)
FUNDS = 100_000
COUNT = 240
HABITS = Habits(fails=0.25, silent=0.15, twice=0.4, max_delay_s=0.25)
PATIENT_MS, SHORT_MS, OVER_MS = 60_000, 600, 1
"""Longer than any word takes; for those of which no word comes; and over before any word comes."""

LATE = 0.1
ENDS = {Word.CONFIRMED: HoldState.CAPTURED, Word.FAILED: HoldState.VOIDED, None: HoldState.EXPIRED}


class Pending(NamedTuple):
    """expires_in_ms: OVER_MS for one whose word comes too late."""

    id: UUID
    kind: Kind
    wallet: int
    amount_minor: int
    plan: Plan
    expires_in_ms: int

    @property
    def end(self) -> HoldState:
        return HoldState.EXPIRED if self.expires_in_ms == OVER_MS else ENDS[self.plan.word]


def pendings(seed: int) -> list[Pending]:
    random = Random(seed)
    return list(_pendings(random, seed))


def _pendings(random: Random, seed: int) -> Iterator[Pending]:
    for _ in range(COUNT):
        id = UUID(int=random.getrandbits(128), version=4)
        made = plan(seed, id, HABITS)
        expires_in_ms = SHORT_MS if made.word is None else OVER_MS if random.random() < LATE else PATIENT_MS
        kind = random.choice((Kind.TOP_UP, Kind.WITHDRAWAL))
        yield Pending(id, kind, random.choice(WALLETS), random.randint(1, 900), made, expires_in_ms)


async def begin(engine: Engine, provider: Provider, pending: Pending, random: Random) -> None:
    """A card may be charged before we know of it; a payout is asked for only when its money is locked."""
    early = pending.kind is Kind.TOP_UP and pending.expires_in_ms != OVER_MS
    if early:
        provider.order(pending.id)
        await asyncio.sleep(random.uniform(0, HABITS.max_delay_s))
    start = engine.start_top_up if pending.kind is Kind.TOP_UP else engine.start_withdrawal
    started = await start(pending.wallet, pending.amount_minor, id=pending.id, expires_in_ms=pending.expires_in_ms)
    assert started.status is Status.POSTED
    if pending.expires_in_ms == OVER_MS:
        await asyncio.sleep(0.05)
    provider.order(pending.id)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_each_pending_ends_as_its_provider_or_its_time_says(world: LedgerWorld, seed: int) -> None:
    asked = pendings(seed)
    assert {pending.end for pending in asked} == set(ENDS.values())
    with world.persister():
        async with Engine.connect(world.redis_url, world.postgres_url) as engine:
            for wallet in WALLETS:
                await engine.open_wallet(wallet, wallet, "USD")
                await engine.top_up(wallet, FUNDS, key=f"start-{wallet}")
            async with Provider(engine, seed, HABITS) as provider, asyncio.TaskGroup() as group:
                for pending in asked:
                    group.create_task(begin(engine, provider, pending, Random(pending.id.int)))

            # What the provider said, and what it was answered.
            answers = provider.answers
            assert provider.lost == 0
            assert answers[Word.CONFIRMED, Status.HOLD_NOT_FOUND] > 0  # it came before the pending top-up
            assert answers[Word.FAILED, Status.HOLD_NOT_FOUND] > 0
            assert answers[Word.CONFIRMED, Status.HOLD_EXPIRED] > 0
            said = sum(len(pending.plan.after_s) for pending in asked)
            taken = sum(count for (_, status), count in answers.items() if status is not Status.HOLD_NOT_FOUND)
            assert taken == said > COUNT

            await until_nothing_is_open(world)
            balances = {balance.wallet_id: balance for balance in await engine.balances(WALLETS) if balance}
            outside = await engine.balance(engine.external_wallet("USD"))
        world.until_persisted()

        with world.connect() as ledger:
            for pending in asked:
                held = hold_queries.hold(ledger, pending.id)
                assert held is not None
                assert (held.state, held.purpose, held.remaining_minor) == (pending.end, pending.kind, 0)
                assert held.captured_minor == (pending.amount_minor if pending.end is HoldState.CAPTURED else 0)
        world.assert_proved()

    expected = dict.fromkeys(WALLETS, FUNDS)
    for pending in asked:
        if pending.end is HoldState.CAPTURED:
            sign = 1 if pending.kind is Kind.TOP_UP else -1
            expected[pending.wallet] += sign * pending.amount_minor
    assert {wallet: balance.available_minor for wallet, balance in balances.items()} == expected
    assert {balance.locked_minor for balance in balances.values()} == {0}
    assert outside is not None
    assert (outside.available_minor, outside.locked_minor) == (-sum(expected.values()), 0)


async def until_nothing_is_open(world: LedgerWorld) -> None:
    """The sweeper has ended what nobody answered."""
    for _ in range(500):
        with world.connect() as ledger:
            if not hold_queries.open_holds(ledger):
                return
        await asyncio.sleep(0.02)
    pytest.fail("a hold stayed open")


def test_a_plan_follows_from_seed_and_payment() -> None:
    ids = [UUID(int=number + 1) for number in range(2000)]
    plans = [plan(7, id, Habits()) for id in ids]
    assert plans == [plan(7, id, Habits()) for id in ids]
    assert plans != [plan(8, id, Habits()) for id in ids]
    share = {word: sum(made.word is word for made in plans) / len(plans) for word in (None, *Word)}
    assert share[None] == pytest.approx(0.03, abs=0.015)
    assert share[Word.FAILED] == pytest.approx(0.1, abs=0.03)
    assert all((made.word is None) == (made.after_s == ()) for made in plans)
    assert max(len(made.after_s) for made in plans) == 2


async def test_word_that_is_never_taken_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a top-up that we never heard of; and a server that is away is asked again as well."""
    monkeypatch.setattr("gateway.provider.FIRST_RETRY_S", 0.0001)
    calls: list[str] = []

    class Away:
        async def confirm(self, _: UUID, reference: str) -> None:
            calls.append(reference)
            raise Unavailable("away")

    always = Habits(fails=0, silent=0, twice=0, max_delay_s=0)
    async with Provider(Away(), 1, always) as provider:  # type: ignore[arg-type]
        made = provider.order(UUID(int=1))
        assert provider.order(UUID(int=1)) is made
    assert calls == [made.text] * MAX_ATTEMPTS
    assert provider.lost == 1
    assert not provider.answers
