"""A key that comes again after both idempotency generations: the shard goes on, and the ledger says what happened."""

from __future__ import annotations

from uuid import UUID

from engine.domain.transfer import Kind
from persister.duplicates import derived_id
from tests.fixtures.ledger import LedgerWorld
from tests.fixtures.shard import request_record


def forget_everything(world: LedgerWorld) -> None:
    """End generations until Redis knows none of the ids so far."""
    for _ in range(2):
        world.until_persisted()
        meta = world.shard.meta()
        assert world.shard.call("hotledger_end_generation", int(meta["epoch"]), int(meta["generation"])) == 1


def test_a_late_duplicate_is_entered_under_a_derived_id(world: LedgerWorld) -> None:
    with world.persister():
        world.open_wallets()
        again, other = (
            request_record(world.id(), Kind.PAYMENT, 1, 2, 70),
            request_record(world.id(), Kind.PAYMENT, 1, 3, 5),
        )
        [first] = world.shard.post([again])
        forget_everything(world)
        world.pay(10)
        other_outcome, late = world.shard.post([other, again])
        assert not late.replayed, "Redis forgot it, which is what this test is about"
        world.pay(10)
        world.until_persisted()
        assert world.reconcile().ok
    came_with = UUID(bytes=again[:16])
    entered = derived_id(came_with, 0, late.sequence)
    with world.connect() as connection:
        listed = connection.execute("select transfer_id, duplicate_of, sequence from transfer_duplicate").fetchall()
        found = dict(connection.execute("select id, sequence from transfer where amount in (70, 5)").fetchall())
    assert listed == [(entered, came_with, late.sequence)]
    assert found == {came_with: first.sequence, entered: late.sequence, UUID(bytes=other[:16]): other_outcome.sequence}


def test_a_second_late_duplicate_gets_an_id_of_its_own(world: LedgerWorld) -> None:
    with world.persister():
        world.open_wallets()
        record = request_record(world.id(), Kind.PAYMENT, 1, 2, 70)
        for _ in range(3):
            world.shard.post([record])
            forget_everything(world)
        world.until_persisted()
        assert world.reconcile().ok
    assert world.one("select count(*), count(distinct transfer_id) from transfer_duplicate") == (2, 2)
    assert world.one("select count(*) from transfer where amount = 70") == 3
