"""Every status of `post`, one line a case, on both products."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from engine.domain.limits import Condition, Rule
from engine.domain.money import MAX_AMOUNT_MINOR
from engine.domain.status import ACCEPTED, NUMBER_OF, RECORDED, STATUS_OF, STATUS_RULES, Status
from engine.domain.transfer import HOLD_CHANGES, Kind, RequestFlag
from engine.domain.wallet import external_wallet_id
from engine.wire import AFTER, CONTENT, DETAILS, ENTRY_HEADER, REPLY_HEADER, WALLET
from tests.fixtures.shard import (
    EUR,
    NONE,
    OUTSIDE,
    USD,
    Asked,
    ShardDriver,
    altered,
    capture_record,
    chain,
    changed,
    claim,
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
from tests.lua.books import assert_sound
from tests.lua.steps import OK, Step, run


def _numbered(cases: Sequence[tuple[Any, ...]]) -> list[str]:
    return [f"{case[0]}-{number}" for number, case in enumerate(cases)]


CASES: list[tuple[str, Asked]] = [
    ("POSTED", request_record(1)),
    ("POSTED", request_record(1, Kind.PAYMENT)),
    ("POSTED", request_record(1, Kind.WITHDRAWAL, 1, OUTSIDE)),
    ("POSTED", request_record(1, Kind.TOP_UP, OUTSIDE, 2, MAX_AMOUNT_MINOR - 1000)),
    ("POSTED", request_record(1, amount=1000)),
    ("POSTED", request_record(1, currency=USD)),
    ("POSTED", request_record(1, debit=3, amount=500)),
    ("POSTED", opening_record(1, 5)),
    ("POSTED", opening_record(1, 2**63 - 1)),
    ("POSTED", opening_record(1, 5, overdraft=MAX_AMOUNT_MINOR)),
    ("INSUFFICIENT_FUNDS", request_record(1, amount=1001)),
    ("INSUFFICIENT_FUNDS", request_record(1, debit=2, credit=1, amount=1)),
    ("INSUFFICIENT_FUNDS", request_record(1, debit=3, amount=501)),
    ("INSUFFICIENT_FUNDS", request_record(1, amount=MAX_AMOUNT_MINOR)),
    ("DEBIT_WALLET_NOT_FOUND", request_record(1, debit=77)),
    ("DEBIT_WALLET_NOT_FOUND", request_record(1, debit=77, credit=78)),
    ("CREDIT_WALLET_NOT_FOUND", request_record(1, credit=77)),
    ("CREDIT_WALLET_NOT_FOUND", request_record(1, credit=2**63 - 1)),
    ("CURRENCY_MISMATCH", request_record(1, credit=4)),
    ("CURRENCY_MISMATCH", request_record(1, currency=EUR)),
    ("SAME_WALLET", request_record(1, debit=1, credit=1)),
    ("SAME_WALLET", request_record(1, debit=77, credit=77)),
    ("AMOUNT_OUT_OF_RANGE", request_record(1, amount=0)),
    ("AMOUNT_OUT_OF_RANGE", request_record(1, amount=-1)),
    ("AMOUNT_OUT_OF_RANGE", request_record(1, amount=0.5)),
    ("AMOUNT_OUT_OF_RANGE", request_record(1, amount=2.0**53)),
    ("AMOUNT_OUT_OF_RANGE", request_record(1, amount=2.0**63)),
    ("AMOUNT_OUT_OF_RANGE", request_record(1, amount=float("nan"))),
    ("AMOUNT_OUT_OF_RANGE", request_record(1, amount=float("inf"))),
    ("AMOUNT_OUT_OF_RANGE", opening_record(1, 5, overdraft=-1)),
    ("AMOUNT_OUT_OF_RANGE", opening_record(1, 5, overdraft=float("nan"))),
    ("WALLET_EXISTS", opening_record(1, 1)),
    ("BALANCE_OUT_OF_RANGE", request_record(1, Kind.TOP_UP, OUTSIDE, 1, MAX_AMOUNT_MINOR)),
    ("BALANCE_OUT_OF_RANGE", request_record(1, Kind.TOP_UP, OUTSIDE, 2, MAX_AMOUNT_MINOR)),
]


@pytest.mark.parametrize(("status", "record"), CASES, ids=_numbered(CASES))
def test_status(funded: ShardDriver, status: str, record: Asked) -> None:
    check_status(funded, record, status)


MAY_PASS = {"DEBIT_FROZEN", "CREDIT_FROZEN", "EXCEEDS_HOLD", "BALANCE_OUT_OF_RANGE"}


def sticks(record: Asked, status: str) -> bool:
    """Whether a retry gets this answer: as STATUS_RULES say, but for what keeps a hold from being posted for now."""
    return Status(status) in RECORDED and not (status in MAY_PASS and record[17] in (Kind.CAPTURE, Kind.APPROVE_HOLD))


def check_status(shard: ShardDriver, record: Asked, status: str) -> None:
    """It is answered so, keeps its answer if STATUS_RULES say so and is decided anew if not, and a refusal changes
    nothing but that."""
    before = shard.image()
    first = shard.one(record)
    assert (first.status, first.replayed) == (status, False), record
    if Status(status) not in ACCEPTED:
        assert _without_refusals(shard.image()) == _without_refusals(before), "a refusal changed more than its record"
        assert first.amount_minor == 0
    after_first = shard.image()
    again = shard.one(record)
    assert again == first._replace(replayed=sticks(record, status))
    kept = shard.call("hotledger_lookup", record[:16])[1]
    assert bool(kept) == sticks(record, status)
    if kept:
        assert shard.image() == after_first
    else:
        assert _without_refusals(shard.image()) == _without_refusals(after_first)


def _without_refusals(image: dict[bytes, Any]) -> dict[bytes, Any]:
    """Without what a refused request may leave: its outcome, its attempt, a line in the side stream."""
    left = (b":idem:", b":attempts:", b":declined")
    return {key: value for key, value in image.items() if not any(part in key for part in left)}


@pytest.fixture
def eventful(clocked: ShardDriver) -> ShardDriver:
    """Besides the wallets of `funded`, with 930 left in wallet 1 and 50 in 2: wallet 5 is closed, 6 frozen with 100, 7
    and 8 have 100 and 400 and tiers: whatever is above 50 is declined in tier 1, reviewed in tier 2.

    Hold 100 outlived its outcome and is open; 101 is captured, 102 voided, 103 expired, 104 due and never swept, 105
    is under review. All are of 10 from wallet 1 to 2, but 105, of 60 from 8. Transfer 110 is a payment from 1 to 2.
    """
    run(clocked, [(hold_record(100, amount=10), OK)])
    for _ in range(2):
        clocked.end_generation()
    review = tier_limits(max_amount=50, review=[Rule.MAX_AMOUNT])
    steps: list[Step] = [
        *[(opening_record(9000 + n, n), OK) for n in (5, 6, 7, 8)],
        (wallet_change(9010, Kind.CLOSE_WALLET, 5), OK),
        *[(request_record(9020 + n, Kind.TOP_UP, OUTSIDE, n, 400 if n == 8 else 100), OK) for n in (6, 7, 8)],
        (wallet_change(9030, Kind.FREEZE, 6, 6), OK),
        (tier_record(9031, 1, tier_limits(max_amount=50)), OK),
        (tier_record(9032, 2, review), OK),
        (wallet_change(9033, Kind.SET_TIER, 7, 1), OK),
        (wallet_change(9034, Kind.SET_TIER, 8, 2), OK),
        *[(hold_record(n, amount=10, expires_in_ms=1000 if n > 102 else 0), OK) for n in range(101, 105)],
        (hold_record(105, 8, 2, 60, expires_in_ms=10**6), "UNDER_REVIEW"),
        (capture_record(9040, 101), OK),
        (reference_record(9041, Kind.VOID, 102), OK),
        (request_record(110, Kind.PAYMENT, 1, 2, 40), OK),
    ]
    run(clocked, steps, at_once=True)
    run(clocked, [1000, (reference_record(9042, Kind.EXPIRE_HOLD, 103), OK)])
    return clocked


def _back(amount: float = 0, of: int = 110, attached: bytes = b"", kind: Kind = Kind.REFUND) -> Asked:
    return reference_record(1, kind, of, amount, attached=attached)


def _upon(hold: int, kind: Kind = Kind.VOID, amount: float = 0) -> Asked:
    return reference_record(1, kind, hold, amount)


def _asks(conditions: int, **fields: Any) -> Asked:
    attached = terms(conditions=conditions, expect_version=99, min_available_after=MAX_AMOUNT_MINOR)
    return request_record(1, attached=attached, **fields)


LOST = 10**6
"""The id of a transfer that only the ledger knows."""

# What else a request can be refused with, or accepted as; alone, on `eventful`.
EVENTFUL: list[tuple[str, Asked]] = [
    ("UNDER_REVIEW", request_record(1, debit=8, amount=51)),
    ("UNDER_REVIEW", hold_record(1, debit=8, amount=51)),
    ("AMOUNT_OUT_OF_RANGE", _upon(100, amount=1)),
    ("AMOUNT_OUT_OF_RANGE", _upon(104, Kind.EXPIRE_HOLD, 1)),
    ("AMOUNT_OUT_OF_RANGE", _upon(105, Kind.APPROVE_HOLD, 1)),
    ("AMOUNT_OUT_OF_RANGE", _upon(100, Kind.CAPTURE, -1)),
    ("AMOUNT_OUT_OF_RANGE", _upon(100, Kind.RAISE_HOLD, 0)),
    ("AMOUNT_OUT_OF_RANGE", _back(-1)),
    ("AMOUNT_OUT_OF_RANGE", hold_record(1, amount=0)),
    ("AMOUNT_OUT_OF_RANGE", wallet_change(1, Kind.FREEZE, 1, 1)),
    ("AMOUNT_OUT_OF_RANGE", tier_record(1, 0)),
    ("LEDGER_BEHIND", _back(of=LOST, attached=claim(as_of=0))),
    ("HOLD_EXISTS", hold_record(100)),
    ("HOLD_NOT_FOUND", _upon(999)),
    ("HOLD_NOT_FOUND", _upon(110, Kind.CAPTURE)),
    ("HOLD_ALREADY_CAPTURED", _upon(101, Kind.CAPTURE)),
    ("HOLD_ALREADY_VOIDED", _upon(102, Kind.EXPIRE_HOLD)),
    ("HOLD_EXPIRED", _upon(103)),
    ("HOLD_EXPIRED", _upon(104, Kind.RAISE_HOLD, 1)),
    ("HOLD_NOT_DUE", _upon(100, Kind.EXPIRE_HOLD)),
    ("HOLD_UNDER_REVIEW", _upon(105, Kind.CAPTURE)),
    ("HOLD_NOT_UNDER_REVIEW", _upon(100, Kind.APPROVE_HOLD)),
    ("TRANSFER_NOT_FOUND", _back(of=LOST)),
    ("NOT_REFUNDABLE", _back(of=100 + 1)),
    ("NOT_REFUNDABLE", _back(kind=Kind.CHARGEBACK)),
    ("TIER_NOT_FOUND", wallet_change(1, Kind.SET_TIER, 1, 3)),
    ("WALLET_CLOSED", request_record(1, credit=5)),
    ("WALLET_CLOSED", wallet_change(1, Kind.UNFREEZE, 5, 2)),
    ("DEBIT_FROZEN", request_record(1, debit=6)),
    ("CREDIT_FROZEN", request_record(1, credit=6)),
    ("WALLET_NOT_EMPTY", wallet_change(1, Kind.CLOSE_WALLET, 1)),
    ("EXCEEDS_HOLD", _upon(100, Kind.CAPTURE, 11)),
    ("REFUND_EXCEEDS_TRANSFER", _back(41)),
    ("LIMIT_EXCEEDED", request_record(1, debit=7, amount=51)),
    ("INSUFFICIENT_FUNDS", _upon(100, Kind.RAISE_HOLD, 931)),
    ("CONDITION_FAILED", _asks(Condition.VERSION)),
    ("CONDITION_FAILED", _asks(Condition.MIN_AVAILABLE)),
]


def test_the_status_of_what_is_special(eventful: ShardDriver) -> None:
    """Each with an id of its own, and the accepted ones last: nothing changes between the others."""
    for number, (status, record) in enumerate(sorted(EVENTFUL, key=lambda case: Status(case[0]) in ACCEPTED), 2000):
        check_status(eventful, record if status == "HOLD_EXISTS" else renumbered(record, number), status)
    assert_sound(eventful)


@pytest.mark.parametrize(("fixture", "cases"), [("funded", CASES), ("eventful", EVENTFUL)], ids=["plain", "special"])
def test_refusals_of_a_chain_stick_as_the_culprits_does(
    request: pytest.FixtureRequest, fixture: str, cases: list[tuple[str, Asked]], server_url: str
) -> None:
    """For each refusal that a member of a chain can get."""
    shard: ShardDriver = request.getfixturevalue(fixture)
    refusals = [case for case in cases if Status(case[0]) not in ACCEPTED and case[1][17] != Kind.EXPIRE_HOLD]
    for number, (status, record) in enumerate(refusals, 2000):
        culprit = record if status == "HOLD_EXISTS" else renumbered(record, number)
        beside = [request_record(number + n, credit=OUTSIDE, amount=1) for n in (1000, 2000)]
        members = chain(beside[0], culprit, beside[1])
        before = shard.image()
        first = shard.post(members)
        assert [outcome.status for outcome in first] == ["LINKED_FAILED", status, "LINKED_FAILED"], record
        assert _without_refusals(shard.image()) == _without_refusals(before)
        is_kept = Status(status) in RECORDED  # a chain is kept as a whole, whatever its kinds
        kept = [bool(shard.call("hotledger_lookup", member[:16])[1]) for member in members]
        assert kept == [is_kept] * 3, status
        assert shard.post(members) == [outcome._replace(replayed=is_kept) for outcome in first]
    assert_sound(shard)


# Per kind: a request that is accepted on `eventful`, and what else could be asked under its id, in the order of the
# statuses that name the difference.
_MOVED: dict[str, dict[str, Any]] = {
    "KIND": {"flags": RequestFlag.BALANCING},
    "CHAIN": {"terms_digest": b"\1other!!"},
    "DEBIT": {"debit": 3},
    "CREDIT": {"credit": 3},
    "AMOUNT": {"amount": 101},
    "CURRENCY": {"currency": USD},
    "TERMS": {"terms_digest": b"\2other!!"},
    "DETAILS": {"details_digest": b"other!!!"},
}
_REFERRED: dict[str, dict[str, Any]] = {
    "CHAIN": _MOVED["CHAIN"],
    "REFERENCE": {"credit": 77},
    "AMOUNT": {"amount": 5},
    "CURRENCY": _MOVED["CURRENCY"],
    "TERMS": _MOVED["TERMS"],
    "DETAILS": _MOVED["DETAILS"],
}
_SET: dict[str, dict[str, Any]] = {
    "CHAIN": _MOVED["CHAIN"],
    "AMOUNT": {"amount": 4},
    "WALLET": {"debit": 2},
    "CURRENCY": _MOVED["CURRENCY"],
    "TERMS": _MOVED["TERMS"],
    "DETAILS": _MOVED["DETAILS"],
}
_OPENED: dict[str, dict[str, Any]] = {
    "KIND": {"kind": Kind.FREEZE, "credit": 0},
    "CHAIN": _MOVED["CHAIN"],
    "WALLET": {"debit": 22},
    "OWNER": {"credit": 2},
    "OVERDRAFT_LIMIT": {"amount": 1},
    "CURRENCY": {"currency": EUR},
    "TERMS": _MOVED["TERMS"],
    "DETAILS": _MOVED["DETAILS"],
}
DIFFERENCES: list[tuple[Asked, dict[str, dict[str, Any]]]] = [
    # A refusal that sticks is as much of an answer.
    (request_record(1, amount=5000), {**_MOVED, "AMOUNT": {"amount": 100}}),
    (request_record(1), {**_MOVED, "KIND": {"kind": Kind.PAYMENT}}),
    (request_record(1), _MOVED),
    (request_record(1, Kind.TOP_UP, OUTSIDE, 1), _MOVED),
    (request_record(1, Kind.PAYMENT, attached=terms(conditions=2, device=b"device-1")), _MOVED),
    (request_record(1, Kind.WITHDRAWAL, 1, OUTSIDE), _MOVED),
    (hold_record(1), {**_MOVED, "KIND": {"kind": Kind.PAYMENT}}),
    (_upon(100, Kind.CAPTURE, 3), {"KIND": {"flags": RequestFlag.FINAL}, **_REFERRED}),
    (_upon(100, Kind.RAISE_HOLD, 3), {"KIND": {"kind": Kind.VOID}, **_REFERRED}),
    (_upon(100, Kind.VOID), {"KIND": {"kind": Kind.EXPIRE_HOLD}, **_REFERRED}),
    (_upon(104, Kind.EXPIRE_HOLD), {"KIND": {"kind": Kind.VOID}, **_REFERRED}),
    (_upon(105, Kind.APPROVE_HOLD), {"KIND": {"kind": Kind.VOID}, **_REFERRED}),
    (_back(7), {"KIND": {"kind": Kind.CHARGEBACK}, **_REFERRED}),
    (_back(7, attached=claim()), {"KIND": {"kind": Kind.CHARGEBACK}, **_REFERRED}),
    (opening_record(1, 20), _OPENED),
    (opening_record(1, -20, overdraft=2), {**_OPENED, "KIND": {"flags": 0}}),
    (wallet_change(1, Kind.FREEZE, 1, 2), {"KIND": {"kind": Kind.UNFREEZE}, **_SET}),
    (wallet_change(1, Kind.UNFREEZE, 6, 2), {"KIND": {"kind": Kind.FREEZE}, **_SET}),
    (wallet_change(1, Kind.SET_OVERDRAFT_LIMIT, 1, 2), {"KIND": {"kind": Kind.SET_TIER}, **_SET}),
    (wallet_change(1, Kind.SET_TIER, 1, 2), {"KIND": {"kind": Kind.CLOSE_WALLET}, **_SET}),
    (tier_record(1, 1), {name: _SET[name] for name in ("CHAIN", "AMOUNT", "CURRENCY", "TERMS", "DETAILS")}),
]


def test_the_same_id_with_other_content_names_the_field(eventful: ShardDriver) -> None:
    """Also in the same batch; of two fields, the one with the lower number."""
    for at, (base, others) in enumerate(DIFFERENCES):
        asked = renumbered(base, 2000 + at)
        named = [(name, fields) for name, fields in others.items()]
        numbers = [NUMBER_OF[Status(f"EXISTS_WITH_DIFFERENT_{name}")] for name, _ in named]
        assert numbers == sorted(numbers)
        pairs = [(name, other | fields) for (name, fields), (_, other) in pairwise(named)]
        variants = [(name, altered(asked, **fields)) for name, fields in [*named, *pairs]]
        first, *found = eventful.post([asked, *(variant for _, variant in variants)])
        assert first.status in (OK, "INSUFFICIENT_FUNDS"), base
        before = eventful.image()
        for outcomes in (found, eventful.post([variant for _, variant in variants])):
            assert [outcome.status for outcome in outcomes] == [
                f"EXISTS_WITH_DIFFERENT_{name}" for name, _ in variants
            ], base
            assert not any(outcome.replayed for outcome in outcomes)
        assert eventful.image() == before
    assert_sound(eventful)


def test_only_the_size_of_the_details_differs(funded: ShardDriver) -> None:
    assert funded.statuses([request_record(1), request_record(1, details_size=1)], details=b"x") == [
        "POSTED",
        "EXISTS_WITH_DIFFERENT_DETAILS",
    ]


def test_what_comes_attached_or_from_elsewhere_is_no_difference(eventful: ShardDriver) -> None:
    """A retry may come from another device, or with what the ledger knows."""
    for one, other in (
        (request_record(1), request_record(1, attached=terms(device=b"device-1"))),
        (request_record(2, attached=terms(ip=b"address1")), request_record(2)),
        (renumbered(_back(7), 3), renumbered(_back(7, attached=claim(as_of=10**6)), 3)),
    ):
        assert [outcome.replayed for outcome in eventful.post([one, other])] == [False, True]


def test_duplicates_in_one_batch_are_replays(funded: ShardDriver) -> None:
    outcomes = funded.post([request_record(1), request_record(1), request_record(2, amount=900), request_record(1)])
    assert [outcome.replayed for outcome in outcomes] == [False, True, False, True]
    assert outcomes[1][:2] == outcomes[0][:2]
    assert outcomes[3][3:5] == outcomes[0][3:5] == (900, 100)
    assert funded.wallet(1)["available"] == 0


def test_a_batch_is_decided_in_order(funded: ShardDriver) -> None:
    records = [
        request_record(1, debit=2, credit=3, amount=50),
        request_record(2, amount=50),
        request_record(3, debit=2, credit=3, amount=50),
        opening_record(4, 8),
        request_record(5, credit=8),
    ]
    assert funded.statuses(records) == ["INSUFFICIENT_FUNDS", "POSTED", "POSTED", "POSTED", "POSTED"]


def test_not_found_is_not_recorded_so_a_wallet_opened_later_can_be_paid(funded: ShardDriver) -> None:
    assert funded.statuses([request_record(1, credit=5)]) == ["CREDIT_WALLET_NOT_FOUND"]
    assert funded.statuses([opening_record(2, 5), request_record(1, credit=5)]) == ["POSTED", "POSTED"]


def test_details_are_journalled_under_their_own_sequence(funded: ShardDriver) -> None:
    """The details of what is not accepted - a replay, a refusal, other content - are stepped over."""
    first = request_record(1, details_size=5, digest=b"digest-1")
    assert funded.statuses([first], details=b"first") == ["POSTED"]
    batch = [
        first,
        request_record(2, amount=10**6, details_size=7, digest=b"digest-2"),
        request_record(3, details_size=6, digest=b"digest-3"),
        request_record(4),
        request_record(1, details_size=3, digest=b"digest-4"),
        request_record(5, details_size=4, digest=b"digest-5"),
    ]
    outcomes = funded.post(batch, b"firstrefusedsecondtwolast")
    assert [outcome.status for outcome in outcomes] == [
        "POSTED",
        "INSUFFICIENT_FUNDS",
        "POSTED",
        "POSTED",
        "EXISTS_WITH_DIFFERENT_DETAILS",
        "POSTED",
    ]
    kept = [(outcomes[2].sequence, b"second"), (outcomes[5].sequence, b"last")]
    assert funded.last_entry()[b"x"] == b"".join(
        DETAILS.struct.pack(sequence, len(text)) + text for sequence, text in kept
    )


def test_what_is_locked_counts_towards_the_bound(funded: ShardDriver) -> None:
    key = funded.keys.wallet(2)
    locked = MAX_AMOUNT_MINOR - 100
    funded.redis.set(key, changed(WALLET, funded.redis.get(key), locked=float(locked)))
    assert funded.statuses([request_record(1, amount=101)]) == ["BALANCE_OUT_OF_RANGE"]
    assert funded.statuses([request_record(2, amount=100)]) == ["POSTED"]
    assert (funded.wallet(2)["available"], funded.wallet(2)["locked"]) == (100, locked)
    [after] = AFTER.struct.iter_unpack(funded.last_entry()[b"r"][16 + CONTENT.size :])
    assert after[3:5] == (100, locked)


def test_versions_and_sequences_grow_by_one(funded: ShardDriver) -> None:
    start, version = funded.meta()["sequence"], funded.wallet(1)["version"]
    outcomes = funded.post([request_record(1), request_record(2, amount=10**6), request_record(3)])
    assert [outcome.sequence - start for outcome in outcomes] == [1, 1, 2]
    assert funded.meta()["sequence"] == start + 2
    assert funded.wallet(1)["version"] == version + 2


def test_a_journal_id_is_the_last_sequence_in_it(funded: ShardDriver) -> None:
    funded.post([request_record(1), request_record(2)])
    [(entry_id, _)] = funded.redis.xrevrange(funded.keys.journal, count=1)
    assert entry_id == b"%d-0" % funded.meta()["sequence"]


def test_closed(funded: ShardDriver) -> None:
    funded.call("hotledger_close")
    before = funded.image()
    assert funded.statuses([request_record(1), request_record(9007, Kind.TOP_UP, OUTSIDE, 1, 1000)]) == [
        "SHARD_NOT_OPEN",
        "SHARD_NOT_OPEN",
    ]
    assert funded.image() == before


def test_after_the_deadline_nothing_is_decided(funded: ShardDriver) -> None:
    before = funded.image()
    assert funded.statuses([request_record(1)], not_after_ms=1_000) == ["DEADLINE_PASSED"]
    assert funded.image() == before


def _server_ms(reply: bytes) -> int:
    return int(REPLY_HEADER.struct.unpack_from(reply)[0])


def test_a_deadline_ends_the_moment_it_names(funded: ShardDriver) -> None:
    """Refused from that millisecond on, decided before it, by the very clock that the reply carries."""
    exact = 0
    for _ in range(3000):
        not_after_ms = funded.server_ms()
        for limit in (not_after_ms - 1, not_after_ms, not_after_ms + 1):
            reply = funded.post_raw(request_record(1, amount=0), not_after_ms=limit)
            status = STATUS_OF[reply[REPLY_HEADER.size]]
            expected = "DEADLINE_PASSED" if _server_ms(reply) >= limit else "AMOUNT_OUT_OF_RANGE"
            assert status == expected, f"{limit} at {_server_ms(reply)}"
            exact += _server_ms(reply) == limit
        if exact >= 100:
            return
    pytest.fail("the moment itself was hardly ever met")


def test_deadlines_hold_while_the_history_is_ahead_of_the_clock(funded: ShardDriver) -> None:
    """The server's clock was set back an hour: deadlines go by the clock, the journal's times never back."""
    ahead = funded.server_ms() + 3_600_000
    funded.set_meta(time_ms=float(ahead))
    before = funded.image()
    now = funded.server_ms()
    assert funded.statuses([request_record(1)], not_after_ms=now - 1) == ["DEADLINE_PASSED"]
    assert funded.image() == before
    replies = [funded.post_raw(request_record(2), not_after_ms=now + 60_000), funded.lookup(2)[0]]
    assert funded.lookup(2)[1], "it was decided, in time"
    replies += [funded.post_raw(request_record(3), not_after_ms=now - 1)]
    assert funded.call("hotledger_end_generation", 1, 1) == 1
    funded.call("hotledger_close")
    replies += [funded.post_raw(request_record(3))]
    assert all(now <= _server_ms(reply) <= now + 30_000 for reply in replies), "engines are told the clock itself"
    entries = [ENTRY_HEADER.unpack(fields[b"h"]) for _, fields in funded.redis.xrange(funded.keys.journal)]
    assert [entry["time_ms"] for entry in entries[-2:]] == [ahead, ahead]
    assert funded.meta()["time_ms"] == ahead


def test_an_entrys_time_is_the_clocks(funded: ShardDriver) -> None:
    before = funded.server_ms()
    reply = funded.post_raw(request_record(1))
    assert ENTRY_HEADER.unpack(funded.last_entry()[b"h"])["time_ms"] == funded.meta()["time_ms"] == _server_ms(reply)
    assert before <= _server_ms(reply) <= funded.server_ms()


def test_refusals_are_bounded_too(funded: ShardDriver) -> None:
    """A full generation takes no new record, accepted or refused; what it holds is still answered."""
    records = len(funded.redis.hkeys(funded.keys.idempotency(1)))
    funded.open(max_outcomes=records + 2)
    refused, paid = request_record(1, amount=10**6), request_record(2)
    assert funded.statuses([refused]) == ["INSUFFICIENT_FUNDS"]
    assert funded.statuses([paid]) == ["POSTED"], "one below the bound"
    before = funded.image()
    new = [
        request_record(3),
        request_record(4, amount=10**6),
        request_record(5, debit=1, credit=1),
        opening_record(6, 7),
    ]
    outcomes = funded.post([*new, refused, paid, request_record(2, amount=1)])
    assert [outcome.status for outcome in outcomes] == [
        *["LEDGER_BACKLOG"] * 4,
        "INSUFFICIENT_FUNDS",
        "POSTED",
        "EXISTS_WITH_DIFFERENT_AMOUNT",
    ]
    assert [outcome.replayed for outcome in outcomes] == [False] * 4 + [True, True, False]
    assert funded.image() == before
    assert funded.call("hotledger_end_generation", 1, 1) == 1
    assert funded.statuses(new) == ["POSTED", "INSUFFICIENT_FUNDS", "SAME_WALLET", "POSTED"]


def test_backlog(funded: ShardDriver) -> None:
    backlog = funded.meta()["sequence"] - funded.meta()["persisted"]
    funded.open(max_backlog=backlog + 1)
    records = [request_record(1), request_record(2), request_record(1), request_record(3, amount=10**6)]
    assert funded.statuses(records) == ["POSTED", "LEDGER_BACKLOG", "POSTED", "LEDGER_BACKLOG"]
    funded.call("hotledger_advance", 1, funded.meta()["sequence"], 0)
    assert funded.statuses(records[1:2]) == ["POSTED"]


def test_every_status_that_post_can_give_has_a_case_here() -> None:
    here = {status for status, _ in [*CASES, *EVENTFUL]}
    here |= {f"EXISTS_WITH_DIFFERENT_{name}" for _, others in DIFFERENCES for name in others}
    here |= {"SHARD_NOT_OPEN", "DEADLINE_PASSED", "LEDGER_BACKLOG"}
    here |= {"LINKED_CHAIN_OPEN", "LINKED_FAILED"}  # of test_chains.py
    assert here == {status.value for status in NUMBER_OF} - {"NOT_APPLIED", "CHAIN_TOO_LONG"}


# The first one wins, though the second applies as well: every two neighbours that can meet in one kind of request.
PRECEDENCE: list[tuple[str, str, Asked]] = [
    # Movements.
    ("AMOUNT_OUT_OF_RANGE", "SAME_WALLET", request_record(1, debit=1, credit=1, amount=0)),
    ("SAME_WALLET", "DEBIT_WALLET_NOT_FOUND", request_record(1, debit=77, credit=77)),
    ("DEBIT_WALLET_NOT_FOUND", "CREDIT_WALLET_NOT_FOUND", request_record(1, debit=77, credit=78)),
    ("CREDIT_WALLET_NOT_FOUND", "CURRENCY_MISMATCH", request_record(1, credit=78, currency=EUR)),
    ("CREDIT_WALLET_NOT_FOUND", "WALLET_CLOSED", request_record(1, debit=5, credit=78)),
    ("CURRENCY_MISMATCH", "WALLET_CLOSED", request_record(1, debit=4, credit=5)),
    ("CURRENCY_MISMATCH", "INSUFFICIENT_FUNDS", request_record(1, credit=4, amount=5000)),
    ("WALLET_CLOSED", "DEBIT_FROZEN", request_record(1, debit=6, credit=5)),
    ("WALLET_CLOSED", "CREDIT_FROZEN", request_record(1, debit=5, credit=6)),
    ("DEBIT_FROZEN", "CREDIT_FROZEN", request_record(1, debit=6, credit=9)),
    ("DEBIT_FROZEN", "INSUFFICIENT_FUNDS", request_record(1, debit=6, amount=5000)),
    ("CREDIT_FROZEN", "LIMIT_EXCEEDED", request_record(1, debit=7, credit=6, amount=51)),
    ("CREDIT_FROZEN", "INSUFFICIENT_FUNDS", request_record(1, credit=6, amount=5000)),
    ("LIMIT_EXCEEDED", "INSUFFICIENT_FUNDS", request_record(1, debit=7, amount=5000)),
    ("LIMIT_EXCEEDED", "INSUFFICIENT_FUNDS", request_record(1, debit=10, amount=1, flags=RequestFlag.BALANCING)),
    ("LIMIT_EXCEEDED", "CONDITION_FAILED", _asks(Condition.VERSION, debit=7, amount=51)),
    ("INSUFFICIENT_FUNDS", "UNDER_REVIEW", request_record(1, debit=8, amount=5000)),
    ("INSUFFICIENT_FUNDS", "CONDITION_FAILED", _asks(Condition.VERSION, amount=5000)),
    ("INSUFFICIENT_FUNDS", "BALANCE_OUT_OF_RANGE", request_record(1, amount=MAX_AMOUNT_MINOR, debit=3, credit=1)),
    ("CONDITION_FAILED", "UNDER_REVIEW", _asks(Condition.VERSION, debit=8, amount=51, credit=3)),
    ("CONDITION_FAILED", "BALANCE_OUT_OF_RANGE",
     _asks(Condition.VERSION, kind=Kind.TOP_UP, debit=OUTSIDE, credit=1, amount=MAX_AMOUNT_MINOR)),
    # Holds: as movements, and one more.
    ("AMOUNT_OUT_OF_RANGE", "HOLD_EXISTS", hold_record(100, amount=0)),
    ("HOLD_EXISTS", "SAME_WALLET", hold_record(100, 1, 1)),
    ("HOLD_EXISTS", "DEBIT_WALLET_NOT_FOUND", hold_record(100, 77, 2)),
    ("HOLD_EXISTS", "LIMIT_EXCEEDED", hold_record(100, 7, 2, 51)),
    ("HOLD_EXISTS", "INSUFFICIENT_FUNDS", hold_record(100, amount=5000)),
    ("SAME_WALLET", "DEBIT_WALLET_NOT_FOUND", hold_record(1, 77, 77)),
    ("CREDIT_WALLET_NOT_FOUND", "INSUFFICIENT_FUNDS", hold_record(1, 1, 77, 5000)),
    # Captures, raises, voids, approvals and expiries.
    *[("AMOUNT_OUT_OF_RANGE", "HOLD_NOT_FOUND", _upon(999, kind, -1)) for kind in sorted(HOLD_CHANGES - {Kind.HOLD})],
    *[("AMOUNT_OUT_OF_RANGE", "HOLD_EXPIRED", _upon(104, kind, -1)) for kind in sorted(HOLD_CHANGES - {Kind.HOLD})],
    ("AMOUNT_OUT_OF_RANGE", "HOLD_NOT_DUE", _upon(100, Kind.EXPIRE_HOLD, 1)),
    ("AMOUNT_OUT_OF_RANGE", "HOLD_UNDER_REVIEW", _upon(105, Kind.RAISE_HOLD)),
    ("AMOUNT_OUT_OF_RANGE", "HOLD_NOT_UNDER_REVIEW", _upon(100, Kind.APPROVE_HOLD, 1)),
    ("HOLD_ALREADY_CAPTURED", "HOLD_EXPIRED", _upon(111)),
    ("HOLD_ALREADY_VOIDED", "HOLD_EXPIRED", _upon(112, Kind.CAPTURE)),
    ("HOLD_ALREADY_CAPTURED", "HOLD_NOT_UNDER_REVIEW", _upon(101, Kind.APPROVE_HOLD)),
    ("HOLD_EXPIRED", "HOLD_UNDER_REVIEW", _upon(113, Kind.CAPTURE)),
    ("HOLD_EXPIRED", "HOLD_NOT_UNDER_REVIEW", _upon(104, Kind.APPROVE_HOLD)),
    ("HOLD_EXPIRED", "EXCEEDS_HOLD", _upon(104, Kind.CAPTURE, 11)),
    ("HOLD_UNDER_REVIEW", "WALLET_CLOSED", _upon(114, Kind.CAPTURE)),
    ("HOLD_UNDER_REVIEW", "EXCEEDS_HOLD", _upon(105, Kind.CAPTURE, 61)),
    ("HOLD_UNDER_REVIEW", "INSUFFICIENT_FUNDS", _upon(105, Kind.RAISE_HOLD, 5000)),
    ("HOLD_NOT_UNDER_REVIEW", "WALLET_CLOSED", _upon(115, Kind.APPROVE_HOLD)),
    ("WALLET_CLOSED", "EXCEEDS_HOLD", _upon(115, Kind.CAPTURE, 11)),
    ("WALLET_CLOSED", "INSUFFICIENT_FUNDS", _upon(115, Kind.RAISE_HOLD, 5000)),
    ("DEBIT_FROZEN", "CREDIT_FROZEN", _upon(116, Kind.CAPTURE)),
    ("DEBIT_FROZEN", "EXCEEDS_HOLD", _upon(116, Kind.CAPTURE, 11)),
    ("DEBIT_FROZEN", "INSUFFICIENT_FUNDS", _upon(116, Kind.RAISE_HOLD, 5000)),
    ("CREDIT_FROZEN", "EXCEEDS_HOLD", _upon(117, Kind.CAPTURE, 11)),
    ("CREDIT_FROZEN", "LIMIT_EXCEEDED", _upon(118, Kind.RAISE_HOLD, 51)),
    ("EXCEEDS_HOLD", "BALANCE_OUT_OF_RANGE", _upon(100, Kind.CAPTURE, MAX_AMOUNT_MINOR)),
    ("LIMIT_EXCEEDED", "INSUFFICIENT_FUNDS", _upon(119, Kind.RAISE_HOLD, 5000)),
    ("INSUFFICIENT_FUNDS", "BALANCE_OUT_OF_RANGE", _upon(100, Kind.RAISE_HOLD, MAX_AMOUNT_MINOR)),
    # Refunds and chargebacks.
    ("LEDGER_BEHIND", "AMOUNT_OUT_OF_RANGE", _back(-1, LOST, claim())),
    ("LEDGER_BEHIND", "NOT_REFUNDABLE", _back(0, LOST, claim(Kind.REFUND))),
    ("LEDGER_BEHIND", "SAME_WALLET", _back(0, LOST, claim(debit=2))),
    ("LEDGER_BEHIND", "REFUND_EXCEEDS_TRANSFER", _back(101, LOST, claim())),
    ("AMOUNT_OUT_OF_RANGE", "TRANSFER_NOT_FOUND", _back(-1, LOST)),
    ("AMOUNT_OUT_OF_RANGE", "NOT_REFUNDABLE", _back(-1, 101)),
    ("NOT_REFUNDABLE", "SAME_WALLET", _back(0, LOST, claim(Kind.HOLD, 2, 2, as_of=10**6))),
    ("NOT_REFUNDABLE", "DEBIT_WALLET_NOT_FOUND", _back(0, LOST, claim(Kind.HOLD, 1, 77, as_of=10**6))),
    ("NOT_REFUNDABLE", "REFUND_EXCEEDS_TRANSFER", _back(41, kind=Kind.CHARGEBACK)),
    ("SAME_WALLET", "DEBIT_WALLET_NOT_FOUND", _back(0, LOST, claim(debit=77, credit=77, as_of=10**6))),
    ("DEBIT_WALLET_NOT_FOUND", "CREDIT_WALLET_NOT_FOUND", _back(0, LOST, claim(debit=77, credit=78, as_of=10**6))),
    ("CREDIT_WALLET_NOT_FOUND", "REFUND_EXCEEDS_TRANSFER", _back(101, LOST, claim(debit=77, as_of=10**6))),
    ("CURRENCY_MISMATCH", "REFUND_EXCEEDS_TRANSFER", _back(101, LOST, claim(debit=4, as_of=10**6))),
    ("WALLET_CLOSED", "DEBIT_FROZEN", _back(0, LOST, claim(debit=5, credit=6, as_of=10**6))),
    ("DEBIT_FROZEN", "CREDIT_FROZEN", _back(0, LOST, claim(debit=9, credit=6, as_of=10**6))),
    ("DEBIT_FROZEN", "REFUND_EXCEEDS_TRANSFER", _back(101, LOST, claim(credit=6, as_of=10**6))),
    ("CREDIT_FROZEN", "REFUND_EXCEEDS_TRANSFER", _back(101, LOST, claim(debit=6, as_of=10**6))),
    ("REFUND_EXCEEDS_TRANSFER", "INSUFFICIENT_FUNDS", _back(5000)),
    ("INSUFFICIENT_FUNDS", "BALANCE_OUT_OF_RANGE", _back(0, LOST, claim(amount=MAX_AMOUNT_MINOR, as_of=10**6))),
    # Wallets and tiers.
    ("AMOUNT_OUT_OF_RANGE", "WALLET_EXISTS", opening_record(1, 1, overdraft=-1)),
    ("AMOUNT_OUT_OF_RANGE", "DEBIT_WALLET_NOT_FOUND", wallet_change(1, Kind.FREEZE, 77, 1)),
    ("AMOUNT_OUT_OF_RANGE", "TIER_NOT_FOUND", wallet_change(1, Kind.SET_TIER, 1, 65536)),
    ("AMOUNT_OUT_OF_RANGE", "WALLET_NOT_EMPTY", wallet_change(1, Kind.CLOSE_WALLET, 1, 1)),
    ("DEBIT_WALLET_NOT_FOUND", "TIER_NOT_FOUND", wallet_change(1, Kind.SET_TIER, 77, 9)),
    ("TIER_NOT_FOUND", "WALLET_CLOSED", wallet_change(1, Kind.SET_TIER, 5, 9)),
]  # fmt: skip


def test_the_lowest_number_wins(eventful: ShardDriver) -> None:
    """But for UNDER_REVIEW, which is no refusal: only what nothing else speaks against is reviewed."""
    steps: list[Step] = [
        (opening_record(9100, 9), OK),
        (opening_record(9101, 10), OK),
        (tier_record(9102, 3, tier_limits(day_count=0)), OK),
        (wallet_change(9103, Kind.SET_TIER, 10, 3), OK),
        (opening_record(9104, 11), OK),
        *[(hold_record(n, amount=10, expires_in_ms=1000), OK) for n in (111, 112)],
        (capture_record(9105, 111), OK),
        (reference_record(9106, Kind.VOID, 112), OK),
        (hold_record(113, 8, 2, 52, expires_in_ms=1000), "UNDER_REVIEW"),
        (hold_record(114, 8, 11, 51), "UNDER_REVIEW"),
        (hold_record(115, 1, 11, 10), OK),
        (wallet_change(9109, Kind.CLOSE_WALLET, 11), OK),
        (request_record(9110, amount=30, credit=9), OK),
        (wallet_change(9111, Kind.UNFREEZE, 6, 6), OK),
        (hold_record(116, 9, 6, 10), OK),
        (hold_record(117, 1, 6, 10), OK),
        (hold_record(118, 7, 6, 10), OK),
        (hold_record(119, 7, 2, 10), OK),
        (wallet_change(9112, Kind.FREEZE, 6, 6), OK),
        (wallet_change(9113, Kind.FREEZE, 9, 6), OK),
    ]
    run(eventful, steps, at_once=True)
    eventful.pass_time(1000)
    for number, (wins, loses, record) in enumerate(PRECEDENCE, 2000):
        assert NUMBER_OF[Status(wins)] < NUMBER_OF[Status(loses)] or loses == "UNDER_REVIEW"
        asked = record if record[:16] == hold_record(100)[:16] else renumbered(record, number)
        assert eventful.one(asked).status == wins, (wins, loses, asked)
    assert_sound(eventful)


def test_what_wins_over_all_others(eventful: ShardDriver) -> None:
    """Closed, late, an open chain, another content, no room: in this order."""
    used, bad = request_record(110, Kind.PAYMENT, 1, 2, 41), request_record(1, amount=0)
    backlog = eventful.meta()["sequence"] - eventful.meta()["persisted"]
    eventful.open(max_backlog=backlog)
    assert eventful.statuses([bad, used, tier_record(2, 0), _back(0, LOST, claim())]) == [
        "LEDGER_BACKLOG",
        "EXISTS_WITH_DIFFERENT_AMOUNT",
        "LEDGER_BACKLOG",
        "LEDGER_BACKLOG",
    ]
    assert eventful.statuses(chain(used, bad)) == ["EXISTS_WITH_DIFFERENT_CHAIN", "LINKED_FAILED"]
    assert eventful.statuses(chain(used, bad)[:1]) == ["LINKED_CHAIN_OPEN"]
    assert eventful.statuses(chain(used, bad)[:1], not_after_ms=1) == ["DEADLINE_PASSED"]
    eventful.call("hotledger_close")
    assert eventful.statuses(chain(used, bad)[:1], not_after_ms=1) == ["SHARD_NOT_OPEN"]


def test_status_numbers_are_unique_and_in_order() -> None:
    numbers = [rule.number for rule in STATUS_RULES]
    assert numbers == sorted(set(numbers))
    assert {rule.status for rule in STATUS_RULES} == set(Status)


def test_an_external_wallet_stops_at_the_bound(shard: ShardDriver) -> None:
    records = [opening_record(1, OUTSIDE), opening_record(2, 1), opening_record(3, 2)]
    records += [
        request_record(4, Kind.TOP_UP, OUTSIDE, 1, MAX_AMOUNT_MINOR),
        request_record(5, Kind.TOP_UP, OUTSIDE, 2, 1),
    ]
    assert shard.statuses(records)[3:] == ["POSTED", "BALANCE_OUT_OF_RANGE"]
    assert shard.wallet(OUTSIDE)["available"] == -MAX_AMOUNT_MINOR
    assert shard.wallet(1)["available"] == MAX_AMOUNT_MINOR


def test_external_ids_are_distinct_and_negative() -> None:
    ids = {
        external_wallet_id(code, shard) for code in ("USD", "EUR", "USDC", "000", "ZZZZZZZZ") for shard in (0, 1, 32767)
    }
    assert len(ids) == 15
    assert all(-(2**63) < wallet_id < 0 for wallet_id in ids)
    assert NONE not in {USD, EUR}
