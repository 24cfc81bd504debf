"""What a durable answer is worth: it comes when the ledger, or the replicas, have it, and never on another's word."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest

from engine import (
    Durability,
    Engine,
    Hold,
    InvalidRequest,
    OpenWallet,
    Outcome,
    OutcomeUnknown,
    Overloaded,
    Rule,
    ServerRefused,
    ShardNotOpen,
    Status,
    TierLimits,
    Transfer,
    Unavailable,
)
from engine import durability as waits
from engine.durability import _Persistence
from engine.shard import Shard
from gateway.embedded import EmbeddedServers
from tests.fixtures.ledger import LedgerWorld
from tests.fixtures.replicas import ReplicatedWorld
from tests.fixtures.shard import ShardDriver, request_record

DEADLINE_MS = 20_000
"""Of calls that shall work: long, because the machine may be busy."""

SHORT_MS = 400
"""Of calls that shall not."""


@asynccontextmanager
async def engine_of(world: LedgerWorld, **settings: Any) -> AsyncIterator[Engine]:
    async with Engine.connect(
        world.redis_url, world.postgres_url, **({"timeout_ms": DEADLINE_MS} | settings)
    ) as engine:
        yield engine


@pytest.fixture
def opened(funded_world: LedgerWorld) -> LedgerWorld:
    """Wallets with money, an open fence, and no persister."""
    return funded_world


def in_ledger(world: LedgerWorld, outcome: Outcome) -> bool:
    """Whether the ledger has the request, at this very moment."""
    query = "select count(*) from journal_event where shard = 0 and sequence = %s and id = %s"
    return bool(world.one(query, outcome.sequence, outcome.transfer_id) == 1)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.005)


async def stays_open(waiting: asyncio.Future[Any]) -> None:
    """For some polls; then the caller gives up."""
    await asyncio.sleep(3 * waits.POLL_S)
    assert not waiting.done()
    waiting.cancel()


async def unknown(call: Awaitable[Any], level: str) -> list[UUID]:
    """The ids whose durability could not be told by the deadline."""
    with pytest.raises(OutcomeUnknown, match=f"^accepted, but not known to be {level} before the deadline") as caught:
        await call
    return caught.value.transfer_ids


# Persisted


async def test_what_is_answered_as_persisted_is_in_the_ledger(opened: LedgerWorld) -> None:
    with opened.persister():
        async with engine_of(opened, durability="persisted") as engine:
            numbers = iter(range(10_000))

            async def checked(call: Awaitable[Outcome]) -> UUID:
                outcome = await call
                assert outcome.status in (Status.POSTED, Status.UNDER_REVIEW)
                assert in_ledger(opened, outcome)
                return outcome.transfer_id

            def key() -> str:
                return f"k{next(numbers)}"

            paid = await checked(engine.transfer(1, 2, 5, key=key(), expect_version=None))
            await checked(engine.pay(1, 2, 5, key=key()))
            topped_up = await checked(engine.top_up(1, 5, key=key()))
            await checked(engine.withdraw(1, 5, key=key()))
            await checked(engine.refund(paid, 2, key=key()))
            await checked(engine.chargeback(topped_up, key=key()))
            held = await checked(engine.hold(1, 2, 50, key=key()))
            await checked(engine.raise_hold(held, 10, key=key()))
            await checked(engine.capture(held, 10, final=False, key=key()))
            await checked(engine.capture(held))
            await checked(engine.void(await checked(engine.hold(1, 2, 50, key=key()))))
            await checked(engine.confirm(await checked(engine.start_top_up(1, 5, key=key())), "psp"))
            await checked(engine.fail(await checked(engine.start_withdrawal(1, 5, key=key()))))
            await checked(engine.define_currency("PTS", 0))
            await checked(engine.open_wallet(50, 1, "USD"))
            await checked(engine.freeze(50))
            await checked(engine.unfreeze(50))
            await checked(engine.set_overdraft_limit(50, 5))
            limits = TierLimits(max_amount_minor=10, review=frozenset({Rule.MAX_AMOUNT}))
            await checked(engine.set_tier_limits(1, limits))
            await checked(engine.set_tier(3, 1))
            await checked(engine.approve(await checked(engine.transfer(3, 2, 11, key=key()))))
            await checked(engine.reject(await checked(engine.hold(3, 2, 11, key=key()))))
            await checked(engine.close_wallet(50))
            listed = await engine.post([Transfer(1, 2, 1, key()), Hold(1, 2, 10**12, key()), OpenWallet(51, 1, "USD")])
            assert [in_ledger(opened, one) for one in listed] == [True, False, True]
            chained = await engine.post([Transfer(1, 2, 1, key()), Transfer(2, 1, 1, key())], linked=True)
            opened_too = await engine.open_wallets([OpenWallet(52, 1, "USD"), OpenWallet(53, 1, "EUR")])
            assert all(in_ledger(opened, one) for one in (*chained, *opened_too))


async def test_a_call_may_ask_for_more_or_less_than_its_engine(opened: LedgerWorld) -> None:
    async with engine_of(opened) as plain, engine_of(opened, durability=Durability.PERSISTED) as careful:
        assert (await plain.transfer(1, 2, 5, key="a")).posted
        await unknown(plain.transfer(1, 2, 5, key="b", durability="persisted", timeout_ms=SHORT_MS), "persisted")
        await unknown(careful.transfer(1, 2, 5, key="c", timeout_ms=SHORT_MS), "persisted")
        assert (await careful.transfer(1, 2, 5, key="d", durability="accepted")).posted
        with pytest.raises(InvalidRequest, match="^durability must be one of"):
            await plain.transfer(1, 2, 5, key="e", durability="for ever")
        assert (await plain.lookup(key="e")).status is Status.NOT_APPLIED


async def test_a_refusal_is_answered_at_once(opened: LedgerWorld) -> None:
    """There is no persister, and no replica."""
    async with engine_of(opened) as engine:
        for level in Durability:
            refused = await engine.transfer(1, 2, 2**52, key=f"r{level}", durability=level)
            assert refused.status is Status.INSUFFICIENT_FUNDS
            outcomes = await engine.post([Transfer(1, 2, 2**52, f"l{level}")], durability=level)
            assert outcomes[0].status is Status.INSUFFICIENT_FUNDS


async def test_a_replay_waits_as_the_first_answer_did(opened: LedgerWorld) -> None:
    async with engine_of(opened) as engine:
        asked = {"debit": 1, "credit": 2, "amount_minor": 5, "key": "k"}
        accepted = await engine.transfer(**asked)
        ids = await unknown(engine.transfer(**asked, durability="persisted", timeout_ms=SHORT_MS), "persisted")
        assert ids == [accepted.transfer_id]
        assert (await engine.lookup(key="k")).posted, "it was accepted, and stays so"
        waiting = asyncio.ensure_future(engine.transfer(**asked, durability="persisted"))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        with opened.persister():
            replayed = await waiting
            assert in_ledger(opened, replayed)
            assert replayed == accepted._replace(replayed=True)
            assert (await engine.transfer(**asked, durability="persisted")).replayed


async def test_of_a_list_every_id_is_named(opened: LedgerWorld) -> None:
    async with engine_of(opened) as engine:
        asked = [Transfer(1, 2, 1, "a"), Transfer(1, 2, 2**52, "b"), Transfer(1, 2, 1, "c")]
        ids = await unknown(engine.post(asked, durability="persisted", timeout_ms=SHORT_MS), "persisted")
        assert ids == [one.transfer_id for one in await engine.post(asked)]
        long = [Transfer(1, 2, 1, f"l{number}") for number in range(2500)]
        with opened.persister():
            outcomes = await engine.post(long, durability="persisted")
            assert in_ledger(opened, outcomes[0])
            assert in_ledger(opened, max(outcomes, key=lambda one: one.sequence))


async def test_the_persisters_word_is_enough(opened: LedgerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody polls, and calls share what is asked."""
    monkeypatch.setattr(waits, "POLL_S", 3600.0)
    asked = counted(monkeypatch, Shard, "confirm")
    with opened.persister():
        async with engine_of(opened, durability="persisted") as engine:
            await engine.transfer(1, 2, 1, key="first")
            for number in range(20):
                assert in_ledger(opened, await engine.transfer(1, 2, 1, key=f"single {number}"))
            asked.clear()
            calls = (engine.transfer(1 + n % 20, 1 + (n + 1) % 20, 1, key=f"many {n}") for n in range(2000))
            outcomes = await asyncio.gather(*calls)
            assert all(outcome.posted for outcome in outcomes)
            assert in_ledger(opened, max(outcomes, key=lambda one: one.sequence))
            assert len(asked) < 200


@pytest.mark.parametrize("how", ["silent", "cut"])
async def test_lost_messages_cost_time_only(opened: LedgerWorld, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """silent: they get lost though the connection stands; it is made anew then. cut: it breaks, time and again."""
    subscribed = counted(monkeypatch, Shard, "subscriber")
    if how == "silent":
        monkeypatch.setattr(_Persistence, "_hear", lambda *_: None)
    with opened.persister():
        async with engine_of(opened, durability="persisted") as engine:
            for number in range(8):
                if how == "cut":
                    opened.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                assert in_ledger(opened, await engine.transfer(1, 2, 1, key=f"k{number}"))
            if how == "silent":
                await until(lambda: len(subscribed) > 1)


async def test_a_server_that_took_over_without_it_does_not_count(opened: LedgerWorld) -> None:
    """Its ledger reaches the sequence that was answered, by somebody else's payment."""
    before = {key: opened.redis.dump(key) for key in opened.redis.scan_iter()}
    async with engine_of(opened) as engine:
        lost = await engine.transfer(1, 2, 5, key="lost")
        single = engine.transfer(1, 2, 5, key="lost", durability="persisted", timeout_ms=60_000)
        listed = engine.post([Transfer(1, 2, 5, "lost")], durability="persisted", timeout_ms=60_000)
        waiting = [asyncio.ensure_future(call) for call in (single, listed)]
        await asyncio.sleep(0.3)
        with opened.redis.pipeline() as pipe:
            pipe.flushall()
            for key, dump in before.items():
                pipe.restore(key, 0, dump)
            pipe.execute()
        await asyncio.to_thread(opened.drain)
        [other] = opened.shard.post([request_record(opened.id(), debit=3, credit=4)])
        assert (other.posted, other.sequence) == (True, lost.sequence)
        await asyncio.to_thread(opened.drain)
        assert opened.shard.meta()["persisted"] == lost.sequence
        for task in waiting:
            await stays_open(task)
        assert (await engine.lookup(key="lost")).status is Status.NOT_APPLIED
        paid = await engine.transfer(1, 2, 5, key="lost")
        assert (paid.replayed, paid.sequence) == (False, lost.sequence + 1)


@pytest.mark.parametrize("level", ["persisted", "replicated"])
async def test_what_redis_forgot_meanwhile_is_looked_for_in_the_ledger(
    opened: LedgerWorld, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    """Its generation is dropped between the answer and the question."""
    asked = {"debit": 1, "credit": 2, "amount_minor": 5, "key": "old"}
    async with engine_of(opened, replicas=0) as engine, Engine.connect(opened.redis_url, replicas=0) as blind:
        old = await engine.transfer(**asked)
        original = waits._confirmation

        def forget(outcome: Outcome) -> bytes:
            monkeypatch.setattr(waits, "_confirmation", original)
            with ThreadPoolExecutor(1) as thread:  # a persister needs a thread without a loop
                for _ in range(2):
                    thread.submit(opened.drain).result()
                    opened.shard.end_generation()
            return original(outcome)

        monkeypatch.setattr(waits, "_confirmation", forget)
        assert (await engine.transfer(**asked, durability=level)) == old._replace(replayed=True)
        kept = await blind.transfer(1, 2, 5, key="young")
        monkeypatch.setattr(waits, "_confirmation", forget)
        ids = await unknown(blind.transfer(1, 2, 5, key="young", durability=level, timeout_ms=SHORT_MS), level)
        assert ids == [kept.transfer_id], "nobody told this one of a ledger"


async def test_the_ledger_is_asked_while_redis_is_away(opened: LedgerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: Any) -> Any:
        raise Unavailable("it is away")

    monkeypatch.setattr(Shard, "confirm", away)
    async with engine_of(opened) as engine, Engine.connect(opened.redis_url) as blind:
        waiting = asyncio.ensure_future(engine.transfer(1, 2, 5, key="k", durability="persisted"))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await asyncio.to_thread(opened.drain)
        assert in_ledger(opened, await waiting)
        await unknown(blind.transfer(1, 2, 5, key="k", durability="persisted", timeout_ms=SHORT_MS), "persisted")


async def test_a_flushed_library_is_no_obstacle(opened: LedgerWorld) -> None:
    with opened.persister():
        async with engine_of(opened, durability="persisted", replicas=0) as engine:
            for number in range(3):
                opened.redis.execute_command("FUNCTION", "FLUSH")
                assert in_ledger(opened, await engine.transfer(1, 2, 5, key=f"k{number}"))
                waiting = [engine.transfer(1, 2, 5, key=f"{n} after {number}") for n in range(20)]
                tasks = [asyncio.ensure_future(call) for call in waiting]
                await asyncio.sleep(0.002)
                opened.redis.execute_command("FUNCTION", "FLUSH")
                assert all([in_ledger(opened, await task) for task in tasks])
                opened.redis.execute_command("FUNCTION", "FLUSH")
                assert (await engine.transfer(1, 2, 5, key=f"k{number}", durability="replicated")).replayed


# Replicated


@pytest.fixture
def replicated(replicated_world: ReplicatedWorld) -> ReplicatedWorld:
    """Wallets with money, open on a; b has all of it."""
    replicated_world.drain()
    replicated_world.open_wallets()
    replicated_world.drain()
    replicated_world.b.until_in_step_with(replicated_world.a)
    return replicated_world


async def test_what_is_answered_as_replicated_is_on_the_replica(replicated: ReplicatedWorld) -> None:
    async with engine_of(replicated) as engine:
        for number in range(20):
            paid = await engine.transfer(1, 2, 5, key=f"k{number}", durability="replicated")
            replica = ShardDriver(replicated.b.client, None)
            assert replica.meta()["sequence"] >= paid.sequence
        # A crash of all of them at once, and the primary's disk is gone.
        paid = await engine.transfer(1, 2, 5, key="last", durability="replicated")
        replicated.a.kill()
        replicated.b.kill()
        replicated.b.start()
        assert ShardDriver(replicated.b.client, None).meta()["sequence"] == paid.sequence


async def test_calls_share_the_wait_for_replicas(replicated: ReplicatedWorld) -> None:
    async with engine_of(replicated, durability="replicated") as engine:
        await engine.transfer(1, 2, 1, key="first")
        replicated.redis.config_resetstat()
        outcomes = await asyncio.gather(*(engine.transfer(1, 2, 1, key=f"k{n}") for n in range(2000)))
        assert all(outcome.posted for outcome in outcomes)
        stats: Any = replicated.redis.info("commandstats")
        assert stats["cmdstat_waitaof"]["calls"] < 100


async def test_a_replica_that_stands_still_is_waited_for_until_the_deadline(replicated: ReplicatedWorld) -> None:
    async with engine_of(replicated) as engine:
        assert (await engine.transfer(1, 2, 5, key="k0", durability="replicated")).posted
        replicated.b.signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            with pytest.raises(OutcomeUnknown) as caught:
                await engine.transfer(1, 2, 5, key="k1", durability="replicated", timeout_ms=1500)
            assert 1.4 < time.monotonic() - began < 10
            assert str(caught.value.__cause__) == "on 0 of 1 replicas"
            assert (await engine.transfer(1, 2, 5, key="k2")).posted, "accepted goes on"
            waiting = asyncio.ensure_future(engine.transfer(1, 2, 5, key="k1", durability="replicated"))
            await asyncio.sleep(0.3)
            assert not waiting.done()
        finally:
            replicated.b.signal(signal.SIGCONT)
        assert (await waiting).replayed


async def test_a_promoted_replica_without_it_never_says_yes(replicated: ReplicatedWorld) -> None:
    """Its disk, and that of its own replica, have all that it has: but not this payment, which only the dead one had.

    Nor does the answer come back by sending it again: it is decided anew.
    """
    world = replicated
    async with engine_of(world) as engine:
        world.b.promote()  # it goes on alone, so a's payments do not reach it
        waiting = asyncio.ensure_future(
            engine.transfer(1, 2, 5, key="lost", durability="replicated", timeout_ms=60_000)
        )
        await until(lambda: bool(world.a.client.exists(world.shard.keys.touch)))
        world.lead(world.b)
        world.a.kill()
        world.a.home.joinpath("appendonlydir").rename(world.a.home / "gone")
        world.a.start()
        world.a.follow(world.b)
        await asyncio.to_thread(world.drain)
        assert (await engine.transfer(1, 2, 5, key="other", durability="replicated")).posted
        await stays_open(waiting)
        assert (await engine.lookup(key="lost")).status is Status.NOT_APPLIED
        again = await engine.transfer(1, 2, 5, key="lost", durability="replicated")
        assert (again.posted, again.replayed) == (True, False)


async def test_a_payment_that_comes_back_from_the_ledger_counts(replicated: ReplicatedWorld) -> None:
    """The ledger had it, so the promoted replica is fed it: the same answer, and now on two servers."""
    world = replicated
    async with engine_of(world) as engine:
        world.b.promote()
        waiting = asyncio.ensure_future(engine.transfer(1, 2, 5, key="k", durability="replicated", timeout_ms=60_000))
        await until(lambda: bool(world.a.client.exists(world.shard.keys.touch)))
        await asyncio.to_thread(world.drain)
        world.lead(world.b)
        world.a.kill()
        world.a.home.joinpath("appendonlydir").rename(world.a.home / "gone")
        world.a.start()
        world.a.follow(world.b)
        await asyncio.to_thread(world.drain)
        paid = await waiting
        assert (paid.posted, paid.replayed) == (True, False)
        assert ShardDriver(world.a.client, None).meta()["sequence"] >= paid.sequence
        assert (await engine.lookup(key="k")) == paid._replace(replayed=True)


async def test_the_own_disk_alone(opened: LedgerWorld) -> None:
    """replicas=0: for a server that syncs only now and then, and a payment that shall be on its disk."""
    opened.redis.config_set("appendfsync", "everysec")
    try:
        async with engine_of(opened, replicas=0) as engine:
            assert (await engine.transfer(1, 2, 5, key="k", durability="replicated")).posted
            opened.redis.config_set("appendonly", "no")
            assert (await engine.transfer(1, 2, 5, key="k", durability="replicated")).replayed
    finally:
        opened.redis.config_set("appendonly", "yes")
        opened.redis.config_set("appendfsync", "always")
        await until(lambda: not opened.redis.info("persistence")["aof_rewrite_in_progress"])


async def test_both_products_tell_of_their_disk_and_of_the_ledger(shard: ShardDriver) -> None:
    url = f"unix://{shard.redis.connection_pool.connection_kwargs['path']}"
    async with Engine.connect(url, replicas=0, durability="replicated", timeout_ms=DEADLINE_MS) as engine:
        assert all(one.posted for one in await engine.open_wallets([OpenWallet(1, 1, "USD"), OpenWallet(2, 1, "USD")]))
        paid = await engine.top_up(1, 5, key="k")
        waiting = asyncio.ensure_future(engine.top_up(1, 5, key="k", durability="persisted"))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        shard.call("hotledger_advance", 1, paid.sequence, 0)
        assert (await waiting) == paid._replace(replayed=True)


# Bounds, cancelled callers, the end


async def test_no_more_wait_than_may(opened: LedgerWorld) -> None:
    async with engine_of(opened, max_queued=1024) as engine:
        tasks = [
            asyncio.ensure_future(engine.transfer(1, 2, 1, key=f"k{n}", durability="persisted", timeout_ms=3000))
            for n in range(1024)
        ]
        await until(lambda: opened.shard.meta()["sequence"] >= 1024)
        with pytest.raises(Overloaded, match="1024 calls wait for durability"):
            await engine.transfer(1, 2, 1, key="one more", durability="persisted")
        assert (await engine.lookup(key="one more")).status is Status.NOT_APPLIED
        assert (await engine.transfer(1, 2, 1, key="another")).posted
        for task in tasks[:1000]:
            task.cancel()
        await asyncio.gather(*tasks[:1000], return_exceptions=True)
        with opened.persister():
            assert all([(await task).posted for task in tasks[1000:]])
            assert (await engine.transfer(1, 2, 1, key="one more", durability="persisted")).posted


async def test_callers_who_gave_up_are_forgotten(opened: LedgerWorld) -> None:
    async with engine_of(opened) as engine:
        for turn in range(2):
            calls = [
                engine.transfer(1, 2, 1, key=f"{n} {turn}", durability=level, timeout_ms=300)
                for n in range(200)
                for level in ("persisted", "replicated")
            ]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(result) for result in results} <= {OutcomeUnknown, Unavailable}
        persistence, replication = engine._waits._persistence, engine._waits._replication
        # One more of each kind, still waiting, so that the loops go round.
        for level in ("persisted", "replicated"):
            with pytest.raises(OutcomeUnknown):
                await engine.transfer(1, 2, 1, key=level, durability=level, timeout_ms=1000)
        assert len(persistence._heap) + len(persistence._again) < 10
        assert len(replication._waiting) + len(replication._again) < 10
        assert engine._waits._calls == 0


async def test_the_end_of_an_engine_waits_for_those_who_wait(opened: LedgerWorld) -> None:
    async with engine_of(opened) as engine:
        task = asyncio.ensure_future(engine.transfer(1, 2, 1, key="k", durability="persisted"))
        late = asyncio.ensure_future(engine.transfer(1, 2, 1, key="k", durability="replicated", timeout_ms=SHORT_MS))
        await asyncio.sleep(0.1)
        draining = asyncio.ensure_future(asyncio.to_thread(opened.drain))
    assert task.done()
    assert (await task).posted
    assert isinstance(late.exception(), OutcomeUnknown)
    await draining


# Until the shard opens


@pytest.mark.parametrize("level", Durability)
async def test_a_closed_shard_is_waited_for(opened: LedgerWorld, level: Durability) -> None:
    async with engine_of(opened, replicas=0) as engine:
        opened.shard.call("hotledger_close")
        with pytest.raises(ShardNotOpen):
            await engine.transfer(1, 2, 5, key="k", timeout_ms=SHORT_MS, durability=level)
        waiting = asyncio.ensure_future(engine.transfer(1, 2, 5, key="k", durability=level))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        with opened.persister():
            paid = await waiting
        assert (paid.posted, paid.replayed) == (True, False)


async def test_a_restart_is_waited_for(own_world: tuple[LedgerWorld, EmbeddedServers]) -> None:
    """The server is killed under load; every call is answered within its deadline, by what the disk kept."""
    world, servers = own_world
    with world.persister():
        world.open_wallets()
        async with engine_of(world, replicas=0, timeout_ms=60_000) as engine:
            levels = list(Durability)
            tasks = [
                asyncio.ensure_future(engine.transfer(1, 2, 1, key=f"k{n}", durability=levels[n % 3]))
                for n in range(300)
            ]
            await asyncio.sleep(0.02)
            servers.kill_redis()
            servers.restart_redis()
            outcomes = [await task for task in tasks]
            assert all(outcome.posted for outcome in outcomes)
            world.until_persisted()
    assert {one.sequence for one in outcomes} <= set(range(1, world.shard.meta()["sequence"] + 1))
    world.assert_proved()


# What the servers really do


async def test_the_guarantee_of_the_documented_settings(opened: LedgerWorld) -> None:
    async with engine_of(opened) as engine, Engine.connect(opened.redis_url) as blind:
        found = engine.guarantee
        assert found.accepted == "the death of the server process and a power loss; not the loss of its machine"
        assert found.replicated == "the loss of the server's machine: it is on its disk and the disk of 1 replica"
        assert found.persisted.startswith("the loss of every Redis, and a power loss of Postgres' machine")
        assert (found.warnings, found.default, found.replicas) == ((), Durability.ACCEPTED, 1)
        assert found.postgres is not None
        assert found.postgres.fsync
        assert blind.guarantee.postgres is None
        assert blind.guarantee.persisted == "the loss of every Redis; how safe Postgres is, is not known here"


async def test_the_guarantee_is_read_again_behind_each_new_connection(opened: LedgerWorld) -> None:
    async with engine_of(opened) as engine:
        opened.redis.config_set("appendfsync", "everysec")
        try:
            await reconnected(opened, engine)
            assert engine.guarantee.accepted.startswith("the death of the server process at most")
            [warning] = engine.guarantee.warnings
            assert warning.startswith("appendfsync is everysec, so a power loss takes the last second or two")
        finally:
            opened.redis.config_set("appendfsync", "always")
        await reconnected(opened, engine)
        assert engine.guarantee.warnings == ()


async def test_replicas_without_a_fence_of_their_own(replicated: ReplicatedWorld) -> None:
    replicated.redis.config_set("min-replicas-to-write", 0)
    async with engine_of(replicated) as engine:
        assert engine.guarantee.redis.replicas == 1
        [warning] = engine.guarantee.warnings
        assert warning.startswith("accepted does not survive a split brain")
        replicated.redis.config_set("min-replicas-to-write", 1)
        await reconnected(replicated, engine)
        assert engine.guarantee.warnings == ()
    async with engine_of(replicated, durability="replicated", replicas=2) as engine:
        assert engine.guarantee.warnings == ("replicas that are connected: 1; that replicated waits for: 2",)


async def test_settings_that_may_not_be_read_are_taken_for_weak(opened: LedgerWorld) -> None:
    opened.redis.execute_command("ACL", "SETUSER", "clerk", "on", ">secret", "~*", "&*", "+@all", "-config")
    url = opened.redis_url.replace("unix://", "unix://clerk:secret@")
    try:
        async with Engine.connect(url) as engine:
            found = engine.guarantee
            assert found.accepted.startswith("the death of the server process at most")
            assert found.warnings == (
                "appendfsync may not be read (CONFIG GET): accepted is taken for less than a disk write",
            )
            assert found.redis.min_replicas is None
            assert (await engine.transfer(1, 2, 1, key="k")).posted
    finally:
        opened.redis.execute_command("ACL", "DELUSER", "clerk")


async def test_a_server_that_begins_to_evict_gets_no_payment(opened: LedgerWorld) -> None:
    """It was noeviction when the engine started; another one answers at the address now."""
    async with engine_of(opened) as engine:
        opened.redis.config_set("maxmemory-policy", "allkeys-lru")
        try:
            opened.redis.execute_command("CLIENT", "KILL", "TYPE", "normal")
            async with asyncio.timeout(20):
                while not (refusal := await refused(engine)):
                    await asyncio.sleep(0.005)
            assert "maxmemory-policy is allkeys-lru, which may delete balances" in refusal
        finally:
            opened.redis.config_set("maxmemory-policy", "noeviction")
        async with asyncio.timeout(20):
            while await refused(engine):
                await asyncio.sleep(0.005)


async def refused(engine: Engine) -> str:
    """Why the server's settings stop a payment; '' if they do not."""
    try:
        assert (await engine.transfer(1, 2, 1, key=f"at {time.monotonic()}")).posted
    except ServerRefused as error:
        return str(error)
    return ""


async def reconnected(world: LedgerWorld, engine: Engine) -> None:
    """Cut the engine's connections, and wait until it pays over new ones."""
    link = engine._shard._link
    assert link is not None
    before = link._wire
    world.redis.execute_command("CLIENT", "KILL", "TYPE", "normal")
    assert (await engine.transfer(1, 2, 1, key=f"after {time.monotonic()}")).posted
    assert link._wire is not before


def counted(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> list[float]:
    """When the method was called."""
    original, times = getattr(owner, name), []

    def call(*arguments: Any) -> Any:
        times.append(time.monotonic())
        return original(*arguments)

    monkeypatch.setattr(owner, name, call)
    return times
