"""An id that comes again after both idempotency generations: the shard goes on, and the ledger says what happened."""

from __future__ import annotations

from uuid import UUID

import pytest

from engine.domain.transfer import HoldState, Kind
from persister import hold_queries
from persister.duplicates import derived_id
from tests.fixtures.ledger import LedgerWorld
from tests.fixtures.shard import OUTSIDE, capture_record, claim, hold_record, reference_record, request_record


def forget_everything(world: LedgerWorld) -> None:
    """End generations until Redis knows none of the ids so far."""
    for _ in range(2):
        world.until_persisted()
        meta = world.shard.meta()
        assert world.shard.call("hotledger_end_generation", int(meta["epoch"]), int(meta["generation"])) == 1
    world.until_persisted()


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


def test_a_late_capture(world: LedgerWorld) -> None:
    """Its hold is another one, its id is a transfer's that the ledger has."""
    with world.persister():
        world.open_wallets()
        number = world.id()
        for amount in (40, 50):
            hold = world.hold(1, 2, amount)
            assert world.shard.statuses([capture_record(number, hold)]) == ["POSTED"]
            forget_everything(world)
        world.until_persisted()
        assert world.reconcile().ok
    assert world.one("select count(*) from transfer where kind = 8") == 2
    assert world.one("select duplicate_of from transfer_duplicate") == UUID(int=number)


@pytest.mark.parametrize("together", [True, False])
def test_a_hold_under_an_id_of_an_older_one(world: LedgerWorld, together: bool) -> None:
    """It is another hold, and the one that is meant from then on, whether it ends in the batch that makes it or not."""
    with world.persister():
        world.open_wallets()
        hold, capture = hold_record(world.id(), 1, 2, 60), world.id()
        world.done(hold)
        number = int.from_bytes(hold[:16], "big")
        world.capture(number, 20, final=False)
        world.change_hold(Kind.VOID, number)
        forget_everything(world)
        other = hold_record(number, 3, 4, 70)
    if together:
        assert world.shard.statuses([other, capture_record(capture, number, 30, final=False)]) == ["POSTED"] * 2
        world.drain()
    else:
        world.done(other)
        world.drain()
        with world.connect() as connection:
            assert [(it.id.int, it.remaining_minor) for it in hold_queries.open_holds(connection)] == [(number, 70)]
        world.assert_proved()
        world.capture(number, 30, final=False)
        world.drain()
    world.assert_proved()
    with world.connect() as connection:
        found = hold_queries.hold(connection, UUID(int=number))
        assert found is not None
        assert (found.debit, found.amount_minor, found.remaining_minor, found.captured_minor) == (3, 70, 40, 30)
        assert [event.kind for event in hold_queries.hold_history(connection, found.id)] == [Kind.HOLD, Kind.CAPTURE]
    assert world.one("select count(*) from hold") == 2
    world.change_hold(Kind.VOID, number)
    world.drain()
    world.assert_proved()
    assert world.one("select count(*) from open_hold") == 0


def test_an_id_that_was_a_transfers_and_is_a_holds(world: LedgerWorld) -> None:
    with world.persister():
        world.open_wallets()
        number = world.pay_with_details(1, 2, "first", None)
        forget_everything(world)
        details = b'["then",null]'
        record = hold_record(number, 1, 2, 60)
        world.done(record)
        world.change_hold(Kind.VOID, number, details=details)
        forget_everything(world)
        world.done(request_record(number, Kind.PAYMENT, 1, 2, 9))
        world.until_persisted()
        assert world.reconcile().ok
    assert world.one("select count(*) from transfer_duplicate") == 1
    assert world.one("select state from hold_change where kind = 10") == HoldState.VOIDED


def test_refunds_of_what_was_paid_twice(world: LedgerWorld) -> None:
    """Together they never exceed what was paid under the id; Redis refunds the payment that it knows."""
    with world.persister():
        world.open_wallets()
        payment = request_record(world.id(), Kind.PAYMENT, 1, 2, 70)
        number = int.from_bytes(payment[:16], "big")
        world.done(payment)
        world.refund(number, 70)
        forget_everything(world)
        world.done(payment)
        world.refund(number, 50)
        world.until_persisted()
        assert world.reconcile().ok
        world.refund(number, 20)
        world.until_persisted()
        assert world.reconcile().ok
        forget_everything(world)
        at = claim(Kind.PAYMENT, 1, 2, 70, 140, world.one("select sequence from shard_state"))
        refused = reference_record(world.id(), Kind.REFUND, number, 1, attached=at)
        assert world.shard.statuses([refused]) == ["REFUND_EXCEEDS_TRANSFER"]


def test_a_refund_by_a_claim(world: LedgerWorld) -> None:
    """Of a capture and of a top-up that Redis has forgotten: the claim says what they were."""
    with world.persister():
        world.open_wallets()
        hold = world.hold(1, 2, 80)
        capture = world.id()
        world.done(capture_record(capture, hold))
        top_up = world.move(Kind.TOP_UP, OUTSIDE, 3, 40)
        forget_everything(world)
        sequence = world.one("select sequence from shard_state")
        for amount in (30, 50):
            world.refund(capture, amount, attached=claim(Kind.PAYMENT, 1, 2, 80, 0, sequence))
        world.refund(top_up, 40, Kind.CHARGEBACK, attached=claim(Kind.TOP_UP, OUTSIDE, 3, 40, 0, sequence))
        world.until_persisted()
        assert world.reconcile().ok
    assert world.one("select count(*), sum(amount)::bigint from refund") == (3, 120)
