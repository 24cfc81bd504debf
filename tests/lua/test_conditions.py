"""What a request may demand of its debit wallet, and transfers that move what there is."""

from __future__ import annotations

import pytest

from engine.domain.limits import Condition
from engine.domain.money import MAX_AMOUNT_MINOR
from engine.domain.transfer import Kind, RequestFlag
from tests.fixtures.shard import (
    OUTSIDE,
    Asked,
    ShardDriver,
    chain,
    hold_record,
    opening_record,
    reference_record,
    request_record,
    terms,
    tier_limits,
    tier_record,
    wallet_change,
)
from tests.lua.books import assert_sound, read_journal
from tests.lua.steps import OK, case_ids, run

FAILS, FUNDS = "CONDITION_FAILED", "INSUFFICIENT_FUNDS"
VERSION, LEAST, BOTH = Condition.VERSION, Condition.MIN_AVAILABLE, Condition.VERSION | Condition.MIN_AVAILABLE


def asks(conditions: int, version: float = 0, least: float = 0, **fields: float) -> Asked:
    """Transfer 1 of 100 from wallet 1, which has 1,000 and version 2."""
    attached = terms(conditions=conditions, expect_version=version, min_available_after=least)
    return request_record(1, attached=attached, **fields)


CONDITIONS: list[tuple[str, Asked]] = [
    (OK, asks(VERSION, 2)),
    (FAILS, asks(VERSION, 1)),
    (FAILS, asks(VERSION, 3)),
    (FAILS, asks(VERSION, 0)),
    (OK, asks(LEAST, least=900)),
    (FAILS, asks(LEAST, least=901)),
    (OK, asks(LEAST, least=-5)),
    (OK, asks(LEAST, least=0, amount=1000)),
    (FAILS, asks(LEAST, least=1, amount=1000)),
    (OK, asks(BOTH, 2, 900)),
    (FAILS, asks(BOTH, 1, 900)),
    (FAILS, asks(BOTH, 2, 901)),
    (OK, asks(0, 77, 10**6)),
    (FUNDS, asks(BOTH, 77, 10**6, amount=1001)),
    (OK, asks(LEAST, least=-500, debit=3, amount=500)),
    (FAILS, asks(LEAST, least=0, debit=3, amount=1)),
    (OK, asks(LEAST, least=-MAX_AMOUNT_MINOR, kind=Kind.TOP_UP, debit=OUTSIDE)),
    (FAILS, asks(LEAST, least=-1099, kind=Kind.TOP_UP, debit=OUTSIDE)),
    (OK, hold_record(1, conditions=BOTH, expect_version=2, min_available_after=900)),
    (FAILS, hold_record(1, conditions=VERSION, expect_version=1)),
    (FAILS, hold_record(1, conditions=LEAST, min_available_after=901)),
]


@pytest.mark.parametrize(("status", "record"), CONDITIONS, ids=case_ids(CONDITIONS))
def test_a_condition(clocked: ShardDriver, status: str, record: Asked) -> None:
    first = clocked.one(record)
    assert first.status == status
    assert clocked.one(record) == first._replace(replayed=True)
    assert_sound(clocked)


def test_a_condition_sees_what_the_batch_did_before(clocked: ShardDriver) -> None:
    """The version of this moment, also within a chain."""
    attached = [terms(conditions=VERSION, expect_version=version) for version in (2, 3, 3, 4)]
    asked = [request_record(n, amount=1, attached=item) for n, item in enumerate(attached, 1)]
    assert clocked.statuses([*asked[:2], *chain(asked[2], asked[3])]) == [OK, OK, FAILS, "LINKED_FAILED"]
    attached = [terms(conditions=VERSION, expect_version=version) for version in (4, 5)]
    asked = [request_record(n, amount=1, attached=item) for n, item in enumerate(attached, 11)]
    assert clocked.statuses(chain(*asked)) == [OK, OK]
    assert_sound(clocked)


# (what, status, what is moved, request, available of the debit wallet after)
BALANCED: list[tuple[str, str, int, Asked, int]] = [
    ("all of it", OK, 100, request_record(1, flags=2), 900),
    ("what there is", OK, 1000, request_record(1, amount=5000, flags=2), 0),
    ("exactly", OK, 1000, request_record(1, amount=1000, flags=2), 0),
    ("the most", OK, 1000, request_record(1, amount=MAX_AMOUNT_MINOR, flags=2), 0),
    ("from nothing", FUNDS, 0, request_record(1, debit=2, credit=1, flags=2), 0),
    ("no overdraft", FUNDS, 0, request_record(1, debit=3, credit=1, flags=2), 0),
    ("from outside", OK, 5000, request_record(1, Kind.TOP_UP, OUTSIDE, 1, 5000, flags=2), -6000),
    ("nothing", "AMOUNT_OUT_OF_RANGE", 0, request_record(1, amount=0, flags=2), 1000),
    ("of another kind", OK, 1000, request_record(1, Kind.WITHDRAWAL, 1, OUTSIDE, 1001, flags=2), 0),
    ("and leaves some", FAILS, 0,
     request_record(1, amount=5000, flags=2, attached=terms(conditions=LEAST, min_available_after=1)), 1000),
    ("to nobody", "CREDIT_WALLET_NOT_FOUND", 0, request_record(1, credit=77, flags=2), 1000),
]  # fmt: skip


@pytest.mark.parametrize(("what", "status", "moved", "record", "available"), BALANCED, ids=case_ids(BALANCED))
def test_a_balancing_transfer(
    clocked: ShardDriver, what: str, status: str, moved: int, record: Asked, available: int
) -> None:
    first = clocked.one(record)
    assert (first.status, first.amount_minor) == (status, moved)
    assert clocked.balance(int.from_bytes(record[21:29], "little", signed=True))[0] == available
    again = clocked.one(record)
    assert again._replace(replayed=False) == first
    assert_sound(clocked)


def test_a_balancing_transfer_below_zero_or_held(clocked: ShardDriver) -> None:
    run(clocked, [(request_record(10, debit=3, credit=2, amount=500), OK)])
    run(clocked, [(request_record(11, debit=3, credit=2, amount=1, flags=2), FUNDS)])
    run(clocked, [(hold_record(12, amount=990), OK)])
    assert clocked.one(request_record(13, amount=100, flags=2)).amount_minor == 10
    run(clocked, [(request_record(14, amount=100, flags=2), FUNDS)])
    assert_sound(clocked)


def test_a_balancing_transfer_is_limited_by_what_it_moves(clocked: ShardDriver) -> None:
    """The rules count and judge the amount that moves, not the one that was asked."""
    limits = tier_limits(max_amount=1000, day_amount=1000, day_count=1)
    run(clocked, [(tier_record(80, 1, limits), OK), (wallet_change(81, Kind.SET_TIER, 1, 1), OK)])
    assert clocked.one(request_record(1, amount=5000, flags=2)).amount_minor == 1000
    assert clocked.usage(1)["day_amount"] == 1000
    run(clocked, [(request_record(2, amount=5000, flags=2), "LIMIT_EXCEEDED")])
    assert_sound(clocked)


def test_chains_of_balancing_transfers_sweep_wallets(clocked: ShardDriver) -> None:
    run(clocked, [(opening_record(10, 5), OK), (request_record(11, debit=1, credit=2, amount=300), OK)])
    asked = [request_record(n, debit=n, credit=5, amount=10**6, flags=2) for n in (1, 2)]
    assert [outcome.amount_minor for outcome in clocked.post(chain(*asked))] == [700, 300]
    assert clocked.balance(5) == (1000, 0)
    assert_sound(clocked)


def test_what_was_balanced_is_journalled_as_moved(clocked: ShardDriver) -> None:
    clocked.one(request_record(1, amount=5000, flags=RequestFlag.BALANCING))
    last = [record for record in read_journal(clocked) if record.id == 1]
    assert (last[0].done["amount"], last[0].done["flags"]) == (1000, RequestFlag.BALANCING)
    run(clocked, [(reference_record(2, Kind.REFUND, 1), OK)])
    assert clocked.balance(1) == (1000, 0)
