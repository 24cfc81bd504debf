"""The journal of a shard, read and replayed in Python, and the question whether Redis holds what it says.

Written from the meaning of the records (engine/wire.py), not from the Lua code. Every test of a rule ends with
assert_sound(): hash and sequences, each record's arithmetic, wallets, holds, refund totals and limits.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engine.domain.transfer import MOVEMENTS, HoldState, Kind, RequestFlag, Review
from engine.domain.wallet import FLAG_CLOSED, FLAG_EXTERNAL
from engine.keys import ShardKeys
from engine.wire import (
    AFTER,
    CONTENT,
    DETAILS,
    ENTRY_HEADER,
    HASHED_HEADER,
    HOLD,
    IDEMPOTENCY,
    JOURNAL_RECORD,
    LAYOUT_VERSION,
    LINK,
    META,
    ORIGIN,
    TIER_CHANGE,
    TIER_LIMITS,
    USAGE,
    WALLET,
    ZERO_HASH,
)
from tests.fixtures.shard import ShardDriver

LINKED_KINDS = {
    Kind.HOLD,
    Kind.CAPTURE,
    Kind.RAISE_HOLD,
    Kind.VOID,
    Kind.EXPIRE_HOLD,
    Kind.APPROVE_HOLD,
    Kind.REFUND,
    Kind.CHARGEBACK,
}
PARTS = ("h", "r", "x", "o", "l", "t", "k")


class Record(NamedTuple):
    """One accepted request: done is its CONTENT with the wallets and the amount that were moved."""

    sequence: int
    id: int
    done: dict[str, Any]
    after: dict[str, Any]
    details: bytes
    origin: dict[str, Any] | None
    link: dict[str, Any] | None
    tier_change: dict[str, Any] | None
    kept: dict[str, Any] | None

    @property
    def kind(self) -> Kind:
        return Kind(self.done["kind"])


@dataclass
class Wallet:
    currency: bytes
    flags: int
    overdraft_limit: int
    tier: int = 0
    available: int = 0
    locked: int = 0
    version: int = 0

    def after(self) -> tuple[int, int, int]:
        return self.available, self.locked, self.version


@dataclass
class Hold:
    purpose: int
    debit: int
    credit: int
    remaining: int
    expires_at_ms: int
    review: int
    captured: int = 0
    state: int = HoldState.OPEN


@dataclass
class Books:
    """What the records up to now add up to. transfers: wallets and amounts by number; refunded: totals of those.

    forced: wallets that a chargeback may have taken below their limit. outcomes: IDEMPOTENCYs that must be kept.
    """

    wallets: dict[int, Wallet] = field(default_factory=dict)
    holds: dict[int, Hold] = field(default_factory=dict)
    transfers: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    refunded: dict[int, int] = field(default_factory=dict)
    tiers: dict[int, bytes] = field(default_factory=dict)
    forced: set[int] = field(default_factory=set)
    outcomes: dict[int, dict[str, Any]] = field(default_factory=dict)

    def apply(self, record: Record) -> None:
        done, link, kind = record.done, record.link, record.kind
        amount, debit, credit = done["amount"], self.wallets.get(done["debit"]), self.wallets.get(done["credit"])
        assert (link is not None) == (kind in LINKED_KINDS), f"{kind.name} {link}"
        assert (record.tier_change is not None) == (kind is Kind.SET_TIER_LIMITS)
        if kind is Kind.OPEN_WALLET:
            assert debit is None
            flags = FLAG_EXTERNAL if done["flags"] & RequestFlag.EXTERNAL else 0
            debit, credit = Wallet(done["currency"], flags, amount), None
            self.wallets[done["debit"]] = debit
        elif kind in MOVEMENTS:
            assert debit
            assert credit
            assert debit is not credit
            assert debit.currency == credit.currency
            assert amount >= 1
            credit.available += amount
            if kind is Kind.CAPTURE:
                self._capture(record, debit)
            else:
                debit.available -= amount
            if kind in (Kind.REFUND, Kind.CHARGEBACK):
                self._refund(record)
            self.transfers[record.id] = (done["debit"], done["credit"], amount)
        elif kind in LINKED_KINDS:
            assert debit
            assert credit
            credit = None
            self._change_hold(record, debit)
        elif kind is Kind.SET_TIER_LIMITS:
            change = record.tier_change
            assert change
            assert change["tier"] == amount
            self.tiers[amount] = TIER_LIMITS.struct.pack(*list(change.values())[2:])
        elif kind is not Kind.END_GENERATION:
            assert debit
            credit = None
            self._change_wallet(debit, kind, amount)
        takes = kind in MOVEMENTS - {Kind.CAPTURE} or kind in (Kind.HOLD, Kind.RAISE_HOLD)
        if takes and debit and not debit.flags & FLAG_EXTERNAL and done["debit"] not in self.forced:
            assert debit.available >= -debit.overdraft_limit
        for side, wallet in (("debit", debit), ("credit", credit)):
            if wallet:
                wallet.version += 1
            expected = wallet.after() if wallet else (0, 0, 0)
            assert tuple(record.after[f"{side}_{name}"] for name in ("available", "locked", "version")) == expected

        self._keep(record)

    def _keep(self, record: Record) -> None:
        done, kind = record.done, record.kind
        self.outcomes.pop(record.id, None)
        if kind in (Kind.EXPIRE_HOLD, Kind.END_GENERATION):
            assert record.kept is None
            return
        sides = {name: record.after[name] for name in ("debit_available", "credit_available")}
        moved = done["amount"] if kind <= Kind.WITHDRAWAL else 0
        said = {"status": 0, "rule": 0, "sequence": record.sequence, **sides, "moved": moved, "replayed": 0, **done}
        assert record.kept != said
        assert record.kept or kind not in LINKED_KINDS
        self.outcomes[record.id] = record.kept or said

    def _change_wallet(self, wallet: Wallet, kind: Kind, value: int) -> None:
        assert not wallet.flags & (FLAG_EXTERNAL | FLAG_CLOSED)
        match kind:
            case Kind.FREEZE:
                wallet.flags |= value
            case Kind.UNFREEZE:
                wallet.flags &= ~value
            case Kind.CLOSE_WALLET:
                assert wallet.available == wallet.locked == 0
                wallet.flags |= FLAG_CLOSED
            case Kind.SET_OVERDRAFT_LIMIT:
                wallet.overdraft_limit = value
            case Kind.SET_TIER:
                assert value == 0 or value in self.tiers
                wallet.tier = value

    def _capture(self, record: Record, debit: Wallet) -> None:
        done, link, hold = record.done, record.link, self._hold_of(record)
        assert link
        assert done["amount"] + link["released"] <= hold.remaining
        hold.remaining -= done["amount"] + link["released"]
        hold.captured += done["amount"]
        hold.review = Review.NONE
        hold.state = HoldState.OPEN if hold.remaining else HoldState.CAPTURED
        debit.locked -= done["amount"] + link["released"]
        debit.available += link["released"]
        self._compare(hold, link)

    def _change_hold(self, record: Record, debit: Wallet) -> None:
        done, link, kind = record.done, record.link, record.kind
        assert link
        amount = done["amount"]
        if kind is Kind.HOLD:
            assert link["reference"] == record.id
            assert self.holds.get(record.id) is None or self.holds[record.id].state != HoldState.OPEN
            self.holds[record.id] = Hold(
                link["purpose"], done["debit"], done["credit"], 0, link["expires_at_ms"], link["review"]
            )
            assert (link["rule"] > 0) == (link["review"] > 0)
        hold = self._hold_of(record)
        sign = {Kind.HOLD: 1, Kind.RAISE_HOLD: 1, Kind.VOID: -1, Kind.EXPIRE_HOLD: -1, Kind.APPROVE_HOLD: 0}[kind]
        assert amount >= 1 or sign == 0
        hold.remaining += sign * amount
        debit.locked += sign * amount
        debit.available -= sign * amount
        if sign == -1:
            assert hold.remaining == 0
            hold.state = HoldState.VOIDED if kind is Kind.VOID else HoldState.EXPIRED
        if sign == 0:
            assert hold.review == Review.HOLD
            assert amount == 0
            hold.review = Review.NONE
        assert link["released"] == (amount if sign == -1 else 0)
        self._compare(hold, link)

    def _hold_of(self, record: Record) -> Hold:
        assert record.link
        hold = self.holds[record.link["reference"]]
        assert hold.state == HoldState.OPEN
        assert (record.done["debit"], record.done["credit"]) == (hold.debit, hold.credit)
        return hold

    def _compare(self, hold: Hold, link: dict[str, Any]) -> None:
        names = ("purpose", "state", "review", "remaining", "captured", "expires_at_ms")
        assert {name: getattr(hold, name) for name in names} == {name: link[name] for name in names}

    def _refund(self, record: Record) -> None:
        done, link = record.done, record.link
        assert link
        original = link["reference"]
        total = link["remaining"]
        if original in self.transfers:
            debit, credit, amount = self.transfers[original]
            assert (done["debit"], done["credit"]) == (credit, debit)
            assert total == self.refunded.get(original, 0) + done["amount"]
            assert total <= amount
        self.refunded[original] = total
        if record.kind is Kind.CHARGEBACK:
            self.forced.add(done["debit"])
        rest = {name: 0 for name, _ in LINK.fields} | {"reference": original, "remaining": total}
        assert link == rest | {"sequence": record.sequence}


def read_journal(shard: ShardDriver, image: dict[bytes, Any] | None = None) -> list[Record]:
    """All records, from the first sequence on. Entries chain: ids, sequences, hash, epoch, time and parts."""
    image = image or shard.image()
    records: list[Record] = []
    before, time_ms = ZERO_HASH, 0
    for entry_id, fields in image[shard.keys.journal]:
        names = [name.decode() for name in fields]
        assert names == [name for name in PARTS if name in names]
        assert names[:2] == ["h", "r"]
        assert all(fields.values())
        header = ENTRY_HEADER.unpack(fields[b"h"])
        parts = {name: fields.get(name.encode(), b"") for name in PARTS}
        first, last = header["first_sequence"], header["last_sequence"]
        assert entry_id == b"%d-0" % last
        assert first == len(records) + 1
        assert header["previous_hash"] == before
        assert header["time_ms"] >= time_ms
        place = HASHED_HEADER.struct.pack(
            header["epoch"], first, last, header["time_ms"], *(len(parts[name]) for name in "xolt")
        )
        content = before + place + b"".join(parts[name] for name in "rxoltk")
        assert header["hash"] == hashlib.sha1(content).hexdigest().encode()
        before, time_ms = header["hash"], header["time_ms"]
        assert len(parts["r"]) == JOURNAL_RECORD.size * (last - first + 1)
        records += _records(first, parts)
    meta = META.unpack(image[shard.keys.meta])
    assert (meta["sequence"], meta["hash"]) == (len(records), before)
    return records


def _records(first: int, parts: dict[str, bytes]) -> list[Record]:
    details, at = {}, 0
    while at < len(parts["x"]):
        item = DETAILS.unpack(parts["x"][at : at + DETAILS.size])
        at += DETAILS.size + item["size"]
        details[item["sequence"]] = parts["x"][at - item["size"] : at]
    assert at == len(parts["x"])
    origins, links, changes, kept = (
        {item["sequence"]: item for item in _items(layout, parts[name])}
        for layout, name in ((ORIGIN, "o"), (LINK, "l"), (TIER_CHANGE, "t"), (IDEMPOTENCY, "k"))
    )
    for link in links.values():
        link["reference"] = int.from_bytes(link["reference"], "big")
    records = []
    for n, packed in enumerate(_slices(JOURNAL_RECORD.size, parts["r"]), first):
        done = CONTENT.unpack(packed[16 : 16 + CONTENT.size])
        after = AFTER.unpack(packed[16 + CONTENT.size :])
        assert len(details.get(n, b"")) == done["details_size"]
        rare = [of_sequence.pop(n, None) for of_sequence in (origins, links, changes, kept)]
        extra = (details.pop(n, b""), *rare)
        records.append(Record(n, int.from_bytes(packed[:16], "big"), done, after, *extra))
    assert not details
    assert not origins
    assert not links
    assert not changes
    assert not kept
    return records


def _slices(size: int, packed: bytes) -> list[bytes]:
    assert len(packed) % size == 0
    return [packed[at : at + size] for at in range(0, len(packed), size)]


def _items(layout: Any, packed: bytes) -> list[dict[str, Any]]:
    return [layout.unpack(part) for part in _slices(layout.size, packed)]


def assert_sound(shard: ShardDriver) -> Books:
    """Redis is what its journal, read from the first entry on, adds up to."""
    image, books = shard.image(), Books()
    for record in read_journal(shard, image):
        books.apply(record)
    current = META.unpack(image[shard.keys.meta])["generation"]
    _compare_wallets(shard.keys, image, books)
    _compare_holds(shard.keys, image, books, current)
    _compare_refunds(shard.keys, image, books, current)
    _compare_outcomes(shard.keys, image, books, current)
    tiers = {int.from_bytes(tier, "little"): limits for tier, limits in image.get(shard.keys.tiers, {}).items()}
    assert tiers == books.tiers
    return books


def _compare_wallets(keys: ShardKeys, image: dict[bytes, Any], books: Books) -> None:
    sums: dict[bytes, int] = {}
    expected = {keys.wallet(wallet_id): wallet for wallet_id, wallet in books.wallets.items()}
    assert {key for key in image if key.startswith(keys.tag + b":w:")} == set(expected)
    for key, wallet in expected.items():
        kept = WALLET.unpack(image[key][: WALLET.size])
        assert kept == {"layout": LAYOUT_VERSION, **vars(wallet)}
        assert len(image[key]) == WALLET.size + (USAGE.size if wallet.tier else 0)
        sums[wallet.currency] = sums.get(wallet.currency, 0) + wallet.available + wallet.locked
    assert set(sums.values()) <= {0}
    for wallet_id, wallet in books.wallets.items():
        assert wallet.locked == sum(hold.remaining for hold in books.holds.values() if hold.debit == wallet_id)


def _compare_refunds(keys: ShardKeys, image: dict[bytes, Any], books: Books, generation: int) -> None:
    totals: dict[bytes, bytes] = {}
    for number in (generation - 1, generation):
        totals |= image.get(keys.refunded(number), {})
    kept = {int.from_bytes(number, "big"): struct.unpack("<d", total)[0] for number, total in totals.items()}
    assert kept == {number: books.refunded[number] for number in kept}


def _compare_outcomes(keys: ShardKeys, image: dict[bytes, Any], books: Books, generation: int) -> None:
    """What the journal says was answered is what a retry gets, of all that was accepted in two generations."""
    kept: dict[bytes, bytes] = {}
    for number in (generation - 1, generation):
        kept |= image.get(keys.idempotency(number), {})
    for number, outcome in books.outcomes.items():
        packed = kept.get(number.to_bytes(16, "big"))
        assert packed is None or packed[0] > 1 or IDEMPOTENCY.unpack(packed.ljust(IDEMPOTENCY.size, b"\0")) == outcome


def _compare_holds(keys: ShardKeys, image: dict[bytes, Any], books: Books, generation: int) -> None:
    still_open = {number: hold for number, hold in books.holds.items() if hold.state == HoldState.OPEN}
    assert _holds(image, keys.holds) == still_open
    due = {int.from_bytes(hold_id, "big"): score for hold_id, score in image.get(keys.due, [])}
    assert due == {number: hold.expires_at_ms for number, hold in still_open.items() if hold.expires_at_ms}
    for ended_in in (generation - 1, generation):
        for number, hold in _holds(image, keys.resolved_holds(ended_in)).items():
            assert hold.state != HoldState.OPEN
            assert number in still_open or hold == books.holds[number]


def _holds(image: dict[bytes, Any], key: bytes) -> dict[int, Hold]:
    found = {}
    for hold_id, packed in image.get(key, {}).items():
        fields = HOLD.unpack(packed)
        assert fields.pop("layout") == LAYOUT_VERSION
        found[int.from_bytes(hold_id, "big")] = Hold(**fields)
    return found
