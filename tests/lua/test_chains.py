"""Chains: all of one happens or none, whatever is in it; and what its ids are good for afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from engine.domain.limits import Rule
from engine.domain.status import RECORDED, Status
from engine.domain.transfer import Kind, RequestFlag
from tests.fixtures.shard import (
    EURO_OUTSIDE,
    OUTSIDE,
    Asked,
    ShardDriver,
    capture_record,
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
from tests.lua.books import assert_sound
from tests.lua.steps import OK, case_ids, run

FAILED, OTHER_CHAIN = "LINKED_FAILED", "EXISTS_WITH_DIFFERENT_CHAIN"
DEVICE = b"device-1"
LIMITS = tier_limits(max_amount=500, day_amount=900, device_attempts=100, device_wallets=5, new_device_amount=400)


def undone(image: dict[bytes, Any]) -> dict[bytes, Any]:
    """Without what a failed chain may leave: outcomes, attempts, and the side stream."""
    return {
        key: image[key] for key in image if not any(part in key for part in (b":idem:", b":attempts:", b":declined"))
    }


def by_device(number: int, amount: float, **fields: Any) -> Asked:
    return request_record(number, amount=amount, attached=terms(device=DEVICE, ip=b"address1"), **fields)


@pytest.fixture
def varied(clocked: ShardDriver) -> ShardDriver:
    """Besides: hold 100 (from 1, 100 of 150 left), transfer 102 (from 1, 90 of 100 refundable), wallet 5, tiers 1, 2;
    wallet 1 has tier 1."""
    run(
        clocked,
        [
            (opening_record(110, 5), OK),
            (tier_record(111, 1, LIMITS), OK),
            (tier_record(112, 2), OK),
            (wallet_change(113, Kind.SET_TIER, 1, 1), OK),
            (hold_record(100, 1, 2, 150, expires_in_ms=10**6), OK),
            (capture_record(101, 100, 50, final=False), OK),
            (request_record(102, Kind.PAYMENT, 1, 2, 100), OK),
            (reference_record(103, Kind.REFUND, 102, 10), OK),
            (hold_record(104, 1, 3, 20), OK),
            (by_device(105, 1), OK),
        ],
    )
    return clocked


EVERYTHING = [
    by_device(1, 10),
    hold_record(2, 1, 2, 30, expires_in_ms=5000, device=b"device-2"),
    reference_record(3, Kind.RAISE_HOLD, 2, 5),
    capture_record(4, 2, 20, final=False),
    capture_record(5, 100, 60),
    reference_record(6, Kind.VOID, 104),
    reference_record(7, Kind.REFUND, 102, 30),
    reference_record(8, Kind.REFUND, 4, 5),
    reference_record(9, Kind.CHARGEBACK, 9007, 700),
    opening_record(10, 6),
    wallet_change(11, Kind.FREEZE, 3, 2),
    wallet_change(12, Kind.SET_OVERDRAFT_LIMIT, 3, 700),
    wallet_change(13, Kind.SET_TIER, 3, 1),
    wallet_change(14, Kind.SET_TIER, 1, 0),
    tier_record(15, 1, tier_limits(max_amount=1)),
    tier_record(16, 3, tier_limits(max_amount=1)),
    wallet_change(17, Kind.SET_TIER, 2, 2),
    wallet_change(18, Kind.CLOSE_WALLET, 5),
    request_record(19, Kind.TOP_UP, OUTSIDE, 6, 77, details_size=4, digest=b"digest-1"),
    request_record(20, debit=6, credit=2, amount=200, flags=RequestFlag.BALANCING),
]  # fmt: skip


def test_everything_in_a_chain_happens(varied: ShardDriver) -> None:
    assert varied.statuses(chain(*EVERYTHING), details=b"more") == [OK] * len(EVERYTHING)
    assert varied.balance(6) == (0, 0)
    assert_sound(varied)
    again = varied.post(chain(*EVERYTHING), details=b"more")
    assert [(outcome.status, outcome.replayed) for outcome in again] == [(OK, True)] * len(EVERYTHING)


CULPRITS: list[tuple[str, Asked]] = [
    ("INSUFFICIENT_FUNDS", request_record(50, debit=2, credit=1, amount=10**6)),
    ("CREDIT_WALLET_NOT_FOUND", request_record(50, debit=2, credit=77)),
]


@pytest.mark.parametrize("place", [0, 4, 12, len(EVERYTHING)])
@pytest.mark.parametrize(("status", "culprit"), CULPRITS, ids=case_ids(CULPRITS))
def test_a_failed_chain_leaves_every_key_as_it_was(
    varied: ShardDriver, status: str, culprit: Asked, place: int
) -> None:
    """But the outcomes, if the refusal sticks: then all of the chain's ids keep theirs."""
    members = [*EVERYTHING[:place], culprit, *EVERYTHING[place:]]
    before = varied.image()
    expected = [FAILED] * place + [status] + [FAILED] * (len(EVERYTHING) - place)
    first = varied.post(chain(*members), details=b"more")
    assert [outcome.status for outcome in first] == expected
    assert undone(varied.image()) == undone(before)
    assert_sound(varied)
    sticks = Status(status) in RECORDED
    kept = varied.lookup(*range(1, 21), 50)[1:]
    assert [bool(outcome) for outcome in kept] == [sticks] * 21
    again = varied.post(chain(*members), details=b"more")
    assert [outcome._replace(replayed=False) for outcome in again] == first
    assert [outcome.replayed for outcome in again] == [sticks] * 21


@pytest.mark.parametrize("accepted", [True, False])
def test_what_is_beside_a_failed_chain_is_not_concerned(varied: ShardDriver, accepted: bool) -> None:
    """In the same batch, ahead of it and after it, with the same wallets, hold, transfer and device."""
    ahead = [by_device(60, 5), capture_record(61, 100, 10, final=False), reference_record(62, Kind.REFUND, 102, 1)]
    after = [by_device(70, 5), capture_record(71, 100), reference_record(72, Kind.REFUND, 102), opening_record(73, 6)]
    after += [tier_record(74, 3, tier_limits(day_count=1)), wallet_change(75, Kind.SET_TIER, 3, 3)]
    failing = [] if accepted else [request_record(50, debit=2, credit=77)]
    members = chain(*EVERYTHING[:13], *failing)
    found = varied.statuses([*ahead, *members, *after])
    assert found[: len(ahead)] == [OK] * len(ahead)
    if accepted:
        assert found[len(ahead) : len(ahead) + 13] == [OK] * 13
    else:
        assert found[len(ahead) :] == [FAILED] * 13 + ["CREDIT_WALLET_NOT_FOUND"] + [OK] * len(after)
    assert_sound(varied)


@pytest.mark.parametrize("kept_devices", [False, True])
def test_a_device_first_used_in_a_failed_chain_is_not_known(clocked: ShardDriver, kept_devices: bool) -> None:
    run(clocked, [(tier_record(80, 1, tier_limits(new_device_amount=400)), OK)])
    if kept_devices:
        run(clocked, [(wallet_change(81, Kind.SET_TIER, 1, 1), OK), (by_device(82, 1), OK)])
    known = clocked.redis.get(clocked.keys.known_devices(1))
    used = request_record(2, attached=terms(device=b"device-2"))
    members = chain(wallet_change(1, Kind.SET_TIER, 1, 1), used, request_record(3, debit=2, credit=77))
    found = clocked.statuses([*members, request_record(4, Kind.TOP_UP, OUTSIDE, 2, 5)])
    assert found == [FAILED, FAILED, "CREDIT_WALLET_NOT_FOUND", OK]
    assert clocked.redis.get(clocked.keys.known_devices(1)) == known
    assert_sound(clocked)


def test_what_a_failed_chain_used_of_the_limits_is_not_used(clocked: ShardDriver) -> None:
    run(clocked, [(tier_record(80, 1, tier_limits(debt_first=0)), OK), (wallet_change(81, Kind.SET_TIER, 1, 1), OK)])
    spent = [request_record(1, amount=900), reference_record(2, Kind.CHARGEBACK, 9007), request_record(3, credit=77)]
    found = clocked.statuses([*chain(*spent), request_record(4, amount=7)])
    assert found == [FAILED, FAILED, "CREDIT_WALLET_NOT_FOUND", OK]
    usage = clocked.usage(1)
    assert [usage[name] for name in ("day_amount", "day_count", "hour_amount", "window_count", "debt")] == [
        7,
        1,
        7,
        1,
        0,
    ]
    assert_sound(clocked)


def test_attempts_in_a_failed_chain_stay_counted(clocked: ShardDriver) -> None:
    run(
        clocked,
        [(tier_record(80, 1, tier_limits(device_attempts=3)), OK), (wallet_change(81, Kind.SET_TIER, 1, 1), OK)],
    )
    failing = request_record(9, debit=2, credit=77)
    assert clocked.statuses(chain(by_device(1, 1), by_device(2, 1), failing))[2] == "CREDIT_WALLET_NOT_FOUND"
    run(clocked, [(by_device(3, 1), OK), (by_device(4, 1), "LIMIT_EXCEEDED")])


def test_the_culprits_answer_says_which_rule(clocked: ShardDriver) -> None:
    """Also when the rule would send a single movement to review: a chain cannot wait for an operator."""
    limits = tier_limits(max_amount=50, day_amount=120, review=[Rule.DAY_AMOUNT])
    run(clocked, [(tier_record(80, 1, limits), OK), (wallet_change(81, Kind.SET_TIER, 1, 1), OK)])
    members = chain(*[request_record(n, amount=50) for n in (1, 2, 3)], request_record(4, debit=2, credit=3, amount=1))
    first = clocked.post(members)
    assert [outcome.status for outcome in first] == [FAILED, FAILED, "LIMIT_EXCEEDED", FAILED]
    assert (first[2].rule, first[2].used) == (Rule.DAY_AMOUNT, 100)
    assert first[2].retry_at_ms > clocked.server_ms()
    assert [outcome.rule for outcome in first] == [0, 0, Rule.DAY_AMOUNT, 0]
    assert [outcome._replace(replayed=False) for outcome in clocked.post(members)] == first
    assert [item["rule"] for item in clocked.declined()] == [Rule.DAY_AMOUNT]
    assert_sound(clocked)


PAY, MORE, LAST = request_record(1), request_record(2, amount=50), request_record(3, amount=5)
POOR = request_record(4, debit=2, credit=1, amount=10**6)

# (what, first batches, then this batch, its statuses)
REPLAYS: list[tuple[str, list[Sequence[Asked]], list[Asked], list[str]]] = [
    ("the same", [chain(PAY, MORE)], chain(PAY, MORE), [OK, OK]),
    ("the same twice in a batch", [], [*chain(PAY, MORE), *chain(PAY, MORE)], [OK] * 4),
    ("a failed one twice in a batch", [], [*chain(PAY, POOR), *chain(PAY, POOR)], [FAILED, "INSUFFICIENT_FUNDS"] * 2),
    ("longer", [chain(PAY, MORE)], chain(PAY, MORE, LAST), [OTHER_CHAIN, FAILED, FAILED]),
    ("shorter", [chain(PAY, MORE, LAST)], chain(PAY, MORE), [OTHER_CHAIN, OTHER_CHAIN]),
    ("in another order", [chain(PAY, MORE)], chain(MORE, PAY), [OTHER_CHAIN, OTHER_CHAIN]),
    ("with another amount", [chain(PAY, MORE)], chain(PAY, request_record(2, amount=51)), [OTHER_CHAIN, OTHER_CHAIN]),
    ("of another kind", [chain(PAY, MORE)], chain(PAY, request_record(2, Kind.PAYMENT)),
     [OTHER_CHAIN, "EXISTS_WITH_DIFFERENT_KIND"]),
    ("its last alone", [chain(PAY, MORE)], [MORE], [OTHER_CHAIN]),
    ("its first alone", [chain(PAY, MORE)], [PAY], [OTHER_CHAIN]),
    ("what was alone, as last", [[MORE]], chain(PAY, MORE), [FAILED, OTHER_CHAIN]),
    ("what was alone, as first", [[PAY]], chain(PAY, MORE), [OTHER_CHAIN, FAILED]),
    ("what was alone, of another kind", [[PAY]], chain(request_record(1, Kind.PAYMENT), MORE),
     ["EXISTS_WITH_DIFFERENT_KIND", FAILED]),
    ("of two", [chain(PAY, MORE), chain(LAST, POOR)], chain(PAY, LAST), [OTHER_CHAIN, OTHER_CHAIN]),
    ("of a failed one", [chain(PAY, POOR)], chain(PAY, MORE), [OTHER_CHAIN, FAILED]),
    ("of one that left nothing", [chain(PAY, request_record(5, credit=77))], chain(PAY, MORE), [OK, OK]),
    ("an id twice", [], chain(PAY, PAY), [FAILED, OTHER_CHAIN]),
    ("an id twice, otherwise", [], chain(PAY, MORE, request_record(1, amount=7)), [FAILED, FAILED, OTHER_CHAIN]),
    ("an id twice, alone before", [], [PAY, *chain(PAY, MORE)], [OK, OTHER_CHAIN, FAILED]),
    ("an id twice, alone after", [], [*chain(PAY, MORE), PAY], [OK, OK, OTHER_CHAIN]),
    ("a failed one's id alone after", [], [*chain(PAY, request_record(5, credit=77)), PAY],
     [FAILED, "CREDIT_WALLET_NOT_FOUND", OK]),
    ("of one", [], chain(PAY), [OK]),
    ("two", [], [*chain(PAY, MORE), *chain(LAST, request_record(6, debit=2, amount=155, credit=3))], [OK] * 4),
    ("one fails, one not", [], [*chain(PAY, POOR), *chain(MORE, LAST)], [FAILED, "INSUFFICIENT_FUNDS", OK, OK]),
]  # fmt: skip


@pytest.mark.parametrize(("what", "batches", "batch", "statuses"), REPLAYS, ids=case_ids(REPLAYS))
def test_what_a_chain_is_the_same_as(
    clocked: ShardDriver, what: str, batches: list[list[Asked]], batch: list[Asked], statuses: list[str]
) -> None:
    for earlier in batches:
        clocked.post(earlier)
    assert clocked.statuses(batch) == statuses
    assert_sound(clocked)
    after = clocked.image()
    clocked.post(batch)
    assert undone(clocked.image()) == undone(after), "nothing happens twice"


def test_an_open_chain(clocked: ShardDriver) -> None:
    """Its last request is linked to one that does not come: nothing of it is decided, nothing is kept."""
    members = chain(PAY, MORE, LAST)[:2]
    assert clocked.statuses([request_record(7), *members]) == [OK, FAILED, "LINKED_CHAIN_OPEN"]
    before = clocked.image()
    assert clocked.statuses(members) == [FAILED, "LINKED_CHAIN_OPEN"]
    assert clocked.statuses(members[:1]) == ["LINKED_CHAIN_OPEN"]
    assert clocked.image() == before
    assert clocked.statuses(chain(PAY, MORE, LAST)) == [OK, OK, OK]
    assert_sound(clocked)


def test_a_chain_needs_room_for_all_of_it(clocked: ShardDriver) -> None:
    backlog = clocked.meta()["sequence"] - clocked.meta()["persisted"]
    clocked.open(max_backlog=backlog + 3)
    before = clocked.image()
    assert clocked.statuses(chain(PAY, MORE, LAST, request_record(7))) == ["LEDGER_BACKLOG", FAILED, FAILED, FAILED]
    assert clocked.image() == before
    found = clocked.statuses(
        [request_record(8), *chain(PAY, MORE, LAST), *chain(request_record(9), request_record(10))]
    )
    assert found == [OK, "LEDGER_BACKLOG", FAILED, FAILED, OK, OK]
    assert_sound(clocked)


def test_what_was_refused_with_nonsense_beside_it_can_be_asked_again(clocked: ShardDriver) -> None:
    """The amount of the chain's other request was never looked at."""
    for number, amount in enumerate((float("nan"), -1, 0.5, float("inf")), 20):
        members = chain(
            request_record(100 + number, debit=2, credit=1, amount=10**6), request_record(number, amount=amount)
        )
        for _ in range(2):
            assert clocked.statuses(members) == ["INSUFFICIENT_FUNDS", FAILED]
        assert clocked.lookup(number)[1]


@pytest.mark.parametrize("tier", [float("nan"), float("inf"), 0.5, -1, 0, 65536])
def test_a_tier_that_is_none(clocked: ShardDriver, tier: float) -> None:
    assert clocked.statuses(chain(PAY, tier_record(2, tier))) == [FAILED, "AMOUNT_OUT_OF_RANGE"]
    assert clocked.statuses([tier_record(2, tier)]) == ["AMOUNT_OUT_OF_RANGE"]
    assert_sound(clocked)


def test_a_hold_of_the_batch_whose_id_came_twice(clocked: ShardDriver) -> None:
    """What a failed chain did to it is undone at the wallets that it really is of."""
    members = chain(capture_record(2, 1), request_record(3, debit=2, credit=77))
    batch = [hold_record(1, 3, 2, 0), hold_record(1), *members, request_record(4, amount=1)]
    expected = ["AMOUNT_OUT_OF_RANGE", OK, FAILED, "CREDIT_WALLET_NOT_FOUND", OK]
    assert clocked.statuses(batch) == expected
    assert clocked.balance(1) == (899, 100)
    assert_sound(clocked)


def test_a_transfer_of_the_batch_whose_id_came_twice(clocked: ShardDriver) -> None:
    members = chain(reference_record(2, Kind.REFUND, 1), request_record(3, debit=2, credit=77))
    batch = [request_record(1, debit=3, amount=0), request_record(1), *members, request_record(4, amount=1)]
    assert clocked.statuses(batch)[1:] == [OK, FAILED, "CREDIT_WALLET_NOT_FOUND", OK]
    assert clocked.balance(1) == (899, 0)
    assert_sound(clocked)


def test_a_failed_chain_forgets_no_hold(clocked: ShardDriver) -> None:
    """A hold that outlived its outcome is not overwritten by a review under its id."""
    limits = tier_limits(max_amount=10, review=[Rule.MAX_AMOUNT])
    run(clocked, [(hold_record(1), OK), (tier_record(80, 1, limits), OK), (wallet_change(81, Kind.SET_TIER, 3, 1), OK)])
    for _ in range(2):
        clocked.end_generation()
    members = chain(request_record(1, debit=3, credit=2, amount=5), request_record(3, debit=2, credit=77))
    found = clocked.statuses([*members, request_record(1, debit=3, credit=2, amount=20)])
    assert found == [FAILED, "CREDIT_WALLET_NOT_FOUND", "HOLD_EXISTS"]
    assert_sound(clocked)


def test_an_exchange_through_two_liquidity_wallets(clocked: ShardDriver) -> None:
    """100 USD of wallet 1 for 90 EUR to wallet 4, or nothing: 5 has dollars, 6 euros."""
    run(clocked, [(opening_record(10, 5), OK), (opening_record(11, 6, currency=b"EUR".ljust(8, b"\0")), OK)])
    legs = chain(request_record(1, debit=1, credit=5, amount=100), request_record(2, debit=6, credit=4, amount=90))
    assert clocked.statuses(legs) == [FAILED, "INSUFFICIENT_FUNDS"]
    run(clocked, [(request_record(12, Kind.TOP_UP, EURO_OUTSIDE, 6, 90), OK)])
    legs = chain(request_record(3, debit=1, credit=5, amount=100), request_record(4, debit=6, credit=4, amount=90))
    assert clocked.statuses(legs) == [OK, OK]
    assert [clocked.balance(wallet_id)[0] for wallet_id in (1, 5, 6, 4)] == [900, 100, 0, 1090]
    assert_sound(clocked)
