"""Postgres is away under full load: payments go on up to the bound, memory stays flat, all of it drains by itself."""

from __future__ import annotations

import asyncio

import pytest

from engine import Engine, LedgerBacklog, OpenWallet, OutcomeUnknown, Status, Transfer
from gateway.embedded import EmbeddedServers
from tests.fixtures.ledger import LedgerWorld

MAX_BACKLOG = 5_000
WALLETS = range(1, 21)


async def test_the_bound_and_the_way_back(own_world: tuple[LedgerWorld, EmbeddedServers]) -> None:
    world, servers = own_world
    with world.persister(max_backlog=MAX_BACKLOG):
        async with Engine.connect(world.redis_url, world.postgres_url, timeout_ms=60_000) as engine:
            await engine.open_wallets([OpenWallet(wallet, 1, "USD") for wallet in WALLETS])
            for wallet in WALLETS:
                await engine.top_up(wallet, 10**9, key=f"fund-{wallet}", durability="persisted")
            servers.stop_postgres(immediate=True)
            posted, number = 0, 0
            while True:
                outcomes = await engine.post([Transfer(1, 2, 1, f"{number}-{n}") for n in range(200)])
                number += 1
                posted += sum(outcome.posted for outcome in outcomes)
                if not outcomes[-1].posted:
                    break
            assert {outcome.status for outcome in outcomes} <= {Status.POSTED, Status.LEDGER_BACKLOG}
            assert MAX_BACKLOG - 200 < posted <= MAX_BACKLOG

            # What is refused for the moment is kept nowhere: the memory that it takes is that of the calls under way.
            before = world.redis.info("memory")["used_memory"]
            for _ in range(100):
                refused = await engine.post([Transfer(1, 2, 1, f"refused-{n}") for n in range(200)])
                assert {outcome.status for outcome in refused} == {Status.LEDGER_BACKLOG}
            assert world.redis.info("memory")["used_memory"] - before < 1_000_000
            for level in ("accepted", "persisted"):
                with pytest.raises(LedgerBacklog):
                    await engine.transfer(1, 2, 1, key="one", durability=level, timeout_ms=300)
            # What was accepted before is told as it is, and is not called persisted.
            first = Transfer(1, 2, 1, "0-0")
            assert (await engine.post([first]))[0].replayed
            with pytest.raises(OutcomeUnknown):
                await engine.transfer(1, 2, 1, key="0-0", durability="persisted", timeout_ms=300)

            servers.start_postgres()
            assert (await engine.transfer(1, 2, 1, key="0-0", durability="persisted")).replayed
            while (await engine.post([Transfer(1, 2, 1, "refused-0")]))[0].status is Status.LEDGER_BACKLOG:
                await asyncio.sleep(0.05)
            assert (await engine.transfer(1, 2, 1, key="one", durability="persisted")).posted
        world.until_persisted()
    assert world.one("select count(*) from transfer") == posted + len(WALLETS) + 2
    world.assert_proved()
