"""What programs ask the ledger: statements, holds, debts, tiers, refused movements."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from engine.domain.limits import Rule, TierLimits
from engine.domain.status import Status
from engine.domain.transfer import HoldState, Kind, Review
from engine.domain.wallet import FLAG_DEBIT_FROZEN
from persister import declined_queries, hold_queries, queries
from persister.declined_queries import OffenderBy
from tests.fixtures.ledger import LedgerWorld
from tests.fixtures.shard import OUTSIDE, request_record, terms


def uuid(number: int) -> UUID:
    return UUID(int=number)


class TestHolds:
    def test_a_withdrawal_is_pending_until_it_is_confirmed(self, funded_world: LedgerWorld) -> None:
        payout = funded_world.hold(
            3, OUTSIDE, 80, purpose=Kind.WITHDRAWAL, expires_in_ms=60_000, details=b'["po-7",{"bank":1}]'
        )
        top_up = funded_world.hold(OUTSIDE, 4, 500, purpose=Kind.TOP_UP)
        funded_world.hold(5, 6, 7)
        funded_world.drain()
        with funded_world.connect() as connection:
            first, second = hold_queries.pending(connection)
            assert first[:9] == (
                uuid(payout), 3, OUTSIDE, "USD", Kind.WITHDRAWAL, 80, 0, Review.NONE, 0,
            )  # fmt: skip
            assert (first.reference, first.metadata) == ("po-7", {"bank": 1})
            assert 0 <= first.open_for_s < 60
            assert first.expires_at is not None
            assert first.expires_at - first.since == timedelta(minutes=1)
            assert (second.id, second.expires_at, second.reference) == (uuid(top_up), None, None)
            assert hold_queries.pending(connection, limit=1) == [first._replace(open_for_s=pytest.approx(0, abs=60))]
            assert [hold.purpose for hold in hold_queries.open_holds(connection)] == [
                Kind.WITHDRAWAL, Kind.TOP_UP, Kind.PAYMENT,
            ]  # fmt: skip
            assert [hold.id for hold in hold_queries.open_holds(connection, 4)] == [uuid(top_up)]
        funded_world.capture(payout)
        funded_world.drain()
        with funded_world.connect() as connection:
            assert [hold.id for hold in hold_queries.pending(connection)] == [uuid(top_up)]

    def test_the_history_of_one(self, funded_world: LedgerWorld) -> None:
        held = funded_world.hold(1, 2, 100, details=b'["order 1",null]')
        funded_world.change_hold(Kind.RAISE_HOLD, held, 20)
        capture = funded_world.capture(held, 70, final=False)
        funded_world.change_hold(Kind.VOID, held, details=b'["out of stock",{"by":"shop"}]')
        funded_world.drain()
        with funded_world.connect() as connection:
            found = hold_queries.hold(connection, uuid(held))
            assert found is not None
            assert found[3:] == (
                1, 2, Kind.PAYMENT, 100, HoldState.VOIDED, 0, 70, Review.NONE, 0, None, "order 1", None,
            )  # fmt: skip
            history = hold_queries.hold_history(connection, uuid(held))
            assert [event[4:9] for event in history] == [
                (100, 0, HoldState.OPEN, 100, 0),
                (20, 0, HoldState.OPEN, 120, 0),
                (70, 0, HoldState.OPEN, 50, 70),
                (50, 50, HoldState.VOIDED, 0, 70),
            ]
            assert [event.kind for event in history] == [Kind.HOLD, Kind.RAISE_HOLD, Kind.CAPTURE, Kind.VOID]
            assert history[2].id == uuid(capture)
            assert history[3][-2:] == ("out of stock", {"by": "shop"})
            assert hold_queries.hold(connection, uuid(capture)) is None
            assert hold_queries.hold_history(connection, uuid(4711)) == []

    def test_reviews(self, funded_world: LedgerWorld) -> None:
        funded_world.set_limits(7, max_amount=500, review=[Rule.MAX_AMOUNT])
        funded_world.change_wallet(Kind.SET_TIER, 1, 7)
        stopped = funded_world.move(Kind.TRANSFER, 1, 2, 600)
        held = funded_world.hold(1, 3, 700)
        funded_world.drain()
        with funded_world.connect() as connection:
            assert [(it.id, it.review, it.rule, it.remaining_minor) for it in hold_queries.reviews(connection)] == [
                (uuid(stopped), Review.TRANSFER, Rule.MAX_AMOUNT, 600),
                (uuid(held), Review.HOLD, Rule.MAX_AMOUNT, 700),
            ]
        funded_world.change_hold(Kind.APPROVE_HOLD, stopped)
        funded_world.change_hold(Kind.APPROVE_HOLD, held)
        funded_world.drain()
        with funded_world.connect() as connection:
            assert hold_queries.reviews(connection) == []
            assert [hold.id for hold in hold_queries.open_holds(connection)] == [uuid(held)]


class TestStatement:
    def test_shows_what_holds_do(self, funded_world: LedgerWorld) -> None:
        held = funded_world.hold(1, 2, 100, details=b'["order 1",null]')
        capture = funded_world.capture(held, 70)
        funded_world.change_wallet(Kind.FREEZE, 1, FLAG_DEBIT_FROZEN)
        funded_world.drain()
        with funded_world.connect() as connection:
            frozen, captured, reserved = queries.statement(connection, 1, limit=3)
            [paid] = queries.statement(connection, 2, limit=1)
        assert (reserved.kind, reserved.id, reserved.counterparty_id) == (Kind.HOLD, uuid(held), 2)
        assert (reserved.amount_minor, reserved.reserved_minor, reserved.locked_after_minor) == (0, 100, 100)
        assert (reserved.reference, reserved.hold_id) == ("order 1", uuid(held))
        assert (captured.kind, captured.id, captured.counterparty_id) == (Kind.CAPTURE, uuid(capture), 2)
        assert (captured.amount_minor, captured.reserved_minor, captured.locked_after_minor) == (-70, -100, 0)
        assert captured.available_after_minor == reserved.available_after_minor + 30
        assert captured.hold_id == uuid(held)
        assert (frozen.kind, frozen.counterparty_id, frozen.value) == (Kind.FREEZE, None, FLAG_DEBIT_FROZEN)
        assert (paid.kind, paid.counterparty_id, paid.amount_minor, paid.reserved_minor) == (Kind.CAPTURE, 1, 70, 0)

    def test_a_hold_without_details_between_the_outside_and_a_wallet(self, funded_world: LedgerWorld) -> None:
        funded_world.change_hold(Kind.VOID, funded_world.hold(OUTSIDE, 3, 9, purpose=Kind.TOP_UP))
        funded_world.drain()
        with funded_world.connect() as connection:
            void, hold = queries.statement(connection, OUTSIDE, limit=2)
        assert (void.kind, void.reserved_minor, void.counterparty_id) == (Kind.VOID, -9, 3)
        assert (hold.kind, hold.reserved_minor, hold.counterparty_id) == (Kind.HOLD, 9, 3)


def test_a_transfer_says_what_was_refunded(funded_world: LedgerWorld) -> None:
    paid = funded_world.move(Kind.PAYMENT, 1, 2, 100)
    refund = funded_world.refund(paid, 30)
    funded_world.refund(paid, 20)
    funded_world.drain()
    with funded_world.connect() as connection:
        found, back = queries.transfer(connection, uuid(paid)), queries.transfer(connection, uuid(refund))
    assert found is not None
    assert back is not None
    assert (found.refunded_minor, back.refunded_minor) == (50, 0)
    assert (back.kind, back.debit, back.credit, back.amount_minor) == (Kind.REFUND, 2, 1, 30)


def test_debts(funded_world: LedgerWorld) -> None:
    funded_world.change_wallet(Kind.SET_OVERDRAFT_LIMIT, 5, 10)
    top_up = funded_world.move(Kind.TOP_UP, OUTSIDE, 5, 40)
    funded_world.drain()
    balance = funded_world.one("select available from wallet_balance where wallet_id = 5")
    funded_world.move(Kind.WITHDRAWAL, 5, OUTSIDE, balance)
    funded_world.refund(top_up, 40, Kind.CHARGEBACK)
    funded_world.drain()
    with funded_world.connect() as connection:
        assert queries.debts(connection) == [(5, 105, "USD", -40, 10, 30)]


def test_tiers(funded_world: LedgerWorld) -> None:
    with funded_world.connect() as connection:
        assert queries.tiers(connection) == []
    funded_world.set_limits(7, max_amount=500)
    funded_world.set_limits(9, day_count=3, review=[Rule.DAY_COUNT, Rule.NEW_DEVICE], debt_first=0)
    sequence = funded_world.set_limits(7, max_amount=400, window_ms=120_000)
    funded_world.drain()
    with funded_world.connect() as connection:
        found = queries.tiers(connection)
    assert found[0] == (0, 7, sequence, TierLimits(max_amount_minor=400, window_minutes=2))
    assert found[1].limits == TierLimits(
        day_count=3, review=frozenset({Rule.DAY_COUNT, Rule.NEW_DEVICE}), debt_first=False
    )


class TestDeclined:
    @pytest.fixture
    def refused(self, funded_world: LedgerWorld) -> LedgerWorld:
        funded_world.set_limits(7, max_amount=500)
        funded_world.change_wallet(Kind.SET_TIER, 1, 7)
        for debit, amount, device, ip in (
            (1, 600, b"device 1", b"ip addr1"), (1, 700, b"device 1", b"ip addr2"), (2, 2**52, b"device 1", b""),
            (2, 2**52, b"device 2", b"ip addr2"), (99, 5, b"", b""),
        ):  # fmt: skip
            attached = terms(device=device.ljust(8, b"\0"), ip=ip.ljust(8, b"\0"))
            funded_world.shard.post(
                [request_record(funded_world.id(), Kind.TRANSFER, debit, 3, amount, attached=attached)]
            )
        funded_world.drain()
        return funded_world

    def test_attempts(self, refused: LedgerWorld) -> None:
        with refused.connect() as connection:
            found = declined_queries.declined_attempts(connection)
            assert [(it.debit, it.status, it.rule) for it in reversed(found)] == [
                (1, Status.LIMIT_EXCEEDED, Rule.MAX_AMOUNT),
                (1, Status.LIMIT_EXCEEDED, Rule.MAX_AMOUNT),
                (2, Status.INSUFFICIENT_FUNDS, 0),
                (2, Status.INSUFFICIENT_FUNDS, 0),
                (99, Status.DEBIT_WALLET_NOT_FOUND, 0),
            ]
            assert found[0].device is None
            assert len(declined_queries.declined_attempts(connection, wallet_id=2)) == 2
            assert len(declined_queries.declined_attempts(connection, device=b"device 1")) == 3
            assert len(declined_queries.declined_attempts(connection, ip=b"ip addr2", limit=1)) == 1
            later = datetime.now(UTC) + timedelta(hours=1)
            assert declined_queries.declined_attempts(connection, since=later) == []

    @pytest.mark.parametrize(
        ("by", "subjects"),
        [
            (OffenderBy.DEVICE, [(b"device 1".hex(), 3), (b"device 2".hex(), 1)]),
            (OffenderBy.IP, [(b"ip addr2".hex(), 2), (b"ip addr1".hex(), 1)]),
            (OffenderBy.WALLET, [("1", 2), ("2", 2), ("99", 1)]),
        ],
    )
    def test_top_offenders(self, refused: LedgerWorld, by: OffenderBy, subjects: list[tuple[str, int]]) -> None:
        since = datetime.now(UTC) - timedelta(hours=1)
        with refused.connect() as connection:
            found = declined_queries.top_offenders(connection, by, since)
            assert [(it.subject, it.attempts) for it in found] == subjects
            assert len(declined_queries.top_offenders(connection, by, since, limit=1)) == 1
            assert declined_queries.top_offenders(connection, by, datetime.now(UTC) + timedelta(hours=1)) == []
        if by is OffenderBy.DEVICE:
            assert found[0].amount_minor == 1300 + 2**52
            assert found[0].reasons == [
                (Status.LIMIT_EXCEEDED, Rule.MAX_AMOUNT, 2, 1300),
                (Status.INSUFFICIENT_FUNDS, 0, 1, 2**52),
            ]
