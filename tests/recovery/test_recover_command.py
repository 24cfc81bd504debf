"""`hotledger recover` as its users run it."""

from __future__ import annotations

import asyncio
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from engine import Engine
from engine.wire import MAX_BATCH
from gateway.exits import Exit
from persister.connection import connect
from persister.ledger import Ledger
from tests.fixtures.cli import Cli, run_process, running_up, started, wait_for
from tests.fixtures.ledger import LedgerWorld
from tests.fixtures.rebuild import image_of, put_back, save
from tests.fixtures.recovery import do_everything, of_epoch
from tests.fixtures.servers import wipe_redis
from tests.fixtures.shard import new_shard, opening_record, request_record


@pytest.fixture
def environment(funded_world: LedgerWorld) -> dict[str, str]:
    return {"HOTLEDGER_REDIS_URL": funded_world.redis_url, "HOTLEDGER_POSTGRES_URL": funded_world.postgres_url}


@pytest.fixture
def cli(environment: dict[str, str]) -> Cli:
    return Cli(environment=environment)


def test_mends_what_differs(funded_world: LedgerWorld, cli: Cli) -> None:
    do_everything(funded_world)
    funded_world.drain()
    image = image_of(funded_world.shard)
    damaged = funded_world.shard.keys.wallet(3)
    funded_world.redis.set(damaged, funded_world.redis.get(funded_world.shard.keys.wallet(4)))
    funded_world.redis.delete(funded_world.shard.keys.holds)
    assert not funded_world.reconcile().ok
    figures = cli.json("recover")
    assert image_of(funded_world.shard) == of_epoch(image, 2)
    assert funded_world.is_open()
    assert (figures["shard"], figures["epoch"], figures["sequence"]) == (0, 2, funded_world.shard.meta()["sequence"])
    assert (figures["drained"], figures["discarded"]) == (0, 0)
    assert figures["loaded"]["wallets"] == figures["loaded"]["verified"] == 22
    assert figures["loaded"]["outcomes"] == figures["sequence"]
    assert figures["loaded"]["holds"] == 4
    assert 0 < figures["seconds"] < 60
    assert 2**20 < figures["peak_memory_bytes"] < 2**30
    funded_world.pay(100)
    funded_world.drain()
    funded_world.assert_proved()


def test_tells_people(funded_world: LedgerWorld, cli: Cli) -> None:
    wipe_redis(funded_world.redis_url)
    said = cli.done("recover").out
    assert "Rebuilt shard 0 at sequence 341 as epoch 2: 21 wallets, 341 outcomes, 0 open holds, 0 tiers." in said
    assert "Verified 21 wallets. Open." in said
    assert "MiB" in said


def test_drains_what_only_redis_has(funded_world: LedgerWorld, cli: Cli) -> None:
    payment = request_record(funded_world.id(), amount=77)
    given = funded_world.shard.one(payment)
    funded_world.pay(500)
    assert cli.json("recover")["drained"] == 501
    assert funded_world.one("select count(*) from transfer") == 20 + 300 + 501
    assert funded_world.shard.one(payment) == given._replace(replayed=True)
    funded_world.drain()
    funded_world.assert_proved()


def test_a_persister_has_to_be_stopped(funded_world: LedgerWorld, cli: Cli) -> None:
    with funded_world.persister():
        refused = cli("recover", "--wait-s", 0.3)
        assert refused.status == Exit.UNAVAILABLE
        assert "a persister leads shard 0: stop it and those that stand by" in refused.err
        assert "waiting for the persister" in refused.err
        assert funded_world.is_open()
        assert funded_world.shard.meta()["epoch"] == 1


def test_waits_for_a_persister_that_stops(funded_world: LedgerWorld, cli: Cli) -> None:
    with connect(funded_world.postgres_url) as connection:
        assert Ledger(connection, 0).try_to_lead()
        stops = threading.Timer(0.5, connection.close)
        stops.start()
        assert cli.json("recover", "--wait-s", 20)["epoch"] == 2
        stops.join()


def test_payments_wait_for_it(funded_world: LedgerWorld, environment: dict[str, str]) -> None:
    """Engines that are connected need not do anything."""

    async def pay_meanwhile() -> list[Any]:
        async with Engine.connect(funded_world.redis_url, funded_world.postgres_url, timeout_ms=30_000) as engine:
            first = await engine.transfer(1, 2, 5, key="before")
            recovering = asyncio.create_task(
                asyncio.to_thread(run_process, "recover", "--json", environment=environment)
            )
            during = []
            while not recovering.done():
                during.append(await engine.transfer(1, 2, 5, key=f"during {len(during)}"))
            assert (await recovering).json["epoch"] == 2
            again = await engine.transfer(1, 2, 5, key="before")
            assert (again.replayed, again.sequence) == (True, first.sequence)
            return [first, *during, await engine.transfer(1, 2, 5, key="after")]

    outcomes = asyncio.run(pay_meanwhile())
    assert all(outcome.posted for outcome in outcomes)
    funded_world.drain()
    assert funded_world.one("select count(*) from transfer where amount = 5") == len(outcomes)
    funded_world.assert_proved()


class TestDiscard:
    def fork(self, world: LedgerWorld, here: int, there: int) -> None:
        """The ledger goes on by `there` payments, Redis from the same place by `here` others."""
        saved = save(world.shard)
        world.pay(there, batch=7)
        world.drain()
        put_back(world.shard, saved)
        world.shard.open()
        world.pay(here, batch=10)

    @pytest.mark.parametrize(("here", "there"), [(40, 40), (10, 60), (200, 20)])
    def test_another_history(self, funded_world: LedgerWorld, cli: Cli, here: int, there: int) -> None:
        self.fork(funded_world, here, there)
        before = funded_world.shard.image()
        stopped = cli("recover")
        assert stopped.status == Exit.FATAL
        would = f"`hotledger recover --discard-redis` would drop {here} records that only Redis has"
        assert would in stopped.err
        assert funded_world.shard.image() == before
        assert not funded_world.is_open()
        assert cli.json("recover", "--discard-redis")["discarded"] == here
        assert funded_world.shard.meta()["sequence"] == 341 + there
        funded_world.drain()
        funded_world.assert_proved()

    def test_a_tail_that_does_not_lead_there(self, funded_world: LedgerWorld, cli: Cli) -> None:
        funded_world.pay(300)
        funded_world.redis.xtrim(funded_world.shard.keys.journal, maxlen=1, approximate=False)
        stopped = cli("recover")
        assert stopped.status == Exit.FATAL
        assert "sequences 342 to 541 are no longer in the journal" in stopped.err
        assert "would drop an unknown number of records" in stopped.err
        said = cli.done("recover", "--discard-redis").out
        assert "DISCARDED: an unknown number of records that only Redis had." in said
        funded_world.drain()
        assert funded_world.shard.meta()["sequence"] == 341
        funded_world.assert_proved()

    def test_it_is_not_needed(self, funded_world: LedgerWorld, cli: Cli) -> None:
        """What can be drained is, even so."""
        funded_world.pay(50)
        figures = cli.json("recover", "--discard-redis")
        assert (figures["drained"], figures["discarded"]) == (50, 0)

    def test_a_redis_of_another_deployment_is_left_alone(self, funded_world: LedgerWorld, cli: Cli) -> None:
        wipe_redis(funded_world.redis_url)
        new_shard(funded_world.redis)
        before = funded_world.shard.image()
        stopped = cli("recover", "--discard-redis")
        assert stopped.status == Exit.FATAL
        assert "different deployments" in stopped.err
        assert funded_world.shard.image() == before
        assert funded_world.is_open()

    def test_a_meta_record_that_cannot_be_read(self, funded_world: LedgerWorld, cli: Cli) -> None:
        funded_world.redis.set(funded_world.shard.keys.meta, b"?")
        stopped = cli("recover")
        assert stopped.status == Exit.FATAL
        assert "what Redis has cannot be told" in stopped.err
        said = cli.done("recover", "--discard-redis").out
        assert "DISCARDED: an unknown number" in said
        funded_world.assert_proved()


def test_an_empty_ledger(world: LedgerWorld) -> None:
    cli = Cli(environment={"HOTLEDGER_REDIS_URL": world.redis_url, "HOTLEDGER_POSTGRES_URL": world.postgres_url})
    stopped = cli("recover")
    assert stopped.status == Exit.FATAL
    assert "there is nothing to recover it from" in stopped.err


def test_killed_and_interrupted(funded_world: LedgerWorld, environment: dict[str, str]) -> None:
    for first in range(1000, 11_000, MAX_BATCH):
        openings = [opening_record(10**6 + wallet, wallet) for wallet in range(first, first + MAX_BATCH)]
        assert set(funded_world.shard.statuses(openings)) == {"POSTED"}
    do_everything(funded_world)
    funded_world.drain()
    image, loading = image_of(funded_world.shard), funded_world.shard.keys.loading
    token = None
    for number, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, Exit.INTERRUPTED)):
        with started("recover", environment=environment) as process:
            wait_for(lambda token=token: funded_world.redis.get(loading) not in (None, token))
            process.send_signal(number)
            assert process.wait(30) == status
        token = funded_world.redis.get(loading)
        assert token is not None
        assert not funded_world.is_open()
    ended = run_process("recover", "--json", environment=environment)
    assert ended.status == 0, ended
    assert ended.json["loaded"]["verified"] > 10_000
    assert image_of(funded_world.shard) == of_epoch(image, ended.json["epoch"])
    funded_world.pay(10)
    funded_world.drain()
    funded_world.assert_proved()


def test_of_embedded_servers(tmp_path: Path) -> None:
    cli = Cli(tmp_path / "data")
    with running_up(tmp_path / "data"):
        refused = cli("recover", "--wait-s", 0)
        assert refused.status == Exit.UNAVAILABLE
        assert "`hotledger up`" in refused.err
    assert cli.json("recover")["epoch"] == 2
