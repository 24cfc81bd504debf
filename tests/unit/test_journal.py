"""From journal entries to checked changes: what the persister makes of them, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.domain.status import NUMBER_OF, Status
from engine.domain.transfer import HoldState, Kind, Review
from engine.errors import CorruptRecord, JournalGap, LedgerImbalance
from engine.wire import CONTENT, DECLINED, REQUEST
from persister import declined
from persister.holds import OpenHolds, hold_changes_of, open_holds_after
from persister.journal import LINKED_KINDS, Place, decode
from persister.legs import changes_of, legs_of
from persister.states import ALL_FLAGS, UNCHANGED, state_changes_of
from persister.sweeper import expiry_request
from tests.fixtures.journal import BEGINNING, batch, entry, id_of, kept_of, link, origin, packed, record, tier_change

WALLET, SHOP = 1, 2
RAISED = link(2, 9, purpose=Kind.PAYMENT, remaining=55)
HELD = record(1, Kind.HOLD, 1, 2, 5)
OF_HELD = link(1, 1, purpose=Kind.PAYMENT, remaining=5)
RATES = tier_change(1, 7, review=4, max_amount=500)


def hold(sequence: int, kind: Kind, amount: int, number: int = 9, **fields: Any) -> tuple[bytes, bytes]:
    """The record and the link of a change of a hold; of a HOLD, number is its own id."""
    own = number if kind is Kind.HOLD else 1000 + sequence
    expected = {"purpose": Kind.PAYMENT, "remaining": amount if kind is Kind.HOLD else 0}
    return record(own, kind, WALLET, SHOP, amount), link(sequence, number, **expected | fields)


def changes(*pairs: tuple[bytes, bytes]) -> OpenHolds:
    records, links = zip(*pairs, strict=True)
    return open_holds_after(hold_changes_of(batch(records, links=b"".join(links))))


class TestDecode:
    def test_what_belongs_to_records(self) -> None:
        read = batch(
            [record(1, Kind.SET_TIER_LIMITS, amount=7), *(record(n, Kind.PAYMENT, 1, 2, 5) for n in (2, 3))],
            tier_changes=RATES,
            origins=origin(3, device=b"device 1"),
        )
        assert read.records_of(read.origins).tolist() == [2]
        assert read.tier_changes["max_amount"] == 500
        assert len(read.links) == 0

    @pytest.mark.parametrize(
        ("records", "parts", "match"),
        [
            ([record(1, kind, 1, 2, 5)], {}, f"kind {kind:d} lacks its link")
            for kind in sorted(LINKED_KINDS)
        ] + [
            ([record(1, Kind.PAYMENT, 1, 2, 5)], {"links": link(1, 9)}, "kind 3 has a link"),
            ([record(1, Kind.SET_TIER_LIMITS, amount=7)], {}, "lacks its tier change"),
            ([record(1, Kind.SET_TIER, 1, 0, 7)], {"tier_changes": RATES}, "kind 21 has a tier change"),
            ([record(1, Kind.SET_TIER_LIMITS, amount=8)], {"tier_changes": RATES}, "another tier"),
            ([record(1, Kind.SET_TIER_LIMITS, amount=7)], {"tier_changes": tier_change(1, 7, layout=9)}, "or layout"),
            ([record(1, Kind.SET_TIER_LIMITS, amount=2**16)], {"tier_changes": tier_change(1, 2**16)}, "another tier"),
            ([record(1, Kind.PAYMENT, 1, 2, 5)], {"origins": origin(1)[:-1]}, "a ORIGIN has another size than 24"),
            ([record(1, Kind.PAYMENT, 1, 2, 5)], {"origins": origin(2)}, "belongs to no record of its entry"),
            ([record(1, Kind.PAYMENT, 1, 2, 5)], {"origins": origin(0)}, "belongs to no record of its entry"),
            ([record(1, Kind.PAYMENT, 1, 2, 5)], {"origins": origin(1) * 2}, "or to one that has another"),
            ([record(1, Kind.PAYMENT, 1, 2, 5)], {"origins": origin(float("nan"))}, "sequence is nan"),
            ([record(1, Kind.PAYMENT, 1, 2, 5)], {"origins": origin(1.5)}, "sequence is 1.5"),
            ([record(1, Kind.HOLD, 1, 2, 5)], {"links": link(1, 1, remaining=2.0**53)}, "remaining is 90071992547409"),
            ([HELD], {"links": OF_HELD, "kept": b""}, "kind 7 lacks its kept outcome"),
            ([record(1, Kind.SET_TIER, 1, 0, 7)], {"kept": kept_of(1, b"", kind=3)}, "kind 21 has a kept outcome"),
            ([HELD], {"links": OF_HELD, "kept": kept_of(1, b"", kind=7, status=100)}, "none of an accepted"),
            ([HELD], {"links": OF_HELD, "kept": kept_of(1, b"", kind=7, replayed=1)}, "none of an accepted"),
            ([HELD], {"links": OF_HELD, "kept": kept_of(1, b"", kind=13)}, "none of an accepted"),
            ([HELD], {"links": OF_HELD, "kept": kept_of(1, b"", kind=7, moved=0.5)}, "moved is 0.5"),
        ],
    )  # fmt: skip
    def test_refuses(self, records: list[bytes], parts: dict[str, bytes], match: str) -> None:
        with pytest.raises(CorruptRecord, match=match):
            batch(records, **parts)

    def test_each_part_is_in_its_own_entry(self) -> None:
        payments = [record(n, Kind.PAYMENT, 1, 2, 5) for n in (1, 2)]
        first = entry(BEGINNING, payments[:1], origins=origin(1) + origin(2))
        second = entry(Place(1, 1, first[1][b"h"][-40:]), payments[1:])
        with pytest.raises(CorruptRecord, match="belongs to no record of its entry"):
            decode(BEGINNING, [first, second])

    @pytest.mark.parametrize("part", ["origins", "links", "tier_changes", "kept"])
    def test_the_hash_covers_every_part(self, part: str) -> None:
        made = {
            "origins": ([record(1, Kind.PAYMENT, 1, 2, 5)], origin(1)),
            "links": ([record(1, Kind.VOID, 1, 2, 5)], link(1, 9)),
            "tier_changes": ([record(1, Kind.SET_TIER_LIMITS, amount=7)], RATES),
            "kept": ([record(1, Kind.PAYMENT, 1, 2, 5)], kept_of(1, b"", kind=Kind.PAYMENT, amount=9)),
        }
        records, whole = made[part]
        name, fields = entry(BEGINNING, records, **{part: whole})
        field = {"origins": b"o", "links": b"l", "tier_changes": b"t", "kept": b"k"}[part]
        fields[field] = whole[:-1] + bytes([whole[-1] ^ 1])
        with pytest.raises(JournalGap, match="its content hashes to"):
            decode(BEGINNING, [(name, fields)])


class TestLegs:
    @pytest.mark.parametrize(
        ("kind", "amount", "released", "legs"),
        [
            (Kind.TRANSFER, 5, 0, [(1, -5, 0), (2, 5, 0)]),
            (Kind.REFUND, 5, 0, [(1, -5, 0), (2, 5, 0)]),
            (Kind.CHARGEBACK, 5, 0, [(1, -5, 0), (2, 5, 0)]),
            (Kind.HOLD, 5, 0, [(1, 0, 5)]),
            (Kind.RAISE_HOLD, 5, 0, [(1, 0, 5)]),
            (Kind.CAPTURE, 5, 3, [(1, -5, -8), (2, 5, 0)]),
            (Kind.VOID, 5, 5, [(1, 0, -5)]),
            (Kind.EXPIRE_HOLD, 5, 5, [(1, 0, -5)]),
            (Kind.APPROVE_HOLD, 0, 0, [(1, 0, 0)]),
            (Kind.OPEN_WALLET, 100, 0, [(1, 0, 0)]),
            (Kind.FREEZE, 2, 0, [(1, 0, 0)]),
            (Kind.SET_OVERDRAFT_LIMIT, 100, 0, [(1, 0, 0)]),
            (Kind.END_GENERATION, 2, 0, []),
        ],
    )
    def test_of_each_kind(self, kind: Kind, amount: int, released: int, legs: list[tuple[int, int, int]]) -> None:
        links = link(1, 9, released=released) if kind in LINKED_KINDS else b""
        made = legs_of(batch([record(9, kind, 1, 2, amount)], links=links))
        assert list(zip(made.wallet, made.amount, made.reserved, strict=True)) == legs

    @pytest.mark.parametrize("kind", [Kind.PAYMENT, Kind.CAPTURE, Kind.HOLD, Kind.VOID])
    def test_of_nothing_are_refused(self, kind: Kind) -> None:
        links = link(1, 9) if kind in LINKED_KINDS else b""
        with pytest.raises(CorruptRecord, match="moves no money"):
            legs_of(batch([record(9, kind, 1, 2, 0)], links=links))

    def payment_and_hold(self, **second: float) -> Any:
        after = {"debit_available": 85, "debit_locked": 10, "debit_version": 4} | second
        records = [
            record(1, Kind.PAYMENT, 1, 2, 5, debit_available=95, debit_version=3, credit_available=5, credit_version=2),
            record(9, Kind.HOLD, 1, 2, 10, **after),
        ]
        return changes_of(legs_of(batch(records, links=link(2, 9, remaining=10))))

    def test_add_up_per_wallet(self) -> None:
        made = self.payment_and_hold()
        assert [column.tolist() for column in made] == [[1, 2], [2, 1], [100, 0], [0, 0], [4, 2], [85, 5], [10, 0]]

    @pytest.mark.parametrize(
        ("second", "error", "match"),
        [
            ({"debit_version": 5}, JournalGap, "its version is 5, .* 4"),
            ({"debit_available": 86}, LedgerImbalance, "its available is 86, .* 85"),
            ({"debit_locked": 9}, LedgerImbalance, "its locked is 9, .* 10"),
        ],
    )
    def test_that_do_not_follow(self, second: dict[str, float], error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            self.payment_and_hold(**second)


class TestHolds:
    def test_made_changed_and_ended(self) -> None:
        found = changes(
            hold(1, Kind.HOLD, 50, number=9),
            hold(2, Kind.RAISE_HOLD, 10, number=7, remaining=30, captured=4),
            hold(3, Kind.CAPTURE, 20, number=9, remaining=30, captured=20),
            hold(4, Kind.VOID, 25, number=8, state=HoldState.VOIDED, released=25),
            hold(5, Kind.HOLD, 5, number=6),
            hold(6, Kind.EXPIRE_HOLD, 5, number=6, state=HoldState.EXPIRED, released=5),
        )
        assert [changes.id.tolist() for changes in (found.made, found.changed, found.ended)] == [
            [id_of(9)], [id_of(7)], [id_of(8)],
        ]  # fmt: skip
        assert (found.made.remaining, found.made.captured, found.makers.sequence) == (30, 20, 1)
        assert (found.changed_from.remaining_before, found.changed_from.captured_before) == (20, 4)
        assert found.ended_from.remaining_before == 25

    def test_a_review_that_is_approved(self) -> None:
        found = changes(
            hold(1, Kind.HOLD, 50, review=Review.HOLD, rule=3),
            hold(2, Kind.APPROVE_HOLD, 0, remaining=50),
        )
        assert (found.makers.review, found.makers.rule, found.made.review) == (Review.HOLD, 3, Review.NONE)

    def test_two_captures_within_a_batch_are_guarded_by_the_first(self) -> None:
        found = changes(
            hold(1, Kind.CAPTURE, 10, remaining=40, captured=15),
            hold(2, Kind.CAPTURE, 15, state=HoldState.CAPTURED, captured=30, released=25),
        )
        assert (found.ended_from.remaining_before, found.ended_from.captured_before) == (50, 5)
        assert found.ended.captured == 30

    @pytest.mark.parametrize(
        ("pair", "what"),
        [
            (hold(1, Kind.HOLD, 50, remaining=40), "remaining"),
            (hold(1, Kind.HOLD, 50, remaining=60), "beginning"),
            (hold(1, Kind.HOLD, 50, captured=1), "beginning"),
            ((record(5, Kind.HOLD, 1, 2, 50), link(1, 9, purpose=3, remaining=50)), "beginning"),
            (hold(1, Kind.HOLD, 50, purpose=Kind.REFUND), "purpose"),
            (hold(1, Kind.HOLD, 50, review=3), "review"),
            (hold(1, Kind.HOLD, 50, released=1), "released"),
            (hold(1, Kind.HOLD, 50, state=HoldState.CAPTURED), "state"),
            (hold(1, Kind.CAPTURE, 50, captured=50), "state"),
            (hold(1, Kind.CAPTURE, 50, captured=50, state=HoldState.VOIDED), "state"),
            (hold(1, Kind.CAPTURE, 50, remaining=1, captured=50, state=HoldState.CAPTURED), "state"),
            (hold(1, Kind.CAPTURE, 50, captured=49, state=HoldState.CAPTURED), "captured"),
            (hold(1, Kind.CAPTURE, 50, captured=50, released=-60, remaining=11), "released"),
            (hold(1, Kind.RAISE_HOLD, 50, remaining=49), "remaining"),
            (hold(1, Kind.VOID, 50, released=49, state=HoldState.VOIDED), "amount"),
            (hold(1, Kind.VOID, 50, released=50, remaining=1), "state"),
            (hold(1, Kind.VOID, 50, released=50, state=HoldState.EXPIRED), "state"),
            (hold(1, Kind.APPROVE_HOLD, 0), "state"),
        ],
    )
    def test_what_no_hold_can_do(self, pair: tuple[bytes, bytes], what: str) -> None:
        with pytest.raises(CorruptRecord, match=f"the {what} of its hold"):
            changes(pair)

    @pytest.mark.parametrize(
        ("second", "error", "match"),
        [
            (hold(2, Kind.HOLD, 50), JournalGap, "made or ended before, at sequence 1"),
            (hold(2, Kind.RAISE_HOLD, 5, remaining=54), LedgerImbalance, "with remaining 49, .* was 50"),
            (hold(2, Kind.CAPTURE, 5, remaining=45, captured=6), LedgerImbalance, "with captured 1, .* was 0"),
            (hold(2, Kind.RAISE_HOLD, 5, remaining=55, purpose=1), LedgerImbalance, "with purpose 1, .* was 3"),
            (hold(2, Kind.RAISE_HOLD, 5, remaining=55, expires_at_ms=8), LedgerImbalance, "with expiry 8, .* was 0"),
            ((record(5, Kind.RAISE_HOLD, 3, 2, 5), RAISED), LedgerImbalance, "debit wallet 3"),
            ((record(5, Kind.RAISE_HOLD, 1, 3, 5), RAISED), LedgerImbalance, "credit wallet 3"),
        ],
    )  # fmt: skip
    def test_what_does_not_follow(self, second: tuple[bytes, bytes], error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            changes(hold(1, Kind.HOLD, 50), second)

    def test_nothing_follows_an_end(self) -> None:
        ended = hold(1, Kind.VOID, 50, released=50, state=HoldState.VOIDED)
        with pytest.raises(JournalGap, match="made or ended before"):
            changes(ended, hold(2, Kind.RAISE_HOLD, 5, remaining=5))


class TestStates:
    def test_changes_of_a_wallet_are_one(self) -> None:
        kinds = [
            (Kind.FREEZE, 5, 6), (Kind.SET_TIER, 4, 7), (Kind.UNFREEZE, 5, 2), (Kind.SET_OVERDRAFT_LIMIT, 5, 100),
            (Kind.CLOSE_WALLET, 4, 0), (Kind.SET_TIER, 4, 0),
        ]  # fmt: skip
        found = state_changes_of(batch([record(n, *rest) for n, rest in enumerate(_with_no_credit(kinds), 1)]))
        assert found is not None
        assert found.wallet.tolist() == [4, 5]
        assert found.keep.tolist() == [ALL_FLAGS, ALL_FLAGS - 2]
        assert found.add.tolist() == [8, 4]
        assert found.tier.tolist() == [0, UNCHANGED]
        assert found.overdraft_limit.tolist() == [UNCHANGED, 100]

    def test_of_a_plain_batch_are_none(self) -> None:
        assert state_changes_of(batch([record(1, Kind.PAYMENT, 1, 2, 5)])) is None

    @pytest.mark.parametrize(
        ("kind", "value"),
        [
            (Kind.FREEZE, 1), (Kind.FREEZE, 0), (Kind.UNFREEZE, 8), (Kind.CLOSE_WALLET, 1), (Kind.SET_TIER, 65_536),
            (Kind.SET_OVERDRAFT_LIMIT, -1),
        ],
    )  # fmt: skip
    def test_refuse_what_no_request_can_set(self, kind: Kind, value: int) -> None:
        with pytest.raises(CorruptRecord, match=f"sequence 1: kind {kind:d} takes no {value}"):
            state_changes_of(batch([record(1, kind, 5, 0, value)]))


def _with_no_credit(changes: list[tuple[Kind, int, int]]) -> list[tuple[Kind, int, int, int]]:
    return [(kind, wallet, 0, value) for kind, wallet, value in changes]


class TestSweeper:
    def test_its_request(self) -> None:
        request = REQUEST.unpack(expiry_request(id_of(9)))
        assert len(expiry_request(id_of(9))) == REQUEST.size
        assert (request["kind"], request["attachment"], request["amount"]) == (Kind.EXPIRE_HOLD, 0, 0)
        content = CONTENT.struct.pack(*(request[name] for name, _ in CONTENT.fields))
        assert content[4:20] == id_of(9)
        assert set(content[20:]) == {0}
        assert request["id"] != REQUEST.unpack(expiry_request(id_of(9)))["id"], "nobody can take its id beforehand"


class TestDeclined:
    def made(self, **fields: Any) -> bytes:
        status = NUMBER_OF[Status.INSUFFICIENT_FUNDS]
        return packed(DECLINED, **{"time_ms": 1_800_000_000_000, "status": status, "amount": 7} | fields)

    def test_rows(self) -> None:
        rows = declined.rows_of(3, [self.made(debit=-5) * 2, self.made(device=b"device 1")])
        assert rows["debit_wallet_id"].tolist() == [-5, -5, 0]
        assert rows["shard"].tolist() == [3, 3, 3]
        assert rows["device"][2].tobytes() == b"device 1"

    @pytest.mark.parametrize(
        "damaged",
        [b"", b"short", {"amount": float("nan")}, {"amount": -1}, {"amount": 2.0**53}, {"time_ms": float("inf")}],
    )
    def test_what_cannot_be_read_is_left_out(self, damaged: bytes | dict[str, float]) -> None:
        entry = damaged if isinstance(damaged, bytes) else self.made(**damaged)
        assert len(declined.rows_of(0, [entry, self.made()])) == 1

    def test_nothing(self) -> None:
        assert len(declined.rows_of(0, [])) == 0
        assert np.array_equal(declined.rows_of(0, [b""]), declined.rows_of(0, []))
