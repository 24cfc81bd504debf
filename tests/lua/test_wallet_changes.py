"""The states of a wallet: each change, what it forbids from the next request on, and its idempotency."""

from __future__ import annotations

from typing import Any

import pytest

from engine.domain.money import MAX_AMOUNT_MINOR, MAX_EXPONENT
from engine.domain.status import RECORDED, Status
from engine.domain.transfer import Kind
from engine.domain.wallet import FLAG_CLOSED, FLAG_CREDIT_FROZEN, FLAG_DEBIT_FROZEN, MAX_TIER, external_wallet_id
from engine.wire import ANSWER, REPLY_HEADER, USAGE, WALLET
from tests.fixtures.shard import (
    EUR,
    OUTSIDE,
    USD,
    Asked,
    ShardDriver,
    hold_record,
    opening_record,
    reference_record,
    request_record,
    tier_limits,
    tier_record,
    wallet_change,
)
from tests.lua.books import assert_sound
from tests.lua.steps import OK, Step, both_ways, case_ids, run

RANGE, NOBODY, CLOSED, FUNDS = "AMOUNT_OUT_OF_RANGE", "DEBIT_WALLET_NOT_FOUND", "WALLET_CLOSED", "INSUFFICIENT_FUNDS"
NAN, INFINITY = float("nan"), float("inf")
POINTS = b"POINTS\0\0"
JPY_OUTSIDE = external_wallet_id("JPY")


def freeze(number: int, value: float = 6, wallet_id: int = 1) -> Asked:
    return wallet_change(number, Kind.FREEZE, wallet_id, value)


def thaw(number: int, value: float = 6, wallet_id: int = 1) -> Asked:
    return wallet_change(number, Kind.UNFREEZE, wallet_id, value)


def close(number: int, wallet_id: int = 2, value: float = 0) -> Asked:
    return wallet_change(number, Kind.CLOSE_WALLET, wallet_id, value)


def limit(number: int, value: float, wallet_id: int = 1) -> Asked:
    return wallet_change(number, Kind.SET_OVERDRAFT_LIMIT, wallet_id, value)


def tier(number: int, value: float, wallet_id: int = 1) -> Asked:
    return wallet_change(number, Kind.SET_TIER, wallet_id, value)


TIER_1 = (tier_record(90, 1), OK)
AT_MOST_4 = tier_limits(max_amount=4)
OUT, IN = request_record(50, amount=1), request_record(51, Kind.TOP_UP, OUTSIDE, 1, 1)
NOT_OUT, NOT_IN = (OUT, "DEBIT_FROZEN"), (IN, "CREDIT_FROZEN")

# (what, steps, fields of wallet 1 at the end)
CASES: list[tuple[str, list[Step], dict[str, Any]]] = [
    ("freeze debits", [(freeze(1, 2), OK), NOT_OUT, (IN, OK)], {"flags": 2}),
    ("freeze credits", [(freeze(1, 4), OK), (OUT, OK), NOT_IN], {"flags": 4}),
    ("freeze both", [(freeze(1), OK), NOT_OUT, NOT_IN], {"flags": 6}),
    ("one after the other", [(freeze(1, 2), OK), (freeze(2, 4), OK), NOT_OUT, NOT_IN], {"flags": 6}),
    ("frozen already", [(freeze(1), OK), (freeze(2, 2), OK), NOT_OUT, NOT_IN], {"flags": 6}),
    ("unfreeze", [(freeze(1), OK), (thaw(2), OK), (OUT, OK), (IN, OK)], {"flags": 0}),
    ("unfreeze debits", [(freeze(1), OK), (thaw(2, 2), OK), (OUT, OK), NOT_IN], {"flags": 4}),
    ("unfreeze credits", [(freeze(1), OK), (thaw(2, 4), OK), NOT_OUT, (IN, OK)], {"flags": 2}),
    ("not frozen", [(thaw(1), OK), (OUT, OK)], {"flags": 0}),
    ("no freezing a frozen one's hold", [(freeze(1), OK), (hold_record(2), "DEBIT_FROZEN")], {"flags": 6}),
    *[(f"no freeze {n}", [(freeze(1, n), RANGE), (thaw(2, n), RANGE), (OUT, OK)], {"flags": 0})
      for n in (0, 1, 3, 5, 7, 8, 9, -2, 2.5, NAN, INFINITY)],
    ("not the outside", [(freeze(1, 2, OUTSIDE), NOBODY), (close(2, OUTSIDE), NOBODY), (limit(3, 5, OUTSIDE), NOBODY),
                         TIER_1, (tier(4, 1, OUTSIDE), NOBODY)], {"flags": 0}),
    ("nobody", [(freeze(1, 2, 77), NOBODY), (close(2, 77), NOBODY), (limit(3, 5, 77), NOBODY),
                (tier(4, 0, 77), NOBODY)], {"flags": 0}),
    ("opened in the batch", [(freeze(1, 2, 8), NOBODY), (opening_record(2, 8), OK), (freeze(1, 2, 8), OK),
                             (request_record(3, debit=8, credit=1, amount=1), "DEBIT_FROZEN")], {"flags": 0}),
    ("close", [(close(1), OK), (request_record(2, amount=1), CLOSED), (request_record(3, debit=2, credit=1), CLOSED)],
     {}),
    ("closed for good", [(close(1), OK), (close(2), CLOSED), (freeze(3, 2, 2), CLOSED), (thaw(4, 2, 2), CLOSED),
                         (limit(5, 9, 2), CLOSED), (tier(6, 0, 2), CLOSED), (opening_record(7, 2), "WALLET_EXISTS")],
     {}),
    ("closed while frozen", [(freeze(1, 6, 2), OK), (close(2), OK)], {}),
    ("not empty", [(close(1, 1), "WALLET_NOT_EMPTY"), (OUT, OK)], {"flags": 0}),
    ("in debt", [(request_record(1, debit=3, credit=2), OK), (close(2, 3), "WALLET_NOT_EMPTY")], {"flags": 0}),
    ("all held", [(hold_record(1, amount=1000), OK), (close(2, 1), "WALLET_NOT_EMPTY"),
                  (reference_record(3, Kind.VOID, 1), OK), (OUT, OK)], {"locked": 0}),
    ("emptied in the batch", [(request_record(1, amount=1000), OK), (close(2, 1), OK), (IN, CLOSED)], {"flags": 8}),
    *[(f"no close {n}", [(close(1, 2, n), RANGE)], {"flags": 0}) for n in (1, -1, NAN)],
    ("overdraft", [(limit(1, 5), OK), (request_record(2, amount=1006), FUNDS), (request_record(3, amount=1005), OK)],
     {"available": -5, "overdraft_limit": 5}),
    ("overdraft taken back", [(limit(1, 5), OK), (limit(2, 0), OK), (request_record(3, amount=1001), FUNDS)], {}),
    ("overdraft in use", [(limit(1, 9), OK), (request_record(2, amount=1009), OK), (limit(3, 4), OK),
                          (request_record(4, amount=1), FUNDS), (request_record(5, Kind.TOP_UP, OUTSIDE, 1, 5), OK),
                          (request_record(6, amount=1), FUNDS), (request_record(7, Kind.TOP_UP, OUTSIDE, 1, 1), OK),
                          (request_record(8, amount=1), OK)], {"available": -4, "overdraft_limit": 4}),
    ("the highest", [(limit(1, MAX_AMOUNT_MINOR), OK)], {"overdraft_limit": MAX_AMOUNT_MINOR}),
    *[(f"no overdraft {n}", [(limit(1, n), RANGE)], {"overdraft_limit": 0}) for n in (-1, 0.5, NAN, INFINITY, 2.0**53)],
    ("tier", [TIER_1, (tier(1, 1), OK)], {"tier": 1}),
    ("tier in the batch", [(tier(1, 1), "TIER_NOT_FOUND"), TIER_1, (tier(1, 1), OK)], {"tier": 1}),
    ("no tier", [(tier(1, 1), "TIER_NOT_FOUND"), (tier(2, 0), OK)], {"tier": 0}),
    ("tier taken back", [TIER_1, (tier(1, 1), OK), (tier(2, 0), OK)], {"tier": 0}),
    ("the highest tier", [(tier_record(1, MAX_TIER), OK), (tier(2, MAX_TIER), OK)], {"tier": MAX_TIER}),
    *[(f"no tier {n}", [(tier(1, n), RANGE)], {"tier": 0}) for n in (-1, 0.5, NAN, MAX_TIER + 1)],
    *[(f"no limits for {n}", [(tier_record(1, n), RANGE)], {}) for n in (-1, 0, 0.5, NAN, INFINITY, MAX_TIER + 1)],
    ("limits in force at once", [TIER_1, (tier(1, 1), OK), (OUT, OK),
                                 (tier_record(2, 1, AT_MOST_4), OK), (request_record(3, amount=5), "LIMIT_EXCEEDED"),
                                 (request_record(4, amount=4), OK), (tier_record(5, 1), OK),
                                 (request_record(6, amount=5), OK)], {"tier": 1}),
    ("only the debit side's", [(tier_record(2, 2, AT_MOST_4), OK), (tier(3, 2, 2), OK), (OUT, OK),
                               (request_record(4, amount=50), OK),
                               (request_record(5, debit=2, credit=1, amount=5), "LIMIT_EXCEEDED")], {"tier": 0}),
    ("points", [(opening_record(1, external_wallet_id("POINTS"), currency=POINTS, overdraft=0), OK),
                (opening_record(2, 8, currency=POINTS), OK),
                (request_record(3, Kind.TOP_UP, external_wallet_id("POINTS"), 8, 5, currency=POINTS), OK),
                (request_record(4, debit=8, credit=2, amount=1), "CURRENCY_MISMATCH")], {}),
    ("the exponent's bound", [(opening_record(1, JPY_OUTSIDE, overdraft=MAX_EXPONENT + 1), RANGE),
                              (opening_record(2, JPY_OUTSIDE, overdraft=MAX_EXPONENT), OK)], {}),
    ("opened twice", [(opening_record(1, 1), "WALLET_EXISTS"), (opening_record(2, 1, currency=EUR), "WALLET_EXISTS")],
     {"currency": USD}),
]  # fmt: skip


@pytest.mark.parametrize(("what", "steps", "fields"), CASES, ids=case_ids(CASES))
def test_a_change(clocked: ShardDriver, what: str, steps: list[Step], fields: dict[str, Any]) -> None:
    for at_once in both_ways(clocked):
        run(clocked, steps, at_once=at_once)
        wallet = clocked.wallet(1)
        assert {name: wallet[name] for name in fields} == fields
        assert_sound(clocked)


CHANGES: list[tuple[str, Asked]] = [
    (OK, freeze(1, 2)),
    (OK, thaw(1)),
    (OK, close(1)),
    (OK, limit(1, 7)),
    (OK, tier(1, 3)),
    (OK, tier(1, 0)),
    (OK, tier_record(1, 4, tier_limits(day_count=3))),
    (OK, opening_record(1, 8)),
    (RANGE, freeze(1, 8)),
    (NOBODY, freeze(1, 2, 77)),
    ("TIER_NOT_FOUND", tier(1, 9)),
    ("WALLET_NOT_EMPTY", close(1, 1)),
    (CLOSED, freeze(1, 2, 5)),
    ("WALLET_EXISTS", opening_record(1, 5)),
]


@pytest.mark.parametrize(("status", "record"), CHANGES, ids=case_ids(CHANGES))
def test_a_change_repeated(clocked: ShardDriver, status: str, record: Asked) -> None:
    """What was done is not done again, and what sticks sticks, even if the wallet changed since."""
    run(clocked, [(tier_record(80, 3), OK), (opening_record(81, 5), OK), (close(82, 5), OK)])
    version = clocked.wallet(1)["version"]
    first = clocked.one(record)
    assert first.status == status
    if status == OK and record[17] in (Kind.FREEZE, Kind.UNFREEZE, Kind.SET_OVERDRAFT_LIMIT, Kind.SET_TIER):
        assert clocked.wallet(1)["version"] == version + 1
    undo: list[Step] = [(thaw(83), OK), (freeze(84, 4), OK), (limit(85, 1), OK), (tier(86, 0), OK)]
    run(clocked, [*undo, (tier_record(87, 4), OK)])
    before = clocked.image()
    again = clocked.one(record)
    assert (again.status, again.replayed) == (status, Status(status) in RECORDED)
    assert again.debit_available_minor == first.debit_available_minor
    assert clocked.image() == before
    assert_sound(clocked)


def test_the_usage_comes_and_goes_with_the_tier(clocked: ShardDriver) -> None:
    key = clocked.keys.wallet(1)
    run(clocked, [TIER_1, (tier_record(91, 2), OK), (tier(1, 1), OK), (request_record(2, amount=10), OK)])
    assert len(clocked.redis.get(key)) == WALLET.size + USAGE.size
    assert clocked.usage(1)["day_amount"] == 10
    run(clocked, [(tier(3, 2), OK), (request_record(4, amount=5), OK)])
    assert clocked.usage(1)["day_amount"] == 15, "what was used today was used, whichever tier it was"
    run(clocked, [(tier(5, 0), OK)])
    assert len(clocked.redis.get(key)) == WALLET.size
    run(clocked, [(tier(6, 1), OK)])
    assert clocked.usage(1)["day_amount"] == 0
    assert_sound(clocked)


def test_flags_add_up(clocked: ShardDriver) -> None:
    run(clocked, [(freeze(1, FLAG_DEBIT_FROZEN, 2), OK), (freeze(2, FLAG_CREDIT_FROZEN, 2), OK), (close(3), OK)])
    assert clocked.wallet(2)["flags"] == FLAG_DEBIT_FROZEN | FLAG_CREDIT_FROZEN | FLAG_CLOSED
    run(clocked, [(request_record(4), CLOSED), (request_record(5, debit=2, credit=1, amount=1), CLOSED)])


def test_reads_show_the_state(clocked: ShardDriver) -> None:
    run(clocked, [TIER_1, (tier(1, 1), OK), (freeze(2, 2), OK)])
    _, one, two, nobody = clocked.wallets_packed(1, 2, 77)
    assert (len(one), len(two), nobody) == (WALLET.size + USAGE.size, WALLET.size, b"")
    assert one == clocked.redis.get(clocked.keys.wallet(1))
    assert clocked.call("hotledger_tier", 1) == tier_limits()
    assert clocked.call("hotledger_tier", 2) == b""
    for wrong in ("", "x", -1, 0.5, MAX_TIER + 1, "nan"):
        with pytest.raises(Exception, match="^INVALID tier"):
            clocked.call("hotledger_tier", wrong)


def test_what_names_no_wallet_has_none_of_the_call_before(funded: ShardDriver) -> None:
    """Lua's tables stay from call to call."""
    for number, record in enumerate((tier_record(95, 0), freeze(96, 1), reference_record(97, Kind.VOID, 77))):
        assert funded.statuses([request_record(100 + number, amount=1)]) == [OK]
        [refused] = ANSWER.struct.iter_unpack(funded.post_raw(record, b"", record.attached)[REPLY_HEADER.size :])
        answer = dict(zip((name for name, _ in ANSWER.fields), refused, strict=True))
        own = 999 - number if record[17] == Kind.FREEZE else 0
        assert answer["status"] != 0
        assert (answer["debit_available"], answer["credit_available"]) == (own, 0)
    assert_sound(funded)
