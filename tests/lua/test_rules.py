"""The fraud rules: each at its limit and above, by decline and by review, and what windows and days do to them.

It is ten o'clock, so an hour's window begins; wallet 1 has 1,000 and tier 1.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any, NamedTuple

import pytest

from engine.domain.limits import DAY_MS, HOUR_MS, KNOWN_DEVICES, NO_LIMIT, Rule
from engine.domain.money import MAX_AMOUNT_MINOR
from engine.domain.status import NUMBER_OF, Status
from engine.domain.transfer import HoldState, Kind, Review
from engine.wire import ATTEMPTS, KNOWN_DEVICE, REQUEST
from tests.fixtures.clock import START_MS
from tests.fixtures.shard import (
    NONE,
    OUTSIDE,
    Asked,
    ShardDriver,
    capture_record,
    chain,
    hold_record,
    opening_record,
    reference_record,
    renumbered,
    request_record,
    terms,
    tier_limits,
    tier_record,
    wallet_change,
)
from tests.lua.books import assert_sound, read_journal
from tests.lua.steps import OK, Step, both_ways, case_ids, run

EXCEEDED, REVIEWED, FUNDS = "LIMIT_EXCEEDED", "UNDER_REVIEW", "INSUFFICIENT_FUNDS"
TEN, MIDNIGHT, MINUTE = START_MS + 10 * HOUR_MS, START_MS + DAY_MS, 60_000
DEVICE, IP = b"device-1", b"address1"


def pay(number: int, amount: float = 1, *, device: bytes = NONE, ip: bytes = NONE, **fields: Any) -> Asked:
    attached = terms(device=device, ip=ip) if device != NONE or ip != NONE else b""
    return request_record(number, amount=amount, attached=attached, **fields)


def limited(shard: ShardDriver, limits: bytes, *wallet_ids: int) -> ShardDriver:
    """Tier 1 with these limits, for wallet 1 and others."""
    run(shard, [(tier_record(9100, 1, limits), OK)])
    run(shard, [(wallet_change(9200 + wallet_id, Kind.SET_TIER, wallet_id, 1), OK) for wallet_id in (1, *wallet_ids)])
    return shard


class Limit(NamedTuple):
    """limits and steps up to them; then the request that breaks the rule, at `now`; used and retry_at as answered."""

    rule: Rule
    limits: dict[str, float]
    steps: list[Step]
    breaks: Asked
    used: int
    retry_at_ms: int


HALF, QUARTERS = HOUR_MS // 2, 3 * HOUR_MS // 4
FOUR = [(pay(n, 100), OK) for n in (1, 2, 3, 4)]
BY_DEVICE: list[Step] = [
    (pay(1, device=DEVICE), OK),
    (pay(2, 10**6, device=DEVICE), FUNDS),
    (pay(3, device=DEVICE), OK),
]
BY_IP: list[Step] = [(pay(1, ip=IP), OK), (pay(2, credit=77, ip=IP), "CREDIT_WALLET_NOT_FOUND"), (pay(3, ip=IP), OK)]

LIMITS = [
    Limit(Rule.MAX_AMOUNT, {"max_amount": 100}, [(pay(1, 100), OK)], pay(9, 101), 0, 0),
    Limit(Rule.MAX_AMOUNT, {"max_amount": 0}, [], pay(9, 1), 0, 0),
    Limit(Rule.DAY_AMOUNT, {"day_amount": 300}, [(pay(1, 200), OK), (pay(2, 100), OK)], pay(9, 1), 300, MIDNIGHT),
    Limit(Rule.DAY_AMOUNT, {"day_amount": 300}, [(pay(1, 200), OK)], pay(9, 101), 200, MIDNIGHT),
    Limit(Rule.DAY_AMOUNT, {"day_amount": 300}, [(pay(1, 200), OK)], pay(9, 301), 200, 0),
    Limit(Rule.DAY_AMOUNT, {"day_amount": 300}, [(pay(1, 300), OK), 14 * HOUR_MS - 1], pay(9, 1), 300, MIDNIGHT),
    Limit(Rule.DAY_COUNT, {"day_count": 2}, [(pay(1), OK), (pay(2), OK)], pay(9), 2, MIDNIGHT),
    Limit(Rule.DAY_COUNT, {"day_count": 0}, [], pay(9), 0, 0),
    # Four at ten: the window of ten is full, that of eleven has room for one when a quarter of those slid out.
    Limit(Rule.WINDOW_COUNT, {"window_count": 4}, FOUR, pay(9), 4, TEN + 75 * MINUTE + 1),
    Limit(Rule.WINDOW_COUNT, {"window_count": 4}, [*FOUR, HOUR_MS], pay(9), 4, TEN + 75 * MINUTE + 1),
    Limit(Rule.WINDOW_COUNT, {"window_count": 4}, [*FOUR, HOUR_MS + HALF, (pay(5), OK), (pay(6), OK)], pay(9), 4,
          TEN + 105 * MINUTE + 1),
    Limit(Rule.WINDOW_COUNT, {"window_count": 4}, [*FOUR, HOUR_MS + HALF // 2, (pay(5), OK)], pay(9), 4,
          TEN + 90 * MINUTE + 1),
    Limit(Rule.WINDOW_COUNT, {"window_count": 4, "window_ms": 5000}, [*FOUR, 6000], pay(9), 4, TEN + 6250 + 1),
    Limit(Rule.WINDOW_COUNT, {"window_count": 0}, [], pay(9), 0, 0),
    Limit(Rule.HOUR_AMOUNT, {"hour_amount": 400}, FOUR, pay(9, 100), 400, TEN + 75 * MINUTE + 1),
    Limit(Rule.HOUR_AMOUNT, {"hour_amount": 400}, [*FOUR, HOUR_MS + HALF, (pay(5, 200), OK)], pay(9, 100), 400,
          TEN + 105 * MINUTE + 1),
    Limit(Rule.HOUR_AMOUNT, {"hour_amount": 400}, FOUR, pay(9, 401), 400, 0),
    # Attempts count those that were refused, and the one that is.
    Limit(Rule.DEVICE_ATTEMPTS, {"device_attempts": 3}, BY_DEVICE, pay(9, device=DEVICE), 3, TEN + 90 * MINUTE + 1),
    Limit(Rule.DEVICE_ATTEMPTS, {"device_attempts": 3, "attempts_window_ms": 5000}, BY_DEVICE, pay(9, device=DEVICE), 3,
          TEN + 7500 + 1),
    Limit(Rule.DEVICE_ATTEMPTS, {"device_attempts": 0}, [(pay(1, ip=IP), OK)], pay(9, device=DEVICE), 0, 0),
    Limit(Rule.IP_ATTEMPTS, {"ip_attempts": 3}, BY_IP, pay(9, ip=IP), 3, TEN + 90 * MINUTE + 1),
    Limit(Rule.IP_ATTEMPTS, {"ip_attempts": 0}, [(pay(1, device=DEVICE), OK)], pay(9, ip=IP), 0, 0),
    Limit(Rule.DEVICE_WALLETS, {"device_wallets": 1}, [(pay(1, debit=3, device=DEVICE), OK)], pay(9, device=DEVICE), 1,
          MIDNIGHT),
    Limit(Rule.DEVICE_WALLETS, {"device_wallets": 0}, [(pay(1), OK)], pay(9, device=DEVICE), 0, 0),
    Limit(Rule.NEW_DEVICE, {"new_device_amount": 100}, [(pay(1, 101), OK)], pay(9, 101, device=DEVICE), 0, 0),
    Limit(Rule.NEW_DEVICE, {"new_device_amount": 100}, [(pay(1, 100, device=DEVICE), OK), HOUR_MS],
          pay(9, 101, device=DEVICE), 0, TEN + DAY_MS),
    Limit(Rule.NEW_DEVICE, {"new_device_amount": 0, "new_device_ms": 0}, [], pay(9, device=DEVICE), 0, 0),
]  # fmt: skip
ATTEMPT_RULES = {Rule.DEVICE_ATTEMPTS, Rule.IP_ATTEMPTS}


@pytest.mark.parametrize("case", LIMITS, ids=case_ids([(case.rule.name,) for case in LIMITS]))
def test_a_limit_that_declines(clocked: ShardDriver, case: Limit) -> None:
    """retry_at_ms is the time from which on it is accepted, and it is not much too late."""
    limited(clocked, tier_limits(**case.limits), 3)
    run(clocked, case.steps)
    before = (clocked.balance(1), clocked.balance(2))
    answer = clocked.one(case.breaks)
    assert (answer.status, answer.rule, answer.used) == (EXCEEDED, case.rule, case.used)
    assert answer.retry_at_ms == case.retry_at_ms
    assert answer.amount_minor == 0
    assert (clocked.balance(1), clocked.balance(2)) == before
    declined = clocked.declined()[-1]
    assert declined == {
        "time_ms": clocked.server_ms(),
        "id": case.breaks[:16],
        "kind": Kind.TRANSFER,
        "status": NUMBER_OF[Status.LIMIT_EXCEEDED],
        "rule": case.rule,
        "debit": 1,
        "credit": 2,
        "amount": REQUEST.unpack(case.breaks)["amount"],
        "device": case.breaks.attached[-16:-8] or NONE,
        "ip": case.breaks.attached[-8:] or NONE,
    }
    assert clocked.one(case.breaks) == answer._replace(replayed=True)
    if answer.retry_at_ms:
        clocked.pass_time(answer.retry_at_ms - clocked.server_ms() - 2)
        if case.rule not in ATTEMPT_RULES:  # to ask would be an attempt
            run(clocked, [(renumbered(case.breaks, 10), EXCEEDED)])
        clocked.pass_time(2)
        run(clocked, [(case.breaks, EXCEEDED), (renumbered(case.breaks, 11), OK)])
    assert_sound(clocked)


@pytest.mark.parametrize("case", LIMITS, ids=case_ids([(case.rule.name,) for case in LIMITS]))
def test_a_limit_that_sends_to_review(clocked: ShardDriver, case: Limit) -> None:
    limited(clocked, tier_limits(**case.limits, review=[case.rule]), 3)
    run(clocked, case.steps)
    available = clocked.balance(1)[0]
    answer = clocked.one(case.breaks)
    amount = answer.amount_minor
    assert (answer.status, answer.rule) == (REVIEWED, case.rule)
    assert answer.debit_available_minor == available - amount
    assert clocked.balance(1) == (available - amount, amount)
    hold = clocked.hold(9)
    assert hold
    assert (hold["review"], hold["purpose"], hold["remaining"]) == (Review.TRANSFER, Kind.TRANSFER, amount)
    assert hold["expires_at_ms"] == 0
    last = read_journal(clocked)[-1]
    assert (last.id, last.kind, last.link["rule"] if last.link else 0) == (9, Kind.HOLD, case.rule)
    assert (last.origin is not None) == bool(case.breaks.attached)
    assert clocked.one(case.breaks) == answer._replace(replayed=True)
    run(clocked, [(reference_record(20, Kind.APPROVE_HOLD, 9), OK)])
    assert clocked.balance(1) == (available - amount, 0)
    assert_sound(clocked)


def test_a_device_under_review_is_not_yet_known(clocked: ShardDriver) -> None:
    limited(clocked, tier_limits(new_device_amount=100, new_device_ms=0, review=[Rule.NEW_DEVICE]))
    run(clocked, [(pay(1, 101, device=DEVICE), REVIEWED), (reference_record(2, Kind.APPROVE_HOLD, 1), OK)])
    run(
        clocked,
        [(pay(3, 101, device=DEVICE), REVIEWED), (pay(4, 100, device=DEVICE), OK), (pay(5, 101, device=DEVICE), OK)],
    )
    assert_sound(clocked)


# Each request breaks the rule of its number, and all with a greater one if they are limited too.
BREAKERS = {
    Rule.MAX_AMOUNT: {"max_amount": 5},
    Rule.DAY_AMOUNT: {"day_amount": 5},
    Rule.DAY_COUNT: {"day_count": 0},
    Rule.WINDOW_COUNT: {"window_count": 0},
    Rule.HOUR_AMOUNT: {"hour_amount": 5},
    Rule.DEVICE_ATTEMPTS: {"device_attempts": 0},
    Rule.IP_ATTEMPTS: {"ip_attempts": 0},
    Rule.DEVICE_WALLETS: {"device_wallets": 0},
    Rule.NEW_DEVICE: {"new_device_amount": 5},
}


def test_which_rule_is_named(clocked: ShardDriver) -> None:
    """The lowest number of those that decline; if none declines, of those that review."""
    rules = list(Rule)
    number = 100
    run(clocked, [(tier_record(9100, 1), OK), (wallet_change(9201, Kind.SET_TIER, 1, 1), OK)])
    for lower, higher in pairwise(rules):
        for review, status, named in (
            ([], EXCEEDED, lower),
            ([lower, higher], REVIEWED, lower),
            ([lower], EXCEEDED, higher),
            ([higher], EXCEEDED, lower),
        ):
            limits = tier_limits(**BREAKERS[lower], **BREAKERS[higher], review=review)
            number += 2
            run(clocked, [(tier_record(number, 1, limits), OK)])
            answer = clocked.one(pay(number + 1, 6, device=b"new %04d" % number, ip=IP))
            assert (answer.status, answer.rule) == (status, named), (lower, higher, review)
    for first in rules:
        number += 2
        limits = tier_limits(**{name: n for rule in rules if rule >= first for name, n in BREAKERS[rule].items()})
        run(clocked, [(tier_record(number, 1, limits), OK)])
        assert clocked.one(pay(number + 1, 6, device=b"new %04d" % number, ip=IP)).rule == first
    assert_sound(clocked)


def test_no_limit_is_none(clocked: ShardDriver) -> None:
    """Not even when what was used is beyond what is exact."""
    most = MAX_AMOUNT_MINOR - 1000
    run(clocked, [(request_record(9000, Kind.TOP_UP, OUTSIDE, 1, most), OK)])
    limited(clocked, tier_limits(), 2)
    for number in range(1, 8, 2):
        run(
            clocked,
            [(pay(number, most, device=DEVICE), OK), (pay(number + 1, most, debit=2, credit=1, device=DEVICE), OK)],
        )
    assert clocked.usage(1)["day_amount"] == MAX_AMOUNT_MINOR
    assert clocked.usage(1)["day_count"] == 4
    run(clocked, [(tier_record(9101, 1, tier_limits(day_amount=most)), OK)])
    answer = clocked.one(pay(20, 1))
    assert (answer.status, answer.used) == (EXCEEDED, MAX_AMOUNT_MINOR)
    assert clocked.one(pay(20, 1)).replayed
    assert_sound(clocked)


@pytest.mark.parametrize("name", ["window_ms", "new_device_ms"])
def test_a_time_beyond_what_is_exact(clocked: ShardDriver, name: str) -> None:
    limits = (
        {name: NO_LIMIT, "window_count": 1, "new_device_amount": 0}
        if name == "window_ms"
        else {name: NO_LIMIT, "new_device_amount": 1}
    )
    limited(clocked, tier_limits(**limits))
    run(clocked, [(pay(1, 1, device=DEVICE if name != "window_ms" else NONE), OK)])
    answer = clocked.one(pay(2, 2, device=DEVICE if name != "window_ms" else NONE))
    assert (answer.status, answer.retry_at_ms) == (EXCEEDED, MAX_AMOUNT_MINOR)
    assert clocked.one(pay(2, 2, device=DEVICE if name != "window_ms" else NONE)).replayed


@pytest.mark.parametrize(("name", "amount"), [("day_amount", 300), ("hour_amount", 300)])
def test_days_and_hours_end(clocked: ShardDriver, name: str, amount: int) -> None:
    limited(clocked, tier_limits(**{name: amount}))
    length = DAY_MS if name == "day_amount" else HOUR_MS
    run(clocked, [(pay(1, amount), OK)])
    clocked.pass_time(MIDNIGHT - TEN if name == "day_amount" else 2 * length - 1)
    if name == "hour_amount":  # the last millisecond in which something of the hour before is left
        run(clocked, [(pay(2, amount), EXCEEDED), 1])
    run(clocked, [(pay(3, amount), OK), (pay(4, 1), EXCEEDED), 2 * length, (pay(5, amount), OK)])
    assert_sound(clocked)


def test_a_window_two_windows_ago_counts_nothing(clocked: ShardDriver) -> None:
    limited(clocked, tier_limits(window_count=2, device_attempts=2, ip_attempts=2))
    two = [(pay(n, device=DEVICE, ip=IP), OK) for n in (1, 2)]
    run(clocked, [*two, 2 * HOUR_MS, (pay(3, device=DEVICE, ip=IP), OK), (pay(4, device=DEVICE, ip=IP), OK)])
    assert clocked.usage(1) | {"day_amount": 0} == {
        "day": START_MS // DAY_MS,
        "day_count": 4,
        "hour": TEN // HOUR_MS + 2,
        "window_before": 0,
        "window_count": 2,
        "window": TEN // HOUR_MS + 2,
        "day_amount": 0,
        "hour_before": 0,
        "hour_amount": 2,
        "debt": 0,
    }


def test_counters_of_times_that_are_over_are_moved_or_cleared(clocked: ShardDriver) -> None:
    """Far from any limit, too."""
    limited(clocked, tier_limits(window_count=9, day_amount=999, device_attempts=9, ip_attempts=9))
    numbers = iter(range(1, 9))
    hour, key = TEN // HOUR_MS, clocked.keys.attempts
    for passed_ms, pays, (day, hour_before, before) in (
        (0, 2, (20, 0, 0)),
        (HOUR_MS, 1, (30, 20, 2)),
        (DAY_MS, 1, (10, 0, 0)),
    ):
        clocked.pass_time(passed_ms)
        hour += passed_ms // HOUR_MS
        run(clocked, [(pay(next(numbers), 10, device=DEVICE, ip=IP), OK) for _ in range(pays)])
        assert clocked.usage(1) == {
            "day": hour // 24, "day_count": day // 10, "day_amount": day, "hour": hour, "hour_before": hour_before,
            "hour_amount": 10 * pays, "window": hour, "window_before": before, "window_count": pays, "debt": 0,
        }  # fmt: skip
        kept = clocked.redis.hgetall(key(hour // 24)).values()
        counted = [ATTEMPTS.unpack(packed[: ATTEMPTS.size]) for packed in kept]
        assert counted == [{"window": hour, "before": before, "count": pays}] * 2
    run(clocked, [DAY_MS, (pay(next(numbers), 7), OK)])
    assert (clocked.usage(1)["day_count"], clocked.usage(1)["day_amount"]) == (1, 7)
    assert_sound(clocked)


def test_attempts_are_counted_across_midnight(clocked: ShardDriver) -> None:
    """They are kept by the day and go by themselves; a window may begin on the day before."""
    limited(clocked, tier_limits(device_attempts=3, attempts_window_ms=HOUR_MS * 3 // 2, device_wallets=1), 3)
    clocked.pass_time(MIDNIGHT - TEN - 1)
    run(clocked, [(pay(n, device=DEVICE), OK) for n in (1, 2, 3)])
    today = clocked.keys.attempts(START_MS // DAY_MS)
    assert clocked.redis.execute_command("PEXPIRETIME", today) == START_MS + 2 * DAY_MS
    clocked.pass_time(1)
    answer = clocked.one(pay(4, device=DEVICE))
    assert (answer.status, answer.rule, answer.used) == (EXCEEDED, Rule.DEVICE_ATTEMPTS, 3)
    tomorrow = clocked.keys.attempts(START_MS // DAY_MS + 1)
    assert clocked.redis.hlen(tomorrow) == 1
    window = HOUR_MS * 3 // 2
    field = b"d" + DEVICE + struct.pack("<d", window)
    assert ATTEMPTS.unpack(clocked.redis.hget(tomorrow, field)[: ATTEMPTS.size]) == {
        "window": MIDNIGHT // window,
        "before": 3,
        "count": 1,
    }
    clocked.pass_time(2 * window)
    other = clocked.one(pay(5, debit=3, device=DEVICE))
    assert (other.status, other.rule, other.used) == (EXCEEDED, Rule.DEVICE_WALLETS, 1), "wallets count by the day"
    assert_sound(clocked)


REFUSED: list[tuple[str, Asked]] = [
    ("INSUFFICIENT_FUNDS", pay(2, 1001, device=DEVICE, ip=IP)),
    ("CREDIT_WALLET_NOT_FOUND", pay(2, credit=77, device=DEVICE, ip=IP)),
    ("SAME_WALLET", pay(2, credit=1, device=DEVICE, ip=IP)),
    ("CURRENCY_MISMATCH", pay(2, credit=4, device=DEVICE, ip=IP)),
    ("LIMIT_EXCEEDED", pay(2, 2001, device=DEVICE, ip=IP)),
    ("CREDIT_FROZEN", pay(2, credit=3, device=DEVICE, ip=IP)),
    ("UNDER_REVIEW", pay(2, 100, device=b"device-2", ip=IP)),
    ("POSTED", pay(2, device=DEVICE, ip=IP)),
    ("POSTED", hold_record(2, amount=1, device=DEVICE, ip=IP)),
]


@pytest.mark.parametrize(("status", "record"), REFUSED, ids=case_ids(REFUSED))
def test_every_attempt_counts_once(clocked: ShardDriver, status: str, record: Asked) -> None:
    """Refused or not; but not its repetition, if the answer sticks, and not what is no attempt by anybody."""
    limits = tier_limits(
        max_amount=2000, ip_attempts=3, new_device_amount=50, new_device_ms=0, review=[Rule.NEW_DEVICE]
    )
    limited(clocked, limits)
    run(clocked, [(wallet_change(9300, Kind.FREEZE, 3, 4), OK), (pay(1, device=DEVICE, ip=IP), OK)])
    run(clocked, [(record, status)])
    if status != "CREDIT_WALLET_NOT_FOUND":
        run(clocked, [(record, status), (record, status)])
    run(clocked, [(pay(5, 0, ip=IP), "AMOUNT_OUT_OF_RANGE"), (pay(6, 999, debit=2, credit=1, ip=IP), FUNDS)])
    run(clocked, [(pay(7, device=DEVICE, ip=IP), OK), (pay(8, device=DEVICE, ip=IP), EXCEEDED)])
    assert_sound(clocked)


def test_the_wallets_of_a_device(clocked: ShardDriver) -> None:
    """Distinct ones, a day long, refused attempts too; those that are counted may go on."""
    ids = range(11, 16)
    run(clocked, [(opening_record(n, n), OK) for n in ids], at_once=True)
    run(clocked, [(request_record(100 + n, Kind.TOP_UP, OUTSIDE, n, 100), OK) for n in ids], at_once=True)
    limited(clocked, tier_limits(device_wallets=3), *ids)
    run(clocked, [(pay(1, debit=11, device=DEVICE), OK), (pay(2, 10**6, debit=12, device=DEVICE), FUNDS)])
    run(clocked, [(pay(3, debit=13, device=DEVICE), OK), (pay(4, debit=14, device=DEVICE), EXCEEDED)])
    run(clocked, [(pay(5, debit=14, device=b"device-2"), OK), (pay(6, debit=14), OK)])
    run(clocked, [(pay(7 + n, debit=n, device=DEVICE), OK) for n in (11, 12, 13)], at_once=True)
    run(clocked, [(pay(30, debit=15, device=DEVICE), EXCEEDED), DAY_MS, (pay(31, debit=15, device=DEVICE), OK)])
    assert_sound(clocked)


def test_a_wallet_remembers_the_devices_it_used_last(clocked: ShardDriver) -> None:
    limited(clocked, tier_limits(new_device_amount=1, new_device_ms=1000))
    devices = [b"device%02d" % n for n in range(KNOWN_DEVICES + 1)]
    run(clocked, [(pay(n, device=device), OK) for n, device in enumerate(devices[:-1], 100)])
    run(clocked, [1000, (pay(1, 2, device=devices[0]), OK), (pay(2, device=devices[-1]), OK)])
    key = clocked.keys.known_devices(1)
    kept = [KNOWN_DEVICE.struct.unpack(part) for part in _parts(clocked.redis.get(key), KNOWN_DEVICE.size)]
    assert [device for device, _ in kept] == [*devices[2:-1], devices[0], devices[-1]]
    assert [since for _, since in kept] == [TEN] * (KNOWN_DEVICES - 1) + [TEN + 1000]
    # The one that went was the one used longest ago: it is new again.
    run(clocked, [(pay(3, 2, device=devices[1]), EXCEEDED), (pay(4, 2, device=devices[2]), OK)])
    run(clocked, [(pay(5, device=devices[1]), OK), (pay(6, 2, device=devices[1]), EXCEEDED)])
    run(clocked, [1000, (pay(7, 2, device=devices[1]), OK), (pay(8, 2, device=devices[-1]), OK)])
    assert_sound(clocked)


def _parts(packed: bytes, size: int) -> list[bytes]:
    return [packed[at : at + size] for at in range(0, len(packed), size)]


def test_a_device_is_used_with_success_only_by_what_was_accepted(clocked: ShardDriver) -> None:
    limited(clocked, tier_limits(new_device_amount=10, new_device_ms=0))
    refused = [
        (pay(1, 10**6, device=DEVICE), EXCEEDED),
        (pay(2, 5, credit=77, device=DEVICE), "CREDIT_WALLET_NOT_FOUND"),
    ]
    run(clocked, [*refused, (pay(3, 11, device=DEVICE), EXCEEDED), (hold_record(4, amount=10, device=DEVICE), OK)])
    run(clocked, [(pay(5, 11, device=DEVICE), OK)])
    assert_sound(clocked)


# A batch in which it changes what the rules ask for.
def test_limits_that_come_within_the_batch(clocked: ShardDriver) -> None:
    limited(clocked, tier_limits(ip_attempts=5))
    stricter = tier_limits(device_attempts=1, attempts_window_ms=5000, new_device_amount=500)
    steps: list[Step] = [
        (pay(1, device=DEVICE, ip=IP), OK),
        (tier_record(2, 2, stricter), OK),
        (wallet_change(3, Kind.SET_TIER, 1, 2), OK),
        (pay(4, device=DEVICE, ip=IP), OK),
        (pay(5, device=DEVICE, ip=IP), EXCEEDED),
        (tier_record(6, 2, tier_limits(device_attempts=1, attempts_window_ms=6000)), OK),
        (pay(7, device=DEVICE, ip=IP), OK),
        (wallet_change(8, Kind.SET_TIER, 1, 0), OK),
        (pay(9, device=DEVICE, ip=IP), OK),
        (wallet_change(10, Kind.SET_TIER, 1, 1), OK),
        *[(pay(n, device=DEVICE, ip=IP), OK) for n in (11, 12, 13, 14)],
        (pay(15, device=DEVICE, ip=IP), EXCEEDED),
    ]
    run(clocked, steps, at_once=True)
    fields = clocked.redis.hgetall(clocked.keys.attempts(START_MS // DAY_MS))
    windows = {
        field[9:]: ATTEMPTS.unpack(packed[: ATTEMPTS.size])["window"]
        for field, packed in fields.items()
        if field[:1] == b"d"
    }
    assert windows == {struct.pack("<d", ms): TEN // ms for ms in (5000, 6000)}
    assert_sound(clocked)


def test_a_review_of_each_kind(clocked: ShardDriver) -> None:
    """What is approved is what was asked; a hold that is approved is a hold."""
    limited(clocked, tier_limits(max_amount=10, review=[Rule.MAX_AMOUNT]))
    asked = [
        request_record(1, Kind.PAYMENT, amount=11),
        request_record(2, Kind.WITHDRAWAL, 1, OUTSIDE, 12),
        request_record(3, amount=2000, flags=2),
        hold_record(4, amount=1, purpose=Kind.WITHDRAWAL),
    ]
    assert [outcome.status for outcome in clocked.post(asked)] == [REVIEWED, REVIEWED, REVIEWED, FUNDS]
    holds = [clocked.hold(n) for n in (1, 2, 3)]
    assert [hold["purpose"] for hold in holds if hold] == [Kind.PAYMENT, Kind.WITHDRAWAL, Kind.TRANSFER]
    assert clocked.balance(1) == (0, 1000)
    approvals = [reference_record(10 + n, Kind.APPROVE_HOLD, n) for n in (1, 2, 3)]
    assert [outcome.amount_minor for outcome in clocked.post(approvals)] == [11, 12, 977]
    assert clocked.balance(2) == (988, 0)
    assert_sound(clocked)


def approve(number: int, hold: int) -> Asked:
    return reference_record(number, Kind.APPROVE_HOLD, hold)


REVIEWS: list[tuple[str, list[Step], tuple[int, int, int]]] = [
    # (what, steps after a payment and a hold of 100 were sent to review, available and locked of 1, available of 2)
    ("waits", [], (800, 200, 0)),
    ("no capture", [(capture_record(3, 1), "HOLD_UNDER_REVIEW"), (capture_record(4, 2), "HOLD_UNDER_REVIEW")],
     (800, 200, 0)),
    ("no raise", [(reference_record(3, Kind.RAISE_HOLD, 1, 5), "HOLD_UNDER_REVIEW"),
                  (reference_record(4, Kind.RAISE_HOLD, 2, 5), "HOLD_UNDER_REVIEW")], (800, 200, 0)),
    ("approved", [(approve(3, 1), OK), (approve(4, 2), OK)],
     (800, 100, 100)),
    ("approved twice", [(approve(3, 1), OK), (approve(4, 2), OK),
                        (approve(5, 1), "HOLD_ALREADY_CAPTURED"),
                        (approve(6, 2), "HOLD_NOT_UNDER_REVIEW")], (800, 100, 100)),
    ("approved, then captured", [(approve(3, 2), OK), (capture_record(4, 2, 60), OK)],
     (840, 100, 60)),
    ("approved, but not for more", [(approve(3, 2), OK),
                                    (reference_record(4, Kind.RAISE_HOLD, 2, 9), "LIMIT_EXCEEDED")], (800, 200, 0)),
    ("rejected", [(reference_record(3, Kind.VOID, 1), OK), (reference_record(4, Kind.VOID, 2), OK),
                  (approve(5, 1), "HOLD_ALREADY_VOIDED")], (1000, 0, 0)),
    ("too late", [5000, (approve(3, 2), "HOLD_EXPIRED"),
                  (approve(4, 1), OK), (reference_record(5, Kind.EXPIRE_HOLD, 2), OK)],
     (900, 0, 100)),
    ("frozen since", [(wallet_change(3, Kind.FREEZE, 1, 2), OK), (approve(4, 1), "DEBIT_FROZEN"),
                      (approve(5, 2), OK)], (800, 200, 0)),
    ("payee closed since", [(wallet_change(3, Kind.CLOSE_WALLET, 2), OK),
                            (approve(4, 1), "WALLET_CLOSED")], (800, 200, 0)),
]  # fmt: skip


@pytest.mark.parametrize(("what", "steps", "balances"), REVIEWS, ids=case_ids(REVIEWS))
def test_a_review(clocked: ShardDriver, what: str, steps: list[Step], balances: tuple[int, int, int]) -> None:
    for at_once in both_ways(clocked):
        limited(clocked, tier_limits(max_amount=99, review=[Rule.MAX_AMOUNT]))
        asked = [(pay(1, 100), REVIEWED), (hold_record(2, expires_in_ms=5000), REVIEWED)]
        run(clocked, [*asked, *steps], at_once=at_once)
        assert (*clocked.balance(1), clocked.balance(2)[0]) == balances
        for number, review in ((1, Review.TRANSFER), (2, Review.HOLD)):
            hold = clocked.hold(number)
            assert hold
            assert hold["review"] in (review, Review.NONE)
            assert hold["review"] == review or hold["state"] == HoldState.CAPTURED or number == 2
        assert_sound(clocked)


def test_a_review_that_a_plain_batch_made_is_there(clocked: ShardDriver) -> None:
    """Nothing else of the batch is special."""
    limited(clocked, tier_limits(max_amount=99, review=[Rule.MAX_AMOUNT]))
    assert clocked.statuses([request_record(1), request_record(2, amount=10)]) == [REVIEWED, OK]
    assert clocked.hold(1)
    assert_sound(clocked)


def test_a_review_needs_the_money(clocked: ShardDriver) -> None:
    limited(clocked, tier_limits(max_amount=99, review=[Rule.MAX_AMOUNT]))
    run(clocked, [(pay(1, 1001), FUNDS), (pay(2, 1000), REVIEWED), (pay(3, 1), FUNDS)])
    assert_sound(clocked)


def test_raising_a_hold_is_under_the_rules(clocked: ShardDriver) -> None:
    """It counts like a movement, but the whole hold is the single amount; what would be reviewed is declined."""
    limited(clocked, tier_limits(max_amount=200, day_amount=250, day_count=3, review=[Rule.MAX_AMOUNT]))
    run(clocked, [(hold_record(1, amount=100), OK), (reference_record(2, Kind.RAISE_HOLD, 1, 100), OK)])
    answer = clocked.one(reference_record(3, Kind.RAISE_HOLD, 1, 51))
    assert (answer.status, answer.rule, answer.used, answer.retry_at_ms) == (EXCEEDED, Rule.DAY_AMOUNT, 200, MIDNIGHT)
    answer = clocked.one(reference_record(4, Kind.RAISE_HOLD, 1, 1))
    assert (answer.status, answer.rule) == (EXCEEDED, Rule.MAX_AMOUNT)
    run(clocked, [(capture_record(5, 1, 150, final=False), OK)])
    answer = clocked.one(reference_record(6, Kind.RAISE_HOLD, 1, 1))
    assert (answer.status, answer.rule) == (EXCEEDED, Rule.MAX_AMOUNT), "what was captured of it counts too"
    assert [item["kind"] for item in clocked.declined()] == [Kind.RAISE_HOLD] * 3
    run(clocked, [(capture_record(7, 1), OK)])
    assert clocked.usage(1)["day_amount"] == 200, "a capture is counted by its hold"
    assert_sound(clocked)


def test_chargebacks_and_refunds_are_no_attempts(clocked: ShardDriver) -> None:
    limited(clocked, tier_limits(max_amount=0, day_count=0), 2)
    run(
        clocked,
        [(reference_record(1, Kind.REFUND, 9007, 100), OK), (reference_record(2, Kind.CHARGEBACK, 9007, 100), OK)],
    )
    assert clocked.usage(1)["day_count"] == 0
    assert_sound(clocked)


def test_what_the_side_stream_has(clocked: ShardDriver) -> None:
    """Refused movements, holds and raises, once each; not replays, not nonsense, not other requests."""
    limited(clocked, tier_limits(day_amount=500), 3)
    asked = [
        (pay(1, 501, device=DEVICE, ip=IP), EXCEEDED),
        (pay(1, 501, device=DEVICE, ip=IP), EXCEEDED),
        (pay(2, 10, debit=2, credit=1), FUNDS),
        (pay(3, 10, credit=77), "CREDIT_WALLET_NOT_FOUND"),
        (pay(4, 0), "AMOUNT_OUT_OF_RANGE"),
        (hold_record(5, 2, 1, 10), FUNDS),
        (wallet_change(6, Kind.SET_TIER, 1, 9), "TIER_NOT_FOUND"),
        (capture_record(7, 99), "HOLD_NOT_FOUND"),
        (pay(8, 10), OK),
    ]
    run(clocked, asked, at_once=True)
    names = ("kind", "rule", "debit", "credit", "amount", "device", "ip")
    found = [(item["id"][15], *(item[name] for name in names)) for item in clocked.declined()]
    assert found == [
        (1, Kind.TRANSFER, Rule.DAY_AMOUNT, 1, 2, 501, DEVICE, IP),
        (2, Kind.TRANSFER, 0, 2, 1, 10, NONE, NONE),
        (3, Kind.TRANSFER, 0, 1, 77, 10, NONE, NONE),
        (5, Kind.HOLD, 0, 2, 1, 10, NONE, NONE),
    ]
    assert clocked.redis.xlen(clocked.keys.declined) == 1, "one entry a batch"
    run(clocked, [*asked[:3]])
    assert clocked.redis.xlen(clocked.keys.declined) == 1


def test_the_side_stream_is_bounded(clocked: ShardDriver) -> None:
    with clocked.redis.pipeline(transaction=False) as pipe:
        for _ in range(3000):
            pipe.xadd(clocked.keys.declined, {"d": b"earlier"})
        pipe.execute()
    run(clocked, [(request_record(1, debit=2, credit=1), FUNDS)])
    assert clocked.redis.xlen(clocked.keys.declined) < 1200


def test_attempts_are_bounded_too(clocked: ShardDriver) -> None:
    """Ever new devices fill no memory while no persister ends generations, and stop nobody's payments."""
    limited(clocked, tier_limits(device_attempts=5))
    clocked.open(max_outcomes=20)
    assert clocked.one(pay(1, 1, device=DEVICE)).status == OK
    found = [clocked.one(pay(n, credit=77, device=b"device%02d" % n)).status for n in range(10, 40)]
    assert found == ["CREDIT_WALLET_NOT_FOUND"] * 30
    [key] = [key for key in clocked.redis.scan_iter() if b":attempts:" in key]
    assert clocked.redis.hlen(key) == 20
    assert [clocked.one(pay(n, 1, device=DEVICE)).status for n in range(50, 55)] == [OK] * 4 + [EXCEEDED]
    clocked.open(max_outcomes=100)
    assert clocked.one(pay(60, 1, device=b"device 9")).status == OK


def test_chains_are_judged_as_they_go(clocked: ShardDriver) -> None:
    limited(clocked, tier_limits(day_count=2))
    assert clocked.statuses(chain(pay(1), pay(2))) == [OK, OK]
    run(clocked, [(pay(3), EXCEEDED)])
    assert_sound(clocked)
