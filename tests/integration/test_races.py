"""Several engines at once on the same money: one winner each time, and afterwards everything adds up.

Which of the racers wins is left to chance; that exactly one does, and what follows from it, is not.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import pytest

from engine import (
    Engine,
    Hold,
    HoldChange,
    HoldState,
    Kind,
    OpenWallet,
    Outcome,
    Refund,
    Status,
    Transfer,
    WalletChange,
)
from engine.wire import HOLD
from tests.fixtures.proxy import Proxy, proxy_to
from tests.fixtures.shard import ShardDriver, reference_record
from tests.journal_replay import Replay

ENGINES = 4
Answer = TypeVar("Answer")
ENDED = frozenset({Status.HOLD_ALREADY_CAPTURED, Status.HOLD_ALREADY_VOIDED, Status.HOLD_EXPIRED})


def url_of(shard: ShardDriver) -> str:
    return f"unix://{shard.redis.connection_pool.connection_kwargs['path']}"


@asynccontextmanager
async def engines_of(shard: ShardDriver, *wallets: int, amount_minor: int = 1000) -> AsyncIterator[list[Engine]]:
    """Engines with connections of their own, and wallets with money. What happened must add up at the end."""
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(Engine.connect(url_of(shard))) for _ in range(ENGINES)]
        await fund(engines[0], *wallets, amount_minor=amount_minor)
        yield engines
    assert_all_adds_up(shard)


async def fund(engine: Engine, *wallets: int, amount_minor: int = 1000) -> None:
    await engine.open_wallets([OpenWallet(wallet, 1, "USD") for wallet in wallets])
    for wallet in wallets:
        if amount_minor:
            assert (await engine.top_up(wallet, amount_minor, key=f"fund-{wallet}")).posted


def assert_all_adds_up(shard: ShardDriver) -> None:
    """The journal replays to what Redis has; nothing was made or lost; what is locked is what open holds have left."""
    replay = Replay()
    replay.feed(shard.redis.xrange(shard.keys.journal))
    locked: Counter[int] = Counter()
    for packed in shard.redis.hgetall(shard.keys.holds).values():
        hold = HOLD.unpack(packed)
        locked[hold["debit"]] += hold["remaining"]
    for wallet_id, (available, locked_minor, version, *_) in replay.wallets.items():
        wallet = shard.wallet(wallet_id)
        assert (wallet["available"], wallet["locked"], wallet["version"]) == (available, locked_minor, version)
        assert locked_minor == locked[wallet_id]
        assert wallet_id < 0 or available >= 0
    assert sum(wallet[0] + wallet[1] for wallet in replay.wallets.values()) == 0


async def soon() -> None:
    """A moment that differs, so that the racers come in any order."""
    await asyncio.sleep(random.random() * 0.004)


async def race(*calls: Coroutine[Any, Any, Answer]) -> list[Answer]:
    """What the calls give, in their order here."""

    async def run(call: Coroutine[Any, Any, Answer]) -> Answer:
        await soon()
        return await call

    return await asyncio.gather(*map(run, calls))


async def expire(shard: ShardDriver, number: int, hold_id: UUID) -> Outcome:
    """The sweeper's call, on the connection of the shard's driver."""
    return await asyncio.to_thread(shard.one, reference_record(number, Kind.EXPIRE_HOLD, hold_id.int))


async def now(engine: Engine, wallet_id: int) -> tuple[int, int]:
    """(available, locked)"""
    balance = await engine.balance(wallet_id)
    assert balance is not None
    return balance.available_minor, balance.locked_minor


async def test_a_hold_ends_once(shard: ShardDriver) -> None:
    """Capture against void against another capture against its time against the sweeper."""
    winners: Counter[str] = Counter()
    async with engines_of(shard, 1, 2, amount_minor=10**6) as engines:
        posted = 0
        for number in range(60):
            held = await engines[0].hold(1, 2, 100, expires_in_ms=random.choice([1, 2, 4, 5000]), key=f"h{number}")
            hold_id = held.transfer_id
            captured, voided, other, *swept = await race(
                engines[0].capture(hold_id, 60),
                engines[1].void(hold_id),
                engines[2].capture(hold_id, key=f"c{number}"),
                *(expire(shard, number * 2 + n, hold_id) for n in range(2)),
            )
            await asyncio.sleep(0.005)
            swept.append(await expire(shard, 10**6 + number, hold_id))
            answered = {"captured": [captured], "voided": [voided], "other": [other], "swept": swept}
            [winner] = [name for name, outcomes in answered.items() for outcome in outcomes if outcome.posted]
            winners[winner] += 1
            statuses = {outcome.status for outcomes in answered.values() for outcome in outcomes}
            assert statuses <= ENDED | {Status.POSTED, Status.HOLD_NOT_DUE}
            posted += {"captured": 60, "other": 100}.get(winner, 0)
            [hold] = await engines[3].find_holds([hold_id])
            assert hold is not None
            assert hold.state is {
                "captured": HoldState.CAPTURED, "other": HoldState.CAPTURED, "voided": HoldState.VOIDED,
                "swept": HoldState.EXPIRED,
            }[winner]  # fmt: skip
            assert await now(engines[0], 1) == (10**6 - posted, 0)
            assert await now(engines[0], 2) == (10**6 + posted, 0)
    assert len(winners) >= 3, f"this was no race: {winners}"


@pytest.mark.parametrize("final", [False, True])
async def test_captures_never_take_more_than_the_hold(shard: ShardDriver, final: bool) -> None:
    async with engines_of(shard, 1, 2) as engines:
        for number in range(10):
            held = await engines[0].hold(1, 2, 50, key=f"h{number}")
            outcomes = await race(
                *(
                    engines[n % ENGINES].capture(held.transfer_id, 15, final=final, key=f"c{number}-{n}")
                    for n in range(12)
                )
            )
            statuses = Counter(outcome.status for outcome in outcomes)
            if final:
                assert statuses == {Status.POSTED: 1, Status.HOLD_ALREADY_CAPTURED: 11}
            else:
                assert statuses == {Status.POSTED: 3, Status.EXCEEDS_HOLD: 9}
                assert (await engines[1].capture(held.transfer_id)).amount_minor == 5
        assert await now(engines[0], 1) == ((850, 0) if final else (500, 0))


async def test_a_capture_without_a_key_is_one_capture_whoever_calls(shard: ShardDriver) -> None:
    async with engines_of(shard, 1, 2) as engines:
        held = await engines[0].hold(1, 2, 50, key="h")
        outcomes = await race(*(engines[n % ENGINES].capture(held.transfer_id) for n in range(12)))
        assert [outcome.posted for outcome in outcomes] == [True] * 12
        assert Counter(outcome.replayed for outcome in outcomes) == {True: 11, False: 1}
        assert len({outcome.sequence for outcome in outcomes}) == 1
        assert await now(engines[0], 2) == (1050, 0)


async def test_raising_against_capturing(shard: ShardDriver) -> None:
    raised_first = 0
    async with engines_of(shard, 1, 2, amount_minor=10**6) as engines:
        taken = 0
        for number in range(30):
            held = await engines[0].hold(1, 2, 100, key=f"h{number}")
            raised, captured = await race(
                engines[1].raise_hold(held.transfer_id, 50, key=f"r{number}"),
                engines[2].capture(held.transfer_id),
            )
            assert captured.posted
            if raised.posted:
                assert raised.sequence < captured.sequence
            else:
                assert raised.status is Status.HOLD_ALREADY_CAPTURED
            raised_first += raised.posted
            assert captured.amount_minor == (150 if raised.posted else 100)
            taken += captured.amount_minor
            assert await now(engines[0], 1) == (10**6 - taken, 0)
    assert 0 < raised_first < 30, "this was no race"


async def test_refunds_never_give_back_more_than_the_transfer(shard: ShardDriver) -> None:
    async with engines_of(shard, 1, 2, amount_minor=10**6) as engines:
        for number in range(12):
            paid = await engines[0].pay(1, 2, 100, key=f"p{number}")
            amounts = [random.choice([None, 10, 15, 40, 100]) for _ in range(12)]
            outcomes = await race(
                *(
                    engines[n % ENGINES].refund(paid.transfer_id, amount, key=f"r{number}-{n}")
                    for n, amount in enumerate(amounts)
                )
            )
            given_back = 0
            for amount, outcome in sorted(zip(amounts, outcomes, strict=True), key=lambda pair: pair[1].sequence):
                if outcome.posted:
                    assert outcome.amount_minor == (100 - given_back if amount is None else amount)
                    given_back += outcome.amount_minor
                else:
                    assert outcome.status is Status.REFUND_EXCEEDS_TRANSFER
            assert given_back <= 100
            rest = await engines[0].refund(paid.transfer_id, key=f"rest-{number}")
            assert given_back + rest.amount_minor == 100
        assert await now(engines[0], 1) == await now(engines[0], 2) == (10**6, 0)


async def test_a_captured_hold_is_refunded_by_each_of_its_captures(shard: ShardDriver) -> None:
    async with engines_of(shard, 1, 2) as engines:
        held = await engines[0].hold(1, 2, 90, key="h")
        captures = [await engines[0].capture(held.transfer_id, 30, final=n == 2, key=f"c{n}") for n in range(3)]
        outcomes = await race(
            *(
                engines[n % ENGINES].refund(one.transfer_id, 20, key=f"r{one.transfer_id}-{n}")
                for one in captures
                for n in range(4)
            )
        )
        assert Counter(outcome.status for outcome in outcomes) == {Status.POSTED: 3, Status.REFUND_EXCEEDS_TRANSFER: 9}
        assert await now(engines[0], 1) == (1000 - 90 + 60, 0)


async def test_no_payment_gets_past_a_freeze(shard: ShardDriver) -> None:
    """By the journal: between freeze and unfreeze there is no payment of the wallet."""
    async with engines_of(shard, 1, 2, amount_minor=10**6) as engines:
        stop = asyncio.Event()
        outcomes: list[Outcome] = []

        async def pay(number: int) -> None:
            n = 0
            while not stop.is_set():
                n += 1
                outcomes.append(await engines[number].pay(1, 2, 1, key=f"p{number}-{n}"))

        payers = [asyncio.ensure_future(pay(number)) for number in range(3)]
        frozen: list[tuple[int, int]] = []
        for _ in range(15):
            await asyncio.sleep(0.005)
            begin = await engines[3].freeze(1, credits=False)
            await asyncio.sleep(0.003)
            end = await engines[3].unfreeze(1, credits=False)
            assert begin.posted
            assert end.posted
            frozen.append((begin.sequence, end.sequence))
        await asyncio.sleep(0.005)
        stop.set()
        await asyncio.gather(*payers)
        statuses = Counter(outcome.status for outcome in outcomes)
        assert set(statuses) == {Status.POSTED, Status.DEBIT_FROZEN}, "this was no race"
        for outcome in outcomes:
            within = [begin for begin, end in frozen if begin <= outcome.sequence < end]
            assert bool(within) == (outcome.status is Status.DEBIT_FROZEN)


async def test_closing_against_a_credit(shard: ShardDriver) -> None:
    """Either the wallet closes and the money stays where it was, or the money came and the wallet stays open."""
    closed_first = 0
    async with engines_of(shard, 1, amount_minor=10**6) as engines:
        wallets = range(100, 130)
        await fund(engines[0], *wallets, amount_minor=0)
        for wallet in wallets:
            closed, paid, held = await race(
                engines[0].close_wallet(wallet),
                engines[1].transfer(1, wallet, 5, key=f"t{wallet}"),
                engines[2].hold(1, wallet, 5, key=f"h{wallet}"),
            )
            if closed.posted:
                assert {paid.status, held.status} <= {Status.POSTED, Status.WALLET_CLOSED}
                assert paid.status is Status.WALLET_CLOSED
                assert await now(engines[3], wallet) == (0, 0)
                if held.posted:
                    assert held.sequence < closed.sequence
                    captured = await engines[3].capture(held.transfer_id)
                    assert captured.status is Status.WALLET_CLOSED
            else:
                assert closed.status is Status.WALLET_NOT_EMPTY
                assert paid.posted
            closed_first += closed.posted
    assert 0 < closed_first < len(wallets), "this was no race"


async def test_one_key_for_many_contents_is_used_by_one(shard: ShardDriver) -> None:
    async with engines_of(shard, 1, 2, 3, amount_minor=10**6) as engines:
        for number in range(20):
            key = f"k{number}"
            held = await engines[0].hold(1, 3, 7, key=f"hold {key}")
            paid = await engines[0].pay(1, 3, 8, key=f"pay {key}")
            await asyncio.gather(*(engine.balance(1) for engine in engines))
            before = await now(engines[0], 3)
            outcomes = await race(
                *(engines[n % ENGINES].transfer(1, 2, 1 + n % 5, key=key) for n in range(10)),
                engines[0].pay(1, 2, 1, key=key),
                engines[1].hold(1, 2, 1, key=key),
                engines[2].capture(held.transfer_id, key=key),
                engines[3].refund(paid.transfer_id, key=key),
                engines[0].freeze(3, debits=False, key=key),
            )
            first = [outcome for outcome in outcomes if outcome.posted and not outcome.replayed]
            assert len(first) == 1
            for outcome in outcomes:
                if outcome.posted:
                    assert outcome._replace(replayed=False) == first[0]
                else:
                    assert outcome.status in (
                        Status.EXISTS_WITH_DIFFERENT_KIND, Status.EXISTS_WITH_DIFFERENT_AMOUNT,
                    )  # fmt: skip
            await engines[0].unfreeze(3)
            if outcomes[12] is first[0]:
                assert (await now(engines[0], 3))[0] == before[0] + 7


async def test_chains_against_each_other_happen_as_a_whole(shard: ShardDriver) -> None:
    """Many chains around a ring of wallets with little money: each leaves all of its transfers in a row, or none."""
    async with engines_of(shard, *range(1, 6), amount_minor=60) as engines:

        def chain(number: int) -> list[Any]:
            ring = random.sample(range(1, 6), 4)
            amounts = [random.randint(1, 40) for _ in range(3)]
            return [
                Transfer(debit, credit, amount, key=f"{number}-{at}")
                for at, (debit, credit, amount) in enumerate(zip(ring, ring[1:], amounts, strict=False))
            ]

        async def post(number: int) -> list[Outcome]:
            await soon()
            return await engines[number % ENGINES].post(chain(number), linked=True)

        async def alone(number: int) -> Outcome:
            await soon()
            debit, credit = random.sample(range(1, 6), 2)
            return await engines[number % ENGINES].transfer(debit, credit, random.randint(1, 40), key=f"alone {number}")

        answered = await asyncio.gather(*map(post, range(150)), *map(alone, range(100)))
        whole = failed = 0
        for outcomes in answered[:150]:
            statuses = Counter(outcome.status for outcome in outcomes)
            if statuses[Status.POSTED]:
                assert statuses == {Status.POSTED: 3}
                sequences = [outcome.sequence for outcome in outcomes]
                assert sequences == list(range(sequences[0], sequences[0] + 3))
                whole += 1
            else:
                assert statuses == {Status.LINKED_FAILED: 2, Status.INSUFFICIENT_FUNDS: 1}
                failed += 1
        assert whole
        assert failed
        owned = sum([sum(await now(engines[0], wallet)) for wallet in range(1, 6)])
        assert owned == 300


async def test_the_same_chain_from_many_callers_happens_once(shard: ShardDriver) -> None:
    async with engines_of(shard, 1, 2, 3) as engines:
        requests = [
            Transfer(1, 2, 100, key="a"),
            Hold(2, 3, 950, key="b"),
            WalletChange(3, Kind.SET_OVERDRAFT_LIMIT, 5, key="c"),
        ]
        longer = [*requests, Transfer(1, 3, 1, key="d")]
        chains = [requests, requests, longer, requests, [*reversed(requests)]]

        async def post(n: int) -> list[Outcome]:
            await soon()
            return await engines[n % ENGINES].post(chains[n % len(chains)], linked=True)

        answered = await asyncio.gather(*map(post, range(25)))
        statuses = [Counter(outcome.status for outcome in outcomes) for outcomes in answered]
        first = [outcomes for outcomes in answered if all(one.posted and not one.replayed for one in outcomes)]
        assert len(first) == 1
        for counted, outcomes in zip(statuses, answered, strict=True):
            if counted[Status.POSTED]:
                assert [one._replace(replayed=False) for one in outcomes] == first[0]
            else:
                assert set(counted) <= {Status.EXISTS_WITH_DIFFERENT_CHAIN, Status.LINKED_FAILED}
                assert counted[Status.EXISTS_WITH_DIFFERENT_CHAIN]


async def test_one_of_many_that_expect_a_version_gets_it(shard: ShardDriver) -> None:
    async with engines_of(shard, 1, 2) as engines:
        for number in range(15):
            balance = await engines[0].balance(1)
            assert balance is not None
            version = balance.version

            async def post(n: int, number: int = number, version: int = version) -> Outcome:
                await soon()
                request = Transfer(1, 2, 1, key=f"{number}-{n}", expect_version=version)
                [outcome] = await engines[n % ENGINES].post([request])
                return outcome

            statuses = Counter(outcome.status for outcome in await asyncio.gather(*map(post, range(8))))
            assert statuses == {Status.POSTED: 1, Status.CONDITION_FAILED: 7}


async def test_balancing_transfers_share_what_is_there(shard: ShardDriver) -> None:
    async with engines_of(shard, 1, 2) as engines:

        async def post(n: int) -> Outcome:
            await soon()
            request = Transfer(1, 2, random.randint(1, 300), key=f"k{n}", balancing=True)
            [outcome] = await engines[n % ENGINES].post([request])
            return outcome

        outcomes = await asyncio.gather(*map(post, range(30)))
        assert {outcome.status for outcome in outcomes} == {Status.POSTED, Status.INSUFFICIENT_FUNDS}
        assert sum(outcome.amount_minor for outcome in outcomes) == 1000
        assert await now(engines[0], 1) == (0, 0)


async def test_a_provider_that_says_yes_and_no_is_believed_once(shard: ShardDriver) -> None:
    confirmed = 0
    async with engines_of(shard, 1) as engines:
        for number in range(20):
            pending = await engines[0].start_top_up(1, 10, key=f"t{number}")
            yes, no, again = await race(
                engines[1].confirm(pending.transfer_id, "psp"),
                engines[2].fail(pending.transfer_id, "declined"),
                engines[3].confirm(pending.transfer_id, "psp"),
            )
            assert yes.status is again.status
            assert {yes.status, no.status} in (
                {Status.POSTED, Status.HOLD_ALREADY_CAPTURED}, {Status.POSTED, Status.HOLD_ALREADY_VOIDED},
            )  # fmt: skip
            confirmed += yes.posted
            assert await now(engines[0], 1) == (1000 + 10 * confirmed, 0)
    assert 0 < confirmed < 20, "this was no race"


# A connection that is cut between send and reply


class Given(NamedTuple):
    """hold: of 100, from wallet 1 to wallet 2. top_up: of 1,000, of wallet 1."""

    engine: Engine
    hold: UUID
    top_up: UUID


Lost = Callable[[Given], Coroutine[Any, Any, Any]]
LOST: dict[str, tuple[Lost, tuple[int, int], tuple[int, int]]] = {
    # what: (the call; (available, locked) of wallet 1 after it, and of wallet 2)
    "hold": (lambda given: given.engine.hold(1, 2, 50, key="k"), (850, 150), (0, 0)),
    "capture": (lambda given: given.engine.capture(given.hold), (900, 0), (100, 0)),
    "partial capture": (
        lambda given: given.engine.capture(given.hold, 30, final=False, key="k"),
        (900, 70),
        (30, 0),
    ),
    "raise": (lambda given: given.engine.raise_hold(given.hold, 50, key="k"), (850, 150), (0, 0)),
    "void": (lambda given: given.engine.void(given.hold), (1000, 0), (0, 0)),
    "refund": (lambda given: given.engine.refund(given.top_up, 300, key="k"), (600, 100), (0, 0)),
    "chargeback": (lambda given: given.engine.chargeback(given.top_up, key="k"), (-100, 100), (0, 0)),
    "chain": (
        lambda given: given.engine.post(
            [
                Transfer(1, 2, 10, key="a"),
                HoldChange(given.hold, Kind.CAPTURE, 60, key="b"),
                Refund(given.top_up, 5, key="c"),
                Hold(2, 1, 7, key="d"),
            ],
            linked=True,
        ),
        (925, 0),
        (63, 7),
    ),
    "freeze": (lambda given: given.engine.freeze(1), (900, 100), (0, 0)),
    "balancing": (
        lambda given: given.engine.post([Transfer(1, 2, 5000, key="k", balancing=True)]),
        (0, 100),
        (900, 0),
    ),
    "refused chain": (
        lambda given: given.engine.post([Transfer(1, 2, 10, key="a"), Transfer(1, 2, 5000, key="b")], linked=True),
        (900, 100),
        (0, 0),
    ),
}


async def lost_once(proxy: Proxy, call: Coroutine[Any, Any, Any]) -> Any:
    """Make the call, and lose the connection when the server has decided and its reply is on the way."""
    proxy.swallow_replies = True
    swallowed = proxy.replies_swallowed
    under_way = asyncio.ensure_future(call)
    while proxy.replies_swallowed == swallowed:
        await asyncio.sleep(0.001)
    proxy.cut()
    proxy.swallow_replies = False
    return await under_way


@pytest.mark.parametrize("what", LOST)
async def test_what_was_lost_is_sent_again_and_happens_once(shard: ShardDriver, tmp_path: Path, what: str) -> None:
    call, *expected = LOST[what]
    async with proxy_to(url_of(shard).removeprefix("unix://"), tmp_path) as (proxy, url), Engine.connect(url) as engine:
        await fund(engine, 1, 2, amount_minor=0)
        top_up = (await engine.top_up(1, 1000, key="t")).transfer_id
        hold = (await engine.hold(1, 2, 100, key="h")).transfer_id
        before = shard.meta()["sequence"]
        answered = await lost_once(proxy, call(Given(engine, hold, top_up)))
        outcomes: list[Outcome] = [answered] if isinstance(answered, Outcome) else answered
        assert all(outcome.replayed for outcome in outcomes), "the lost one was decided, so its retry is a replay"
        accepted = sum(outcome.posted for outcome in outcomes)
        assert shard.meta()["sequence"] == before + accepted
        assert [await now(engine, wallet) for wallet in (1, 2)] == expected
    replay = Replay()
    replay.feed(shard.redis.xrange(shard.keys.journal))
    assert replay.sequence == before + accepted
