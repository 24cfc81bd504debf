"""Servers and persisters die under load: what was acknowledged is in the ledger exactly once, and all of it adds up."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from engine import Engine, OpenWallet, Outcome, OutcomeUnknown, Unavailable
from gateway.embedded import EmbeddedServers
from gateway.persister_process import PersisterProcess
from persister.migrate import migrate
from persister.reconcile import reconcile

WALLETS = range(1, 41)
MERCHANT = 1
CALLERS = 24


class World:
    """Servers and a persister of their own for one test, and a record of every answer that was given."""

    def __init__(self, servers: EmbeddedServers, persister: PersisterProcess) -> None:
        self.servers = servers
        self.persister = persister
        self.acknowledged: dict[UUID, Outcome] = {}
        self.unknown: set[UUID] = set()
        self.unavailable = 0

    async def load_while(self, fault: Callable[[], Awaitable[None]], *, timeout_ms: int = 20_000) -> None:
        """Pay with many callers, let the fault happen in the middle, stop, and settle what is unknown."""
        async with Engine.connect(self.servers.redis_url, self.servers.postgres_url, timeout_ms=20_000) as engine:
            await engine.open_wallets([OpenWallet(wallet, 1, "USD") for wallet in WALLETS])
            for wallet in WALLETS:
                await engine.top_up(wallet, 10**9, key=f"fund-{wallet}")
            done = asyncio.Event()
            callers = [
                asyncio.ensure_future(self._caller(engine, number, done, timeout_ms)) for number in range(CALLERS)
            ]
            try:
                await fault()
            finally:
                done.set()
                await asyncio.gather(*callers)
            for transfer_id in list(self.unknown):
                found = await engine.lookup(id=transfer_id)
                if found.posted:
                    self.acknowledged[transfer_id] = found

    async def _caller(self, engine: Engine, number: int, done: asyncio.Event, timeout_ms: int) -> None:
        chance = random.Random(number)
        while not done.is_set():
            transfer_id = UUID(bytes=chance.randbytes(15) + bytes([number + 1]))
            debit, credit = (
                chance.sample(WALLETS, 2) if chance.random() < 0.5 else (chance.choice(WALLETS[1:]), MERCHANT)
            )
            amount_minor = chance.choice([1, 100, 10**8])
            try:
                outcome = await engine.transfer(debit, credit, amount_minor, id=transfer_id, timeout_ms=timeout_ms)
                if outcome.posted:
                    self.acknowledged[transfer_id] = outcome
            except OutcomeUnknown:
                self.unknown.add(transfer_id)
            except Unavailable:
                self.unavailable += 1

    def prove(self, at_least: int) -> None:
        """Everything acknowledged is in the ledger once, with the answer given, nothing else is, it reconciles."""
        report = reconcile(self.servers.redis_url, self.servers.postgres_url)
        assert report.ok, report.differences
        assert len(self.acknowledged) >= at_least
        with psycopg.connect(self.servers.postgres_url) as connection:
            rows = connection.execute(
                "select t.id, t.sequence, d.available_after, c.available_after from transfer t "
                "join ledger_entry d on d.wallet_id = t.debit_wallet_id and d.version = t.debit_version "
                "join ledger_entry c on c.wallet_id = t.credit_wallet_id and c.version = t.credit_version "
                "where t.kind = 1"
            ).fetchall()
        ledger = {row[0]: tuple(row[1:]) for row in rows}
        assert len(ledger) == len(rows)
        for transfer_id, outcome in self.acknowledged.items():
            given = (outcome.sequence, outcome.debit_available_minor, outcome.credit_available_minor)
            assert ledger.get(transfer_id) == given, f"{transfer_id} was acknowledged with {given}"
        assert ledger.keys() - self.acknowledged.keys() == set(), "applied, and never acknowledged or found"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with EmbeddedServers(tmp_path / "data") as servers:
        migrate(servers.postgres_url)
        with PersisterProcess(servers.redis_url, servers.postgres_url, None) as persister:
            yield World(servers, persister)


async def test_valkey_is_killed_under_load(world: World) -> None:
    async def kill_three_times() -> None:
        for _ in range(3):
            await asyncio.sleep(0.4)
            world.servers.kill_redis()
            await asyncio.sleep(0.2)
            await asyncio.to_thread(world.servers.restart_redis)
        await asyncio.sleep(0.8)

    await world.load_while(kill_three_times)
    world.prove(at_least=1000)


async def test_postgres_crashes_under_load_and_payments_go_on(world: World) -> None:
    during_outage = 0

    async def crash_twice() -> None:
        nonlocal during_outage
        for _ in range(2):
            await asyncio.sleep(0.4)
            await asyncio.to_thread(world.servers.stop_postgres, immediate=True)
            before = len(world.acknowledged)
            await asyncio.sleep(0.5)
            during_outage += len(world.acknowledged) - before
            await asyncio.to_thread(world.servers.start_postgres)
        await asyncio.sleep(0.5)

    await world.load_while(crash_twice)
    assert during_outage > 100
    world.prove(at_least=1000)


async def test_persisters_are_killed_under_load(world: World) -> None:
    async def kill_often() -> None:
        chance, killed = random.Random(5), None
        for _ in range(4):
            while world.persister.pid == killed:
                await asyncio.sleep(0.02)
            await asyncio.sleep(chance.uniform(0.3, 1.0))
            killed = world.persister.pid
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
        await asyncio.sleep(0.5)

    await world.load_while(kill_often)
    world.prove(at_least=1000)


async def test_two_persisters_and_one_of_them_stalls(world: World) -> None:
    """A leader that is stopped keeps the lock but writes nothing; when it is killed the other goes on."""

    async def stall() -> None:
        with PersisterProcess(world.servers.redis_url, world.servers.postgres_url, None):
            await asyncio.sleep(0.5)
            assert world.persister.pid is not None
            os.kill(world.persister.pid, signal.SIGSTOP)
            await asyncio.sleep(0.7)
            os.kill(world.persister.pid, signal.SIGCONT)
            await asyncio.sleep(0.3)
            os.kill(world.persister.pid, signal.SIGKILL)
            await asyncio.sleep(0.7)

    await world.load_while(stall)
    world.prove(at_least=1000)


async def test_everything_is_killed_at_once(world: World) -> None:
    async def kill_all() -> None:
        await asyncio.sleep(0.6)
        assert world.persister.pid is not None
        os.kill(world.persister.pid, signal.SIGKILL)
        world.servers.kill_redis()
        await asyncio.to_thread(world.servers.stop_postgres, immediate=True)
        await asyncio.to_thread(world.servers.start_postgres)
        await asyncio.to_thread(world.servers.restart_redis)
        await asyncio.sleep(1.0)

    await world.load_while(kill_all)
    world.prove(at_least=500)


async def test_a_stalled_server_makes_outcomes_unknown_and_lookup_settles_them(world: World) -> None:
    async def stall() -> None:
        pid = int((world.servers.data_dir / "valkey.lock").read_text())
        for _ in range(2):
            await asyncio.sleep(0.3)
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(0.8)
            os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(0.5)

    await world.load_while(stall, timeout_ms=300)
    assert world.unknown
    world.prove(at_least=500)
