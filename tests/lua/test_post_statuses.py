"""Every status of `post`, one line a case, on both products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from engine.domain.money import MAX_AMOUNT_MINOR
from engine.domain.status import NUMBER_OF, RECORDED, STATUS_OF, STATUS_RULES, Status
from engine.domain.transfer import Kind
from engine.domain.wallet import external_wallet_id
from engine.wire import AFTER, DETAILS, ENTRY_HEADER, REPLY_HEADER, REQUEST, WALLET
from tests.fixtures.shard import EUR, NONE, OUTSIDE, USD, ShardDriver, changed, opening_record, request_record


def _numbered(cases: Sequence[tuple[Any, ...]]) -> list[str]:
    return [f"{case[0]}-{number}" for number, case in enumerate(cases)]


CASES: list[tuple[str, bytes]] = [
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
def test_status(funded: ShardDriver, status: str, record: bytes) -> None:
    before = funded.image()
    [outcome] = funded.post([record])
    assert outcome.status == status
    assert not outcome.replayed
    if status != "POSTED":
        assert _without_outcomes(funded.image()) == _without_outcomes(before), "a refusal changed more than its record"


@pytest.mark.parametrize(("status", "record"), CASES, ids=_numbered(CASES))
def test_a_retry_gets_the_recorded_answer_and_the_rest_is_decided_anew(
    funded: ShardDriver, status: str, record: bytes
) -> None:
    [first] = funded.post([record])
    after_first = funded.image()
    [again] = funded.post([record])
    assert again.status == first.status == status
    assert again.replayed == (Status(status) in RECORDED)
    assert again[3:5] == first[3:5]
    assert funded.image() == after_first


def _without_outcomes(image: dict[bytes, Any]) -> dict[bytes, Any]:
    return {key: value for key, value in image.items() if b":idem:" not in key}


DIFFERENCES: list[tuple[str, bytes, bytes]] = [
    ("KIND", request_record(1), request_record(1, Kind.PAYMENT)),
    ("DEBIT", request_record(1), request_record(1, debit=3)),
    ("CREDIT", request_record(1), request_record(1, credit=3)),
    ("AMOUNT", request_record(1), request_record(1, amount=101)),
    ("CURRENCY", request_record(1), request_record(1, currency=USD)),
    ("DETAILS", request_record(1), request_record(1, digest=b"digest!!")),
    ("KIND", request_record(1), opening_record(1, 5)),
    ("KIND", opening_record(1, 5), opening_record(1, -5)),
    ("WALLET", opening_record(1, 5), opening_record(1, 6)),
    ("OWNER", opening_record(1, 5), opening_record(1, 5, owner=2)),
    ("CURRENCY", opening_record(1, 5), opening_record(1, 5, currency=EUR)),
    ("OVERDRAFT_LIMIT", opening_record(1, 5), opening_record(1, 5, overdraft=1)),
    ("AMOUNT", request_record(1, amount=5000), request_record(1, amount=100)),
    ("DEBIT", request_record(1), request_record(1, debit=77, credit=77, amount=5)),
]


@pytest.mark.parametrize("batches", ["one", "two"])
@pytest.mark.parametrize(("field", "first", "second"), DIFFERENCES, ids=_numbered(DIFFERENCES))
def test_the_same_id_with_other_content_names_the_field(
    funded: ShardDriver, field: str, first: bytes, second: bytes, batches: str
) -> None:
    if batches == "one":
        _, outcome = funded.post([first, second])
    else:
        funded.post([first])
        before = funded.image()
        [outcome] = funded.post([second])
        assert funded.image() == before
    assert outcome.status == f"EXISTS_WITH_DIFFERENT_{field}"
    assert not outcome.replayed


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
    [after] = AFTER.struct.iter_unpack(funded.last_entry()[b"r"][REQUEST.size :])
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
    here = {status for status, _ in CASES} | {f"EXISTS_WITH_DIFFERENT_{field}" for field, _, _ in DIFFERENCES}
    here |= {"SHARD_NOT_OPEN", "DEADLINE_PASSED", "LEDGER_BACKLOG"}
    assert here == {status.value for status in NUMBER_OF if status is not Status.NOT_APPLIED}


PRECEDENCE: list[tuple[str, str, bytes]] = [
    ("AMOUNT_OUT_OF_RANGE", "SAME_WALLET", request_record(1, debit=1, credit=1, amount=0)),
    ("SAME_WALLET", "DEBIT_WALLET_NOT_FOUND", request_record(1, debit=77, credit=77)),
    ("DEBIT_WALLET_NOT_FOUND", "CREDIT_WALLET_NOT_FOUND", request_record(1, debit=77, credit=78)),
    ("CREDIT_WALLET_NOT_FOUND", "CURRENCY_MISMATCH", request_record(1, credit=78, currency=EUR)),
    ("CURRENCY_MISMATCH", "INSUFFICIENT_FUNDS", request_record(1, credit=4, amount=5000)),
    (
        "INSUFFICIENT_FUNDS",
        "BALANCE_OUT_OF_RANGE",
        request_record(1, amount=MAX_AMOUNT_MINOR, debit=3, credit=1),
    ),
]


@pytest.mark.parametrize(("wins", "loses", "record"), PRECEDENCE, ids=_numbered(PRECEDENCE))
def test_the_lowest_number_wins(funded: ShardDriver, wins: str, loses: str, record: bytes) -> None:
    assert NUMBER_OF[Status(wins)] < NUMBER_OF[Status(loses)]
    assert funded.statuses([record]) == [wins]


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
