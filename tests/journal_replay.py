"""A second reader of the journal: it replays records by what their kind says, and distrusts what they say is after.

It follows the layouts of engine/wire.py and shares no code with the persister.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from engine import HoldState, Kind, Review
from engine.domain.transfer import HOLD_CHANGES, MOVEMENTS, PURPOSES, WALLET_CHANGES, RequestFlag
from engine.domain.wallet import FLAG_CLOSED, FLAG_EXTERNAL
from engine.wire import (
    CONTENT,
    DETAILS,
    ENTRY_HEADER,
    HASHED_HEADER,
    IDEMPOTENCY,
    JOURNAL_DETAILS_FIELD,
    JOURNAL_HEADER_FIELD,
    JOURNAL_KEPT_FIELD,
    JOURNAL_LINKS_FIELD,
    JOURNAL_ORIGINS_FIELD,
    JOURNAL_RECORD,
    JOURNAL_RECORDS_FIELD,
    JOURNAL_TIERS_FIELD,
    LINK,
    ORIGIN,
    TIER_CHANGE,
    TIER_LIMITS,
    ZERO_HASH,
    Layout,
)

Record = dict[str, Any]
LINKED = HOLD_CHANGES | {Kind.REFUND, Kind.CHARGEBACK}
_PARTS = (
    JOURNAL_RECORDS_FIELD,
    JOURNAL_DETAILS_FIELD,
    JOURNAL_ORIGINS_FIELD,
    JOURNAL_LINKS_FIELD,
    JOURNAL_TIERS_FIELD,
    JOURNAL_KEPT_FIELD,
)


@dataclass
class Replay:
    """What follows from the entries so far.

    wallets: by id, (available, locked, version, flags, tier, overdraft limit); holds: by id, the last LINK of each
    with its wallets; refunded: totals by the id of the transfer; tiers: packed TIER_LIMITS; outcomes: by the request's
    id, its IDEMPOTENCY.
    """

    sequence: int = 0
    hash: bytes = ZERO_HASH
    time_ms: int = 0
    wallets: dict[int, list[Any]] = field(default_factory=dict)
    holds: dict[bytes, Record] = field(default_factory=dict)
    moved: dict[bytes, int] = field(default_factory=dict)
    refunded: dict[bytes, int] = field(default_factory=dict)
    tiers: dict[int, bytes] = field(default_factory=dict)
    outcomes: dict[bytes, Record] = field(default_factory=dict)

    def feed(self, entries: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> None:
        """The next entries of the stream, as the client gives them."""
        for entry_id, fields in entries:
            header = ENTRY_HEADER.unpack(fields[JOURNAL_HEADER_FIELD])
            parts = [fields.get(name, b"") for name in _PARTS]
            self._continue(entry_id, header, parts)
            first = header["first_sequence"]
            records = list(_split(JOURNAL_RECORD, parts[0]))
            assert len(records) == header["last_sequence"] - first + 1
            self._check_details(first, records, parts[1])
            assert {origin["sequence"] for origin in _split(ORIGIN, parts[2])} <= set(range(first, self.sequence + 1))
            links = {link["sequence"]: link for link in _split(LINK, parts[3])}
            tiers = {change["sequence"]: change for change in _split(TIER_CHANGE, parts[4])}
            kept = {outcome["sequence"]: outcome for outcome in _split(IDEMPOTENCY, parts[5])}
            for sequence, record in enumerate(records, first):
                self._keep(sequence, record, kept.pop(sequence, None))
                self._replay(record, links.pop(sequence, None), tiers.pop(sequence, None))
            assert not links
            assert not tiers
            assert not kept

    def _continue(self, entry_id: bytes, header: Record, parts: list[bytes]) -> None:
        assert header["first_sequence"] == self.sequence + 1
        assert header["previous_hash"] == self.hash
        assert header["time_ms"] >= self.time_ms
        assert entry_id == b"%d-0" % header["last_sequence"]
        place = [header[name] for name in ("epoch", "first_sequence", "last_sequence", "time_ms")]
        hashed = HASHED_HEADER.struct.pack(*place, *map(len, parts[1:5]))
        digest = hashlib.sha1(self.hash + hashed + b"".join(parts), usedforsecurity=False)
        assert header["hash"] == digest.hexdigest().encode()
        self.sequence, self.hash, self.time_ms = header["last_sequence"], header["hash"], header["time_ms"]

    @staticmethod
    def _check_details(first: int, records: list[Record], packed: bytes) -> None:
        found, position = {}, 0
        while position < len(packed):
            sequence, size = DETAILS.struct.unpack_from(packed, position)
            position += DETAILS.size + size
            found[int(sequence)] = hashlib.blake2b(packed[position - size : position], digest_size=8).digest()
        announced = {at: record["details_digest"] for at, record in enumerate(records, first) if record["details_size"]}
        assert found == announced

    def _keep(self, sequence: int, record: Record, kept: Record | None) -> None:
        """What a retry of the request is answered."""
        kind = Kind(record["kind"])
        said = {name: record[name] for name, _ in CONTENT.fields} | {
            "status": 0,
            "rule": 0,
            "sequence": sequence,
            "debit_available": record["debit_available"],
            "credit_available": record["credit_available"],
            "moved": record["amount"] if kind in PURPOSES else 0,
            "replayed": 0,
        }
        if kept is not None:
            assert kept != said
            assert kept["moved"] == record["amount"]
        else:
            assert kind is Kind.EXPIRE_HOLD or kind not in LINKED
        self.outcomes.pop(record["id"], None)
        if kind not in (Kind.EXPIRE_HOLD, Kind.END_GENERATION):
            self.outcomes[record["id"]] = kept or said

    def _replay(self, record: Record, link: Record | None, tier: Record | None) -> None:
        kind, amount = Kind(record["kind"]), record["amount"]
        assert (link is not None) == (kind in LINKED)
        assert (tier is not None) == (kind is Kind.SET_TIER_LIMITS)
        if tier is not None:
            assert tier["tier"] == amount
            self.tiers[amount] = TIER_LIMITS.struct.pack(*(tier[name] for name, _ in TIER_LIMITS.fields))
        debit = credit = (0, 0)
        if link is not None and kind in HOLD_CHANGES:
            debit, credit = self._change_hold(kind, record, link)
        elif kind in MOVEMENTS:
            debit, credit = (-amount, 0), (amount, 0)
            if link is not None:
                self._refund(record, link)
        elif kind is Kind.OPEN_WALLET:
            self._open(record)
        elif kind in WALLET_CHANGES:
            self._change_wallet(kind, record)
        if kind in MOVEMENTS:
            self.moved[record["id"]] = amount
        has_credit = kind in MOVEMENTS
        has_debit = has_credit or kind in HOLD_CHANGES | WALLET_CHANGES | {Kind.OPEN_WALLET}
        self._leg(record, "debit", debit if has_debit else None)
        self._leg(record, "credit", credit if has_credit else None)

    def _leg(self, record: Record, side: str, change: tuple[int, int] | None) -> None:
        """change: of (available, locked); None if the side has no leg."""
        after = [record[f"{side}_{name}"] for name in ("available", "locked", "version")]
        if change is None:
            assert after == [0, 0, 0]
            return
        wallet = self.wallets[record[side]]
        wallet[0] += change[0]
        wallet[1] += change[1]
        wallet[2] += 1
        assert after == wallet[:3], (record, wallet)

    def _open(self, record: Record) -> None:
        external = record["flags"] & RequestFlag.EXTERNAL
        assert record["debit"] not in self.wallets
        self.wallets[record["debit"]] = [0, 0, 0, FLAG_EXTERNAL if external else 0, 0, record["amount"]]

    def _change_wallet(self, kind: Kind, record: Record) -> None:
        wallet, value = self.wallets[record["debit"]], record["amount"]
        match kind:
            case Kind.FREEZE:
                wallet[3] |= value
            case Kind.UNFREEZE:
                wallet[3] &= ~value
            case Kind.CLOSE_WALLET:
                wallet[3] |= FLAG_CLOSED
            case Kind.SET_TIER:
                wallet[4] = value
            case Kind.SET_OVERDRAFT_LIMIT:
                wallet[5] = value

    def _refund(self, record: Record, link: Record) -> None:
        assert (link["purpose"], link["state"], link["review"], link["rule"]) == (0, 0, 0, 0)
        original = link["reference"]
        total = self.refunded.get(original, 0) + record["amount"]
        assert link["remaining"] == total
        assert total <= self.moved[original]
        self.refunded[original] = total

    def _change_hold(self, kind: Kind, record: Record, link: Record) -> tuple[tuple[int, int], tuple[int, int]]:
        """What the change of a hold moves: of the debit and of the credit wallet, (available, locked)."""
        amount, released, hold_id = record["amount"], link["released"], link["reference"]
        sides = {"debit": record["debit"], "credit": record["credit"]}
        if kind is Kind.HOLD:
            assert hold_id == record["id"]
            assert self.holds.get(hold_id, {"state": None})["state"] != HoldState.OPEN
            self.holds[hold_id] = link | sides
            assert (link["remaining"], link["captured"], link["state"]) == (amount, 0, HoldState.OPEN)
            assert (link["rule"] != 0) == (link["review"] != Review.NONE)
            return (-amount, amount), (0, 0)
        before = self.holds[hold_id]
        self.holds[hold_id] = link | sides
        assert {name: before[name] for name in sides} == sides
        assert before["state"] == HoldState.OPEN
        assert before["purpose"] == link["purpose"]
        assert before["expires_at_ms"] == link["expires_at_ms"]
        raised = amount if kind is Kind.RAISE_HOLD else 0
        captured = amount if kind is Kind.CAPTURE else 0
        assert link["captured"] == before["captured"] + captured
        assert link["remaining"] == before["remaining"] + raised - captured - released
        ended = {Kind.CAPTURE: HoldState.CAPTURED, Kind.VOID: HoldState.VOIDED, Kind.EXPIRE_HOLD: HoldState.EXPIRED}
        assert link["state"] == (HoldState.OPEN if link["remaining"] else ended[kind])
        if kind in (Kind.VOID, Kind.EXPIRE_HOLD):
            assert amount == released
        return (released - raised, raised - captured - released), (captured, 0)


def _split(layout: Layout, packed: bytes) -> Iterator[Record]:
    for at in range(0, len(packed), layout.size):
        yield layout.unpack(packed[at : at + layout.size])
