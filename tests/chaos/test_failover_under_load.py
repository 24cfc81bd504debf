"""Primaries die and replicas take over while engines pay: what a level promises is kept, and nothing happens twice."""

from __future__ import annotations

import asyncio
import random
import time
from uuid import UUID

from engine import Engine, OpenWallet, Outcome, OutcomeUnknown, Unavailable
from gateway.persister_process import PersisterProcess
from tests.fixtures.replicas import ReplicatedWorld

WALLETS = range(1, 21)
CALLERS = 16
PATIENCE_S = 60.0
LATE_S = 2.0
"""How long after its arrival an answer may be noted on a busy machine."""


class Load:
    """Callers that pay, each at a level of its own, and what they were told, with the time of it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.acknowledged: dict[UUID, tuple[Outcome, str, float]] = {}
        self._done = asyncio.Event()

    async def begin(self) -> None:
        await self.engine.open_wallets([OpenWallet(wallet, 1, "USD") for wallet in WALLETS])
        for wallet in WALLETS:
            await self.engine.top_up(wallet, 10**9, key=f"fund-{wallet}", durability="persisted")
        self._callers = [asyncio.create_task(self._pay(number)) for number in range(CALLERS)]

    async def go_on(self) -> None:
        """Until each level has some more answers."""
        before = self.count()
        async with asyncio.timeout(PATIENCE_S):
            while any(now < then + 50 for now, then in zip(self.count(), before, strict=True)):
                await asyncio.sleep(0.02)

    def count(self) -> tuple[int, int]:
        """How many were accepted, and persisted."""
        levels = [level for _, level, _ in self.acknowledged.values()]
        return levels.count("accepted"), levels.count("persisted")

    async def end(self) -> None:
        self._done.set()
        await asyncio.gather(*self._callers)

    async def _pay(self, number: int) -> None:
        chance = random.Random(number)
        level = ("accepted", "persisted")[number % 2]
        while not self._done.is_set():
            transfer_id = UUID(bytes=chance.randbytes(15) + bytes([number + 1]))
            debit, credit = chance.sample(WALLETS, 2)
            try:
                outcome = await self.engine.transfer(debit, credit, 1, id=transfer_id, durability=level)
                self.acknowledged[transfer_id] = outcome, level, time.monotonic()
            except (OutcomeUnknown, Unavailable):
                pass


async def test_two_failovers(replicated_world: ReplicatedWorld) -> None:
    world = replicated_world
    lossy: list[tuple[float, float]] = []
    with PersisterProcess(world.redis_url, world.postgres_url, None):
        async with Engine.connect(world.redis_url, world.postgres_url, timeout_ms=20_000) as engine:
            load = Load(engine)
            await load.begin()
            for dying, rising in ((world.a, world.b), (world.b, world.a)):
                await load.go_on()
                began_at = time.monotonic()
                rising.promote()
                await asyncio.sleep(0.15)  # the old primary goes on, alone
                dying.kill()
                world.lead(rising)
                lossy.append((began_at, time.monotonic()))
                await load.go_on()
                dying.start()
                await asyncio.to_thread(dying.follow, rising)
            await load.end()
            last = await engine.transfer(1, 2, 1, key="last", durability="persisted")
            assert last.posted
    assert world.one("select epoch from shard_state") == 1, "fed, never rebuilt"
    world.assert_proved()
    with world.connect() as connection:
        ledger = {
            row[0]: tuple(row[1:])
            for row in connection.execute(
                "select t.id, t.sequence, d.available_after, c.available_after from transfer t "
                "join ledger_entry d on d.wallet_id = t.debit_wallet_id and d.version = t.debit_version "
                "join ledger_entry c on c.wallet_id = t.credit_wallet_id and c.version = t.credit_version"
            )
        }
    assert world.one("select count(*) from transfer_duplicate") == 0
    for transfer_id, (outcome, level, at) in load.acknowledged.items():
        given = (outcome.sequence, outcome.debit_available_minor, outcome.credit_available_minor)
        if ledger.get(transfer_id) != given:
            assert level == "accepted", f"{transfer_id} was {level} and is lost"
            assert any(began_at <= at <= ended_at + LATE_S for began_at, ended_at in lossy)
