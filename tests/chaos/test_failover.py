"""Real servers that replicate: promoted, demoted, cut off. Whatever Redis lost, the ledger gives back; what only one of
two histories has is never dropped in silence."""

from __future__ import annotations

import time

import pytest

from engine.errors import HistoryMismatch
from tests.fixtures.rebuild import image_of
from tests.fixtures.recovery import do_everything
from tests.fixtures.replicas import ReplicatedWorld
from tests.fixtures.shard import ShardDriver, request_record


@pytest.fixture
def funded(replicated_world: ReplicatedWorld) -> ReplicatedWorld:
    """With wallets and payments in the ledger, open on a; b has all of it."""
    world = replicated_world
    world.drain()
    world.open_wallets()
    world.pay(300)
    world.drain()
    world.b.until_in_step_with(world.a)
    return world


class TestPromoted:
    def test_with_all_of_it(self, funded: ReplicatedWorld) -> None:
        funded.pay(50)
        funded.b.until_in_step_with(funded.a)
        funded.a.kill()
        funded.b.promote()
        funded.lead(funded.b)
        assert not funded.is_open(), "a history that nobody compared"
        with funded.persister():
            funded.pay(50)
            funded.until_persisted()
        funded.assert_proved()

    def test_without_its_end(self, funded: ReplicatedWorld) -> None:
        """Promoted while the primary goes on, which then dies: what it had is in the ledger, and is fed forward."""
        funded.b.promote()
        do_everything(funded)
        funded.pay(200)
        funded.drain()
        image, meta = image_of(funded.shard), funded.shard.meta()
        funded.a.kill()
        funded.lead(funded.b)
        assert funded.shard.meta()["sequence"] < meta["sequence"]
        funded.drain()
        assert funded.shard.meta()["epoch"] == 1
        assert image_of(funded.shard) == image
        funded.pay(50)
        do_everything(funded)
        funded.drain()
        funded.assert_proved()

    def test_without_its_end_while_a_persister_runs(self, funded: ReplicatedWorld) -> None:
        with funded.persister():
            funded.b.promote()
            funded.pay(200)
            funded.until_persisted()
            funded.a.kill()
            funded.lead(funded.b)
            funded.until(funded.is_open)
            funded.pay(50)
            funded.until_persisted()
        funded.assert_proved()

    def test_what_only_the_dead_primary_had_is_lost(self, funded: ReplicatedWorld) -> None:
        """Accepted, neither replicated nor persisted. If that server comes back it is stopped, because it has more."""
        funded.b.promote()
        funded.pay(20)
        funded.a.kill()
        funded.lead(funded.b)
        funded.drain()
        funded.pay(30)
        funded.drain()
        funded.assert_proved()
        funded.a.start()
        funded.lead(funded.a)
        with pytest.raises(HistoryMismatch, match="the ledger is ahead of Redis, in a history that Redis is not part"):
            funded.drain()
        assert not funded.is_open()
        funded.lead(funded.b)
        funded.drain()
        funded.assert_proved()

    def test_a_replica_is_waited_for(self, funded: ReplicatedWorld) -> None:
        """Nothing is decided about a server that is not the primary, however empty it looks."""
        funded.a.client.flushall()
        funded.b.until_in_step_with(funded.a)
        funded.lead(funded.b)
        with funded.persister(opens=False):
            time.sleep(0.5)
            assert funded.one("select epoch from shard_state") == 1
            funded.b.promote()
            funded.until(funded.is_open)
        assert funded.one("select epoch from shard_state") == 2
        funded.assert_proved()


class TestDemotedAndPromotedAgain:
    def test_by_partial_resync(self, funded: ReplicatedWorld) -> None:
        """The process and its fence are those of before; it has missed what the other primary did."""
        funded.b.promote()
        funded.a.follow(funded.b)
        assert funded.b.resyncs == (0, 1), "a partial resync: the same process, the same data"
        funded.a.promote()
        funded.lead(funded.b)
        with funded.persister():
            funded.pay(100)
            do_everything(funded)
            funded.until_persisted()
        image = image_of(funded.shard)
        funded.b.kill()
        funded.lead(funded.a)
        assert not funded.is_open()
        assert funded.shard.statuses([request_record(funded.id())]) == ["SHARD_NOT_OPEN"]
        funded.drain()
        assert image_of(funded.shard) == image
        funded.pay(10)
        funded.drain()
        funded.assert_proved()

    def test_under_the_eyes_of_a_persister(self, funded: ReplicatedWorld) -> None:
        """Over one connection: it goes back in time, and is fed what the ledger has."""
        with funded.persister():
            funded.b.promote()
            funded.pay(100)
            funded.until_persisted()
            funded.a.follow(funded.b)
            funded.a.promote()
            funded.until(funded.is_open)
            funded.pay(100)
            funded.until_persisted()
        funded.assert_proved()

    def test_by_full_resync_of_an_old_copy(self, funded: ReplicatedWorld) -> None:
        """A node that was made a replica of a server with an old backup, and promoted."""
        funded.b.promote()
        funded.pay(150)
        funded.drain()
        funded.a.follow(funded.b)
        funded.a.promote()
        assert not funded.is_open()
        funded.drain()
        funded.assert_proved()


class TestSplitBrain:
    def test_of_the_same_sequences(self, funded: ReplicatedWorld) -> None:
        """Each of the two took payments."""
        funded.b.promote()
        funded.pay(20)
        funded.drain()
        funded.lead(funded.b)
        funded.shard.open()
        funded.pay(20, batch=7)
        before = funded.one("select sequence, chain from shard_state")
        with pytest.raises(HistoryMismatch, match="the histories differ up to the same sequence.*hotledger doctor"):
            funded.drain()
        funded.shard.open()
        funded.pay(3)
        funded.shard.call("hotledger_close")
        with pytest.raises(HistoryMismatch, match="Redis is ahead of the ledger, and its journal does not lead there"):
            funded.drain()
        assert not funded.is_open()
        assert funded.one("select sequence, chain from shard_state") == before

    def test_under_a_persister(self, funded: ReplicatedWorld) -> None:
        """It comes to the other server when its own dies, stops, and closes the shard."""
        with pytest.raises(HistoryMismatch, match="differ|not part of"), funded.persister():  # noqa: PT012  its end
            funded.b.promote()
            funded.pay(50)
            funded.until_persisted()
            other = ShardDriver(funded.b.client, deployment=None)
            other.open()
            payments = [request_record(10**6 + number) for number in range(20)]
            assert set(other.statuses(payments)) == {"POSTED"}
            funded.lead(funded.b)
            funded.a.kill()
            funded.until(lambda: not funded.is_open())
        assert not funded.is_open()
