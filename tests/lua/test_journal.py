"""What the journal says of each kind of request; that it adds up is in every test that ends with assert_sound."""

from __future__ import annotations

import hashlib
from typing import Any

from engine.domain.limits import Rule
from engine.domain.transfer import HoldState, Kind, RequestFlag, Review
from engine.wire import (
    AFTER,
    CONTENT,
    DETAILS,
    ENTRY_HEADER,
    HASHED_HEADER,
    IDEMPOTENCY,
    JOURNAL_RECORD,
    LINK,
    ORIGIN,
    REQUEST,
    TIER_CHANGE,
    TIER_LIMITS,
)
from tests.fixtures.shard import (
    EUR,
    OUTSIDE,
    USD,
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
from tests.lua.books import assert_sound, read_journal
from tests.lua.steps import OK, both_ways, run

DEVICE, IP = b"device-1", b"address1"
NOTHING, BOTH, DEBIT = (0, 0), (1, 1), (1, 0)
"""Which sides have a leg."""

Link = tuple[int, int, int, int, int, int, int, int, int]
"""(reference, purpose, state, review, rule, remaining, captured, released, expires_at_ms); -1: in five seconds."""

PAY, HELD = int(Kind.PAYMENT), int(Kind.HOLD)
OPEN, CAPTURED, VOIDED, EXPIRED = HoldState
REVIEW, REVIEW_HOLD, RULE = Review.TRANSFER, Review.HOLD, Rule.MAX_AMOUNT

# (request, (kind, debit, credit, amount) as done, which sides have a leg, the LINK), in one history. Wallet 1 comes
# into a tier in which more than 100 is reviewed.
HISTORY: list[tuple[Asked, tuple[int, int, int, int], tuple[int, int], Link | None]] = [
    (request_record(1), (Kind.TRANSFER, 1, 2, 100), BOTH, None),
    (request_record(2, Kind.TOP_UP, OUTSIDE, 1, 50), (Kind.TOP_UP, OUTSIDE, 1, 50), BOTH, None),
    (request_record(3, Kind.WITHDRAWAL, 1, OUTSIDE, 5), (Kind.WITHDRAWAL, 1, OUTSIDE, 5), BOTH, None),
    (request_record(4, debit=2, credit=1, amount=500, flags=2), (Kind.TRANSFER, 2, 1, 100), BOTH, None),
    (hold_record(10, amount=40), (HELD, 1, 2, 40), DEBIT, (10, PAY, OPEN, 0, 0, 40, 0, 0, 0)),
    (hold_record(11, amount=7, expires_in_ms=5000), (HELD, 1, 2, 7), DEBIT, (11, PAY, OPEN, 0, 0, 7, 0, 0, -1)),
    (reference_record(12, Kind.RAISE_HOLD, 10, 2), (Kind.RAISE_HOLD, 1, 2, 2), DEBIT,
     (10, PAY, OPEN, 0, 0, 42, 0, 0, 0)),
    (capture_record(13, 10, 12, final=False), (Kind.CAPTURE, 1, 2, 12), BOTH, (10, PAY, OPEN, 0, 0, 30, 12, 0, 0)),
    (capture_record(14, 10, 10), (Kind.CAPTURE, 1, 2, 10), BOTH, (10, PAY, CAPTURED, 0, 0, 0, 22, 20, 0)),
    (reference_record(15, Kind.VOID, 11), (Kind.VOID, 1, 2, 7), DEBIT, (11, PAY, VOIDED, 0, 0, 0, 0, 7, -1)),
    (reference_record(16, Kind.REFUND, 13, 4), (Kind.REFUND, 2, 1, 4), BOTH, (13, 0, 0, 0, 0, 4, 0, 0, 0)),
    (reference_record(17, Kind.REFUND, 13), (Kind.REFUND, 2, 1, 8), BOTH, (13, 0, 0, 0, 0, 12, 0, 0, 0)),
    (reference_record(18, Kind.CHARGEBACK, 2), (Kind.CHARGEBACK, 1, OUTSIDE, 50), BOTH, (2, 0, 0, 0, 0, 50, 0, 0, 0)),
    (opening_record(20, 8, owner=9, currency=EUR, overdraft=3), (Kind.OPEN_WALLET, 8, 9, 3), DEBIT, None),
    (opening_record(21, -8, owner=0, overdraft=2), (Kind.OPEN_WALLET, -8, 0, 2), DEBIT, None),
    (wallet_change(22, Kind.FREEZE, 3, 6), (Kind.FREEZE, 3, 0, 6), DEBIT, None),
    (wallet_change(23, Kind.UNFREEZE, 3, 4), (Kind.UNFREEZE, 3, 0, 4), DEBIT, None),
    (wallet_change(24, Kind.SET_OVERDRAFT_LIMIT, 3, 9), (Kind.SET_OVERDRAFT_LIMIT, 3, 0, 9), DEBIT, None),
    (wallet_change(25, Kind.CLOSE_WALLET, 3), (Kind.CLOSE_WALLET, 3, 0, 0), DEBIT, None),
    (tier_record(26, 5, tier_limits(max_amount=100, review=[RULE])), (Kind.SET_TIER_LIMITS, 0, 0, 5), NOTHING, None),
    (wallet_change(27, Kind.SET_TIER, 1, 5), (Kind.SET_TIER, 1, 0, 5), DEBIT, None),
    (request_record(30, Kind.PAYMENT, amount=101), (HELD, 1, 2, 101), DEBIT,
     (30, PAY, OPEN, REVIEW, RULE, 101, 0, 0, 0)),
    (hold_record(31, amount=102), (HELD, 1, 2, 102), DEBIT, (31, PAY, OPEN, REVIEW_HOLD, RULE, 102, 0, 0, 0)),
    (reference_record(32, Kind.APPROVE_HOLD, 30), (Kind.CAPTURE, 1, 2, 101), BOTH,
     (30, PAY, CAPTURED, 0, 0, 0, 101, 0, 0)),
    (reference_record(33, Kind.APPROVE_HOLD, 31), (Kind.APPROVE_HOLD, 1, 2, 0), DEBIT,
     (31, PAY, OPEN, 0, 0, 102, 0, 0, 0)),
]  # fmt: skip


def test_records_and_links(clocked: ShardDriver) -> None:
    for at_once in both_ways(clocked):
        start = clocked.meta()["sequence"]
        expected = [OK if record[:16][15] not in (30, 31) else "UNDER_REVIEW" for record, *_ in HISTORY]
        run(clocked, list(zip((record for record, *_ in HISTORY), expected, strict=True)), at_once=at_once)
        found = read_journal(clocked)[start:]
        assert len(found) == len(HISTORY)
        for record, (asked, done, legs, link) in zip(found, HISTORY, strict=True):
            assert record.id == int.from_bytes(asked[:16], "big")
            assert tuple(record.done[name] for name in ("kind", "debit", "credit", "amount")) == done
            # The rest of the content is as it was asked.
            content = REQUEST.unpack(asked)
            rest = ("flags", "details_size", "currency", "details_digest", "terms_digest")
            assert [record.done[name] for name in rest] == [content[name] for name in rest]
            assert tuple(int(record.after[f"{side}_version"] > 0) for side in ("debit", "credit")) == legs
            assert record.link == _link(record.sequence, link, clocked.server_ms() + 5000)
            assert record.origin is None
            assert (record.tier_change is None) == (done[0] != Kind.SET_TIER_LIMITS)
        change = next(record for record in found if record.tier_change).tier_change
        assert change
        assert (change["sequence"], change["tier"]) == (start + 20, 5)
        assert TIER_LIMITS.struct.pack(*[change[name] for name, _ in TIER_LIMITS.fields]) == HISTORY[19][0].attached
        assert_sound(clocked)


def test_what_is_kept_is_journalled_where_the_record_does_not_say_it(clocked: ShardDriver) -> None:
    """The very bytes that a retry is answered with; assert_sound compares those that the record says."""
    for at_once in both_ways(clocked):
        start = clocked.meta()["sequence"]
        expected = [OK if record[:16][15] not in (30, 31) else "UNDER_REVIEW" for record, *_ in HISTORY]
        run(clocked, list(zip((record for record, *_ in HISTORY), expected, strict=True)), at_once=at_once)
        found = read_journal(clocked)[start:]
        plain = {1, 2, 3, 20, 21, 22, 23, 24, 25, 26, 27}
        assert {record.id for record in found if record.kept is None} == plain
        _, *outcomes = clocked.lookup(*(record.id for record in found))
        for record, packed in zip(found, outcomes, strict=True):
            if record.kept:
                assert record.kept == IDEMPOTENCY.unpack(packed.ljust(IDEMPOTENCY.size, b"\0"))
                assert record.kept["sequence"] == record.sequence
        assert_sound(clocked)


def _link(sequence: int, link: Link | None, expiry: int) -> dict[str, Any] | None:
    if link is None:
        return None
    values = [sequence, *link[:-1], expiry if link[-1] == -1 else link[-1]]
    return dict(zip((name for name, _ in LINK.fields), values, strict=True))


def test_an_expiry_and_the_end_of_a_generation(clocked: ShardDriver) -> None:
    run(clocked, [(hold_record(1, expires_in_ms=5000), OK), 5000, (reference_record(2, Kind.EXPIRE_HOLD, 1), OK)])
    clocked.end_generation()
    *_, expiry, ended = read_journal(clocked)
    assert (expiry.kind, expiry.done["debit"], expiry.done["credit"], expiry.done["amount"]) == (
        Kind.EXPIRE_HOLD,
        1,
        2,
        100,
    )
    assert expiry.link == _link(expiry.sequence, (1, PAY, EXPIRED, 0, 0, 0, 0, 100, -1), clocked.server_ms())
    assert (ended.kind, ended.id, ended.done["debit"], ended.done["credit"]) == (Kind.END_GENERATION, 0, 0, 0)
    assert ended.done["amount"] == 2
    assert set(ended.after.values()) == {0}
    assert_sound(clocked)


def test_origins(clocked: ShardDriver) -> None:
    """Of what was accepted and said so, with what it said; also when it became a review or a hold."""
    limits = tier_limits(max_amount=100, review=[Rule.MAX_AMOUNT])
    run(clocked, [(tier_record(90, 1, limits), OK), (wallet_change(91, Kind.SET_TIER, 1, 1), OK)])
    asked = [
        (request_record(1, amount=1, attached=terms(device=DEVICE, ip=IP)), OK),
        (request_record(2, amount=1), OK),
        (request_record(3, amount=1, attached=terms(device=DEVICE)), OK),
        (request_record(4, amount=1, attached=terms(ip=IP)), OK),
        (request_record(5, amount=10**6, attached=terms(device=DEVICE)), "INSUFFICIENT_FUNDS"),
        (request_record(6, amount=101, attached=terms(ip=IP)), "UNDER_REVIEW"),
        (hold_record(7, amount=1, device=DEVICE), OK),
        (request_record(8, amount=1, attached=terms(conditions=2)), OK),
    ]
    run(clocked, asked, at_once=True)
    none = b"\0" * 8
    origins = {
        record.id: record.origin and (record.origin["device"], record.origin["ip"]) for record in read_journal(clocked)
    }
    assert {number: origins[number] for number in (1, 2, 3, 4, 6, 7, 8)} == {
        1: (DEVICE, IP),
        2: None,
        3: (DEVICE, none),
        4: (none, IP),
        6: (none, IP),
        7: (DEVICE, none),
        8: None,
    }


def test_an_entry_has_only_the_parts_that_it_needs(clocked: ShardDriver) -> None:
    """Also after a failed chain that would have needed more."""
    failed = chain(
        hold_record(1, device=DEVICE),
        tier_record(2, 1),
        request_record(3, details_size=4, digest=b"digest-1"),
        request_record(4, debit=2, credit=77),
    )
    [*_, last] = clocked.post([*failed, request_record(5)], b"more")
    assert last.status == OK
    assert list(clocked.last_entry()) == [b"h", b"r"]
    asked = [hold_record(6, device=DEVICE), tier_record(7, 1), request_record(8, details_size=4, digest=b"digest-1")]
    assert clocked.statuses([*failed, *asked], details=b"moremore")[4:] == [OK] * 3
    assert list(clocked.last_entry()) == [b"h", b"r", b"x", b"o", b"l", b"t", b"k"]
    assert_sound(clocked)


def test_the_hash_of_an_entry(clocked: ShardDriver) -> None:
    """Written out once: sha1 over the hash before, its place, and all its parts in order."""
    before = clocked.meta()
    asked = [hold_record(6, device=DEVICE), tier_record(7, 1), request_record(8, details_size=4, digest=b"digest-1")]
    assert clocked.statuses(asked, details=b"more") == [OK] * 3
    entry = clocked.last_entry()
    header = ENTRY_HEADER.unpack(entry[b"h"])
    first, last = before["sequence"] + 1, before["sequence"] + 3
    assert (header["first_sequence"], header["last_sequence"], header["epoch"]) == (first, last, 1)
    assert header["time_ms"] == clocked.server_ms()
    sizes = (DETAILS.size + 4, ORIGIN.size, LINK.size, TIER_CHANGE.size)
    assert [len(entry[name]) for name in (b"x", b"o", b"l", b"t", b"k")] == [*sizes, IDEMPOTENCY.size]
    assert len(entry[b"r"]) == 3 * JOURNAL_RECORD.size == 3 * (16 + CONTENT.size + AFTER.size)
    place = HASHED_HEADER.struct.pack(1, first, last, clocked.server_ms(), *sizes)
    parts = b"".join(entry[name] for name in (b"r", b"x", b"o", b"l", b"t", b"k"))
    assert header["hash"] == hashlib.sha1(before["hash"] + place + parts).hexdigest().encode()
    assert header["previous_hash"] == before["hash"]
    assert clocked.meta()["hash"] == header["hash"]


def test_what_is_refused_is_not_in_the_journal(clocked: ShardDriver) -> None:
    before = clocked.meta()["sequence"]
    run(clocked, [(request_record(1, amount=10**6), "INSUFFICIENT_FUNDS"), (capture_record(2, 9), "HOLD_NOT_FOUND")])
    assert clocked.meta()["sequence"] == before
    assert len(read_journal(clocked)) == before


def test_a_movement_that_names_its_currency_keeps_it(clocked: ShardDriver) -> None:
    limits = tier_limits(max_amount=100, review=[Rule.MAX_AMOUNT])
    run(clocked, [(tier_record(90, 1, limits), OK), (wallet_change(91, Kind.SET_TIER, 1, 1), OK)])
    flags = RequestFlag.BALANCING
    run(clocked, [(request_record(1, amount=5000, flags=flags, currency=USD), "UNDER_REVIEW")])
    last = read_journal(clocked)[-1]
    assert (last.kind, last.done["currency"], last.done["flags"], last.done["amount"]) == (Kind.HOLD, USD, flags, 1000)
