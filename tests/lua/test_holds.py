"""Holds: every way in which one begins, changes and ends. Wallet 1 has 1,000, 2 nothing, 3 an overdraft of 500."""

from __future__ import annotations

import pytest

from engine.domain.limits import HOUR_MS
from engine.domain.money import MAX_AMOUNT_MINOR
from engine.domain.transfer import MAX_EXPIRY_MS, HoldState, Kind
from engine.domain.wallet import FLAG_CREDIT_FROZEN, FLAG_DEBIT_FROZEN
from tests.fixtures.shard import (
    EUR,
    OUTSIDE,
    Asked,
    ShardDriver,
    capture_record,
    hold_record,
    opening_record,
    reference_record,
    request_record,
    wallet_change,
)
from tests.lua.books import assert_sound
from tests.lua.steps import OK, Step, both_ways, case_ids, run

CAPTURED, VOIDED, EXPIRED = "HOLD_ALREADY_CAPTURED", "HOLD_ALREADY_VOIDED", "HOLD_EXPIRED"
RANGE = "AMOUNT_OUT_OF_RANGE"
NAN, INFINITY = float("nan"), float("inf")


def held(amount: float = 100, expires: float = 0) -> tuple[Asked, str]:
    """Hold 1, from wallet 1 to wallet 2."""
    return hold_record(1, amount=amount, expires_in_ms=expires), OK


def part(number: int, amount: float) -> Asked:
    return capture_record(number, 1, amount, final=False)


def last(number: int, amount: float = 0) -> Asked:
    return capture_record(number, 1, amount)


def change(number: int, kind: Kind, amount: float = 0) -> Asked:
    return reference_record(number, kind, 1, amount)


def void(number: int, amount: float = 0) -> Asked:
    return change(number, Kind.VOID, amount)


def expire(number: int, amount: float = 0) -> Asked:
    return change(number, Kind.EXPIRE_HOLD, amount)


def more(number: int, amount: float) -> Asked:
    return change(number, Kind.RAISE_HOLD, amount)


def approve(number: int, amount: float = 0) -> Asked:
    return change(number, Kind.APPROVE_HOLD, amount)


def frozen(number: int, wallet_id: int, flag: int) -> tuple[Asked, str]:
    return wallet_change(number, Kind.FREEZE, wallet_id, flag), OK


def closed(number: int, wallet_id: int) -> tuple[Asked, str]:
    return wallet_change(number, Kind.CLOSE_WALLET, wallet_id), OK


# (what, steps, (available of 1, locked of 1, available of 2) at the end)
CASES: list[tuple[str, list[Step], tuple[int, int, int]]] = [
    ("held", [held()], (900, 100, 0)),
    ("held all", [held(1000)], (0, 1000, 0)),
    ("held too much", [(held(1001)[0], "INSUFFICIENT_FUNDS"), (last(2), "HOLD_NOT_FOUND")], (1000, 0, 0)),
    ("what is held cannot be spent", [held(1000), (request_record(2, amount=1), "INSUFFICIENT_FUNDS")], (0, 1000, 0)),
    ("what is left can", [held(), (request_record(2, amount=900), OK)], (0, 100, 900)),
    ("captured", [held(), (last(2), OK)], (900, 0, 100)),
    ("captured by its amount", [held(), (last(2, 100), OK)], (900, 0, 100)),
    ("captured, the rest released", [held(), (last(2, 60), OK)], (940, 0, 60)),
    ("captured, the rest kept", [held(), (part(2, 60), OK)], (900, 40, 60)),
    ("captured in parts", [held(), (part(2, 60), OK), (part(3, 10), OK), (last(4), OK)], (900, 0, 100)),
    ("captured in parts, rest released", [held(), (part(2, 60), OK), (last(3, 1), OK)], (939, 0, 61)),
    ("a part that is all ends it", [held(), (part(2, 0), OK), (last(3), CAPTURED)], (900, 0, 100)),
    ("parts that are all end it", [held(), (part(2, 60), OK), (part(3, 40), OK), (void(4), CAPTURED)], (900, 0, 100)),
    ("over", [held(), (last(2, 101), "EXCEEDS_HOLD"), (last(3), OK)], (900, 0, 100)),
    ("over what is left", [held(), (part(2, 60), OK), (part(3, 41), "EXCEEDS_HOLD")], (900, 40, 60)),
    ("captured twice", [held(), (last(2), OK), (last(3), CAPTURED), (part(4, 1), CAPTURED)], (900, 0, 100)),
    ("over and over", [held(), (last(2), OK), (last(3, 101), CAPTURED)], (900, 0, 100)),
    ("voided", [held(), (void(2), OK)], (1000, 0, 0)),
    ("voided twice", [held(), (void(2), OK), (void(3), VOIDED)], (1000, 0, 0)),
    ("void before capture", [held(), (void(2), OK), (last(3), VOIDED)], (1000, 0, 0)),
    ("capture before void", [held(), (last(2), OK), (void(3), CAPTURED)], (900, 0, 100)),
    ("a part, then void", [held(), (part(2, 30), OK), (void(3), OK), (last(4), VOIDED)], (970, 0, 30)),
    ("raised", [held(), (more(2, 50), OK), (last(3), OK)], (850, 0, 150)),
    ("raised by all", [held(), (more(2, 900), OK)], (0, 1000, 0)),
    ("raised by more than there is", [held(), (more(2, 901), "INSUFFICIENT_FUNDS")], (900, 100, 0)),
    ("raised after a part", [held(), (part(2, 60), OK), (more(3, 5), OK), (last(4, 45), OK)], (895, 0, 105)),
    ("raised and still over", [held(), (more(2, 5), OK), (last(3, 106), "EXCEEDS_HOLD")], (895, 105, 0)),
    ("raised after capture", [held(), (last(2), OK), (more(3, 5), CAPTURED)], (900, 0, 100)),
    ("raised after void", [held(), (void(2), OK), (more(3, 5), VOIDED)], (1000, 0, 0)),
    ("nothing to approve", [held(), (approve(2), "HOLD_NOT_UNDER_REVIEW")], (900, 100, 0)),
    ("approved after capture", [held(), (last(2), OK), (approve(3), CAPTURED)], (900, 0, 100)),
    *[("no hold", [(make(2), "HOLD_NOT_FOUND")], (1000, 0, 0)) for make in (last, void, expire, approve)],
    ("no hold to raise", [(more(2, 1), "HOLD_NOT_FOUND")], (1000, 0, 0)),
    ("a transfer is no hold", [(request_record(1), OK), (last(2), "HOLD_NOT_FOUND")], (900, 0, 100)),
    *[("bad capture", [held(), (last(2, n), RANGE)], (900, 100, 0)) for n in (-1, 0.5, NAN, INFINITY, 2.0**53)],
    *[("bad raise", [held(), (more(2, n), RANGE)], (900, 100, 0)) for n in (0, -1, 0.5, NAN, INFINITY, 2.0**53)],
    *[("bad void", [held(), (void(2, n), RANGE)], (900, 100, 0)) for n in (1, -1, NAN)],
    *[("bad expiry", [held(), (expire(2, n), RANGE)], (900, 100, 0)) for n in (1, NAN)],
    *[("bad approval", [held(), (approve(2, n), RANGE)], (900, 100, 0)) for n in (1, NAN)],
    # Time: a hold is over from the very millisecond on, whether the sweeper came or not.
    ("in time", [held(expires=5000), 4999, (last(2), OK)], (900, 0, 100)),
    *[
        ("late", [held(expires=5000), 5000, (make(2), EXPIRED)], (900, 100, 0))
        for make in (last, void, approve, lambda n: more(n, 1), lambda n: part(n, 1))
    ],
    ("swept", [held(expires=5000), 5000, (expire(2), OK)], (1000, 0, 0)),
    ("swept hours later", [held(expires=5000), 7 * HOUR_MS, (last(3), EXPIRED), (expire(2), OK)], (1000, 0, 0)),
    ("swept too early", [held(expires=5000), 4999, (expire(2), "HOLD_NOT_DUE"), 1, (expire(2), OK)], (1000, 0, 0)),
    ("never due", [held(), MAX_EXPIRY_MS, (expire(2), "HOLD_NOT_DUE"), (last(3), OK)], (900, 0, 100)),
    ("swept twice", [held(expires=5), 5, (expire(2), OK), (expire(2), OK), (expire(3), EXPIRED)], (1000, 0, 0)),
    ("swept after capture", [held(expires=5), (last(2), OK), 5, (expire(3), CAPTURED)], (900, 0, 100)),
    ("swept after void", [held(expires=5), (void(2), OK), 5, (expire(3), VOIDED)], (1000, 0, 0)),
    ("capture of a swept one", [held(expires=5), 5, (expire(2), OK), (last(3), EXPIRED)], (1000, 0, 0)),
    ("void of a swept one", [held(expires=5), 5, (expire(2), OK), (void(3), EXPIRED)], (1000, 0, 0)),
    ("a part, then swept", [held(expires=5), (part(2, 30), OK), 5, (expire(3), OK), (last(4), EXPIRED)], (970, 0, 30)),
    ("raised, then swept", [held(expires=5), (more(2, 30), OK), 5, (expire(3), OK)], (1000, 0, 0)),
    ("raising gives no more time", [held(expires=5), (more(2, 30), OK), 5, (last(3), EXPIRED)], (870, 130, 0)),
    # The wallets' states.
    ("debit frozen", [held(), frozen(2, 1, FLAG_DEBIT_FROZEN), (last(3), "DEBIT_FROZEN")], (900, 100, 0)),
    ("credit frozen", [held(), frozen(2, 2, FLAG_CREDIT_FROZEN), (last(3), "CREDIT_FROZEN")], (900, 100, 0)),
    ("credit closed", [held(), closed(2, 2), (last(3), "WALLET_CLOSED"), (void(4), OK)], (1000, 0, 0)),
    ("a closed one has no holds", [held(1000), (closed(2, 1)[0], "WALLET_NOT_EMPTY")], (0, 1000, 0)),
    ("void while frozen", [held(), frozen(2, 1, 6), frozen(3, 2, 6), (void(4), OK)], (1000, 0, 0)),
    ("swept while frozen", [held(expires=5), frozen(2, 1, 6), 5, (expire(3), OK)], (1000, 0, 0)),
    ("raised while frozen", [held(), frozen(2, 1, FLAG_DEBIT_FROZEN), (more(3, 1), "DEBIT_FROZEN")], (900, 100, 0)),
    ("raised for a frozen one", [held(), frozen(2, 2, 4), (more(3, 1), "CREDIT_FROZEN")], (900, 100, 0)),
    ("raised for a closed one", [held(), closed(2, 2), (more(3, 1), "WALLET_CLOSED")], (900, 100, 0)),
    ("frozen the other way", [held(), frozen(2, 1, 4), frozen(3, 2, 2), (last(4), OK)], (900, 0, 100)),
    # What a hold may ask, as a transfer may.
    ("nothing", [(hold_record(1, amount=0), RANGE)], (1000, 0, 0)),
    ("to itself", [(hold_record(1, 1, 1), "SAME_WALLET")], (1000, 0, 0)),
    ("from nobody", [(hold_record(1, 77, 2), "DEBIT_WALLET_NOT_FOUND")], (1000, 0, 0)),
    ("to nobody", [(hold_record(1, 1, 77), "CREDIT_WALLET_NOT_FOUND")], (1000, 0, 0)),
    ("of two currencies", [(hold_record(1, 1, 4), "CURRENCY_MISMATCH")], (1000, 0, 0)),
    ("of another currency", [(hold_record(1, currency=EUR), "CURRENCY_MISMATCH")], (1000, 0, 0)),
    ("while frozen", [frozen(2, 1, FLAG_DEBIT_FROZEN), (hold_record(1), "DEBIT_FROZEN")], (1000, 0, 0)),
]  # fmt: skip


@pytest.mark.parametrize(("what", "steps", "balances"), CASES, ids=case_ids(CASES))
def test_a_hold(clocked: ShardDriver, what: str, steps: list[Step], balances: tuple[int, int, int]) -> None:
    for at_once in both_ways(clocked):
        run(clocked, steps, at_once=at_once)
        assert (*clocked.balance(1), *clocked.balance(2)) == (*balances, 0)
        assert_sound(clocked)


def test_what_is_answered(clocked: ShardDriver) -> None:
    """The amount that was reserved, moved or released, and both wallets after it."""
    asked = [hold_record(1), more(2, 50), part(3, 30), last(4, 100), hold_record(5, amount=7)]
    asked += [reference_record(6, Kind.VOID, 5)]
    outcomes = clocked.post(asked)
    assert [(outcome.amount_minor, *outcome[3:5]) for outcome in outcomes] == [
        (100, 900, 0),
        (50, 850, 0),
        (30, 850, 30),
        (100, 870, 130),
        (7, 863, 130),
        (7, 870, 130),
    ]
    again = clocked.post(asked)
    assert [outcome._replace(replayed=False) for outcome in again] == outcomes
    assert all(outcome.replayed for outcome in again)
    assert_sound(clocked)


def test_an_overdraft_may_be_held(clocked: ShardDriver) -> None:
    run(clocked, [(hold_record(1, 3, 2, 500), OK), (hold_record(2, 3, 2, 1), "INSUFFICIENT_FUNDS"), (last(3), OK)])
    assert clocked.balance(3) == (-500, 0)
    assert_sound(clocked)


def test_a_pending_top_up_and_a_pending_withdrawal(clocked: ShardDriver) -> None:
    """Nothing is spendable before the card answers; what leaves is locked until the bank does."""
    outside = clocked.balance(OUTSIDE)[0]
    top_up = hold_record(1, OUTSIDE, 2, 300, purpose=Kind.TOP_UP)
    withdrawal = hold_record(2, 1, OUTSIDE, 400, purpose=Kind.WITHDRAWAL)
    run(clocked, [(top_up, OK), (withdrawal, OK), (request_record(3, debit=2, credit=1), "INSUFFICIENT_FUNDS")])
    assert clocked.balance(OUTSIDE) == (outside - 300, 300)
    assert clocked.balance(1) == (600, 400)
    run(clocked, [(last(4), OK), (capture_record(5, 2), OK), (request_record(6, debit=2, credit=1, amount=300), OK)])
    assert clocked.balance(OUTSIDE) == (outside + 100, 0)
    assert clocked.balance(1) == (900, 0)
    hold = clocked.hold(1)
    assert hold
    assert (hold["purpose"], hold["state"], hold["captured"]) == (Kind.TOP_UP, HoldState.CAPTURED, 300)
    assert_sound(clocked)


def test_the_sweeper_works_off_what_is_due(clocked: ShardDriver) -> None:
    """First the first due, in portions; what was captured or voided in time is not among them."""
    holds = [hold_record(n, amount=10, expires_in_ms=1000 * (20 - n)) for n in range(1, 16)]
    run(clocked, [(hold, OK) for hold in [*holds, hold_record(16, amount=10)]], at_once=True)
    run(clocked, [(capture_record(30, 14), OK), (reference_record(31, Kind.VOID, 13), OK)])
    assert clocked.due() == []
    clocked.pass_time(5000)
    assert clocked.due() == [15]
    clocked.pass_time(10 * HOUR_MS)
    assert clocked.due(4) == [15, 12, 11, 10]
    swept: list[int] = []
    while due := clocked.due(4):
        run(clocked, [(reference_record(100 + n, Kind.EXPIRE_HOLD, n), OK) for n in due], at_once=True)
        swept += due
    assert swept == [15, *range(12, 0, -1)]
    assert clocked.balance(1) == (980, 10)
    assert_sound(clocked)


@pytest.mark.parametrize("limit", ["", "x", 0, -1, 0.5, 1025, "nan", "inf"])
def test_a_limit_of_due_that_is_none(clocked: ShardDriver, limit: object) -> None:
    with pytest.raises(Exception, match="^INVALID limit"):
        clocked.call("hotledger_due", limit)


def test_a_hold_that_outlives_its_outcome(clocked: ShardDriver) -> None:
    """Its id is answered HOLD_EXISTS while it is open and for as long as its end is remembered; then it is free."""
    asked = hold_record(1)
    run(clocked, [(asked, OK)])
    clocked.end_generation()
    again = clocked.one(asked)
    assert (again.status, again.replayed) == (OK, True)
    clocked.end_generation()
    run(clocked, [(asked, "HOLD_EXISTS"), (hold_record(1, amount=5), "HOLD_EXISTS"), (last(2), OK)])
    run(clocked, [(asked, "HOLD_EXISTS")])
    clocked.end_generation()
    run(clocked, [(asked, "HOLD_EXISTS"), (last(3), CAPTURED), (last(2), OK)])
    clocked.end_generation()
    run(clocked, [(last(3), CAPTURED)])
    clocked.end_generation()
    run(clocked, [(last(4), "HOLD_NOT_FOUND"), (hold_record(1, amount=5), OK), (last(4), OK)])
    assert clocked.balance(1) == (895, 0)
    assert_sound(clocked)


@pytest.mark.parametrize(
    "first", [hold_record(1, 3, 2, 0), hold_record(1, 3, 77), request_record(1, debit=3, amount=0)]
)
@pytest.mark.parametrize("end", [capture_record(2, 1), reference_record(2, Kind.VOID, 1)], ids=["capture", "void"])
def test_an_id_twice_in_a_batch_means_the_hold_that_was_made(clocked: ShardDriver, first: Asked, end: Asked) -> None:
    """What was refused under it before named other wallets."""
    before = [clocked.balance(wallet_id) for wallet_id in (3, 77) if wallet_id == 3]
    statuses = clocked.statuses([first, hold_record(9, 3, 2), hold_record(1, 1, 2), end, end])
    assert statuses[1:] == [OK] * 4
    captured = end[17] == Kind.CAPTURE
    assert clocked.balance(1) == (900 if captured else 1000, 0)
    assert clocked.balance(3) == (before[0][0] - 100, 100)
    assert_sound(clocked)


def test_what_a_capture_brings_must_fit(clocked: ShardDriver) -> None:
    run(
        clocked,
        [(opening_record(10, 6), OK), (request_record(11, Kind.TOP_UP, OUTSIDE, 6, MAX_AMOUNT_MINOR - 1000), OK)],
    )
    run(
        clocked,
        [(hold_record(1, 1, 2), OK), (request_record(12, debit=6, credit=2, amount=MAX_AMOUNT_MINOR - 1000), OK)],
    )
    run(clocked, [(request_record(13, debit=1, credit=2, amount=900), OK), (last(2), OK)])
    assert clocked.balance(2) == (MAX_AMOUNT_MINOR, 0)
    assert_sound(clocked)


def test_what_a_hold_brought_in_all_must_fit(clocked: ShardDriver) -> None:
    """A hold that is raised and captured for ever would count beyond what is exact."""
    big = MAX_AMOUNT_MINOR - 1000
    run(clocked, [(opening_record(10, 6), OK), (request_record(11, Kind.TOP_UP, OUTSIDE, 6, big), OK)])
    run(clocked, [(hold_record(1, 6, 2, big), OK), (part(2, big - 1), OK)])
    run(clocked, [(request_record(12, debit=2, credit=6, amount=big - 1), OK), (more(3, big - 1), OK)])
    run(clocked, [(part(4, 1002), "BALANCE_OUT_OF_RANGE"), (part(5, 1001), OK), (void(6), OK)])
    assert_sound(clocked)
