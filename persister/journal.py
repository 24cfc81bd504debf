"""Reads the journal: stream entries to one checked batch of records.

This file owns the rule of what continues a history: an entry must begin where the ledger ends, name the hash the
ledger has, and hash to what it says. The layouts are engine.wire's; Redis' side is lua/lib/journal.lua.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha1
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.domain.money import MAX_AMOUNT_MINOR
from engine.domain.status import ACCEPTED, NUMBER_OF
from engine.domain.transfer import HOLD_CHANGES, MOVEMENTS, PURPOSES, Kind
from engine.domain.wallet import MAX_TIER
from engine.errors import CorruptRecord, JournalGap
from engine.wire import (
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
    LAYOUT_VERSION,
    LINK,
    ORIGIN,
    TIER_CHANGE,
    Layout,
)

RawEntry = tuple[bytes, dict[bytes, bytes]]
"""A stream entry as the client returns it: its id, and its fields."""

Numbers = NDArray[np.int64]

MAX_TIME_MS = 253_402_300_800_000
"""The year 10000, well within timestamptz."""

_EPOCH_2000_MS = 946_684_800_000
_NUMPY_CODES = {"B": "u1", "H": "<u2", "I": "<u4", "d": "<f8", "q": "<i8"}


def numpy_type(layout: Layout) -> np.dtype[np.void]:
    """The layout as a structured type, without padding."""
    return np.dtype([(name, _NUMPY_CODES.get(code) or f"V{code[:-1]}") for name, code in layout.fields])


_Time = TypeVar("_Time", int, Numbers)


def microseconds(time_ms: _Time) -> _Time:
    """A time of Redis as Postgres counts: microseconds since 2000-01-01 UTC."""
    return (time_ms - _EPOCH_2000_MS) * 1000


def milliseconds(time_us: Numbers) -> Numbers:
    """A time of Postgres as Redis counts: the opposite of microseconds()."""
    return time_us // 1000 + _EPOCH_2000_MS


def kind_set(kinds: Iterable[Kind]) -> NDArray[np.bool_]:
    """The kinds as a table by their number, so that an array of kinds is looked up at once."""
    table = np.zeros(256, bool)
    table[list(kinds)] = True
    return table


RECORD = numpy_type(JOURNAL_RECORD)
LINKED_KINDS = HOLD_CHANGES | {Kind.REFUND, Kind.CHARGEBACK}
"""The kinds whose records refer to a hold or a transfer: exactly these have a LINK."""

_KNOWN = kind_set(Kind)
_MOVES = kind_set(MOVEMENTS)
_LINKED = kind_set(LINKED_KINDS)
_ACCEPTED = np.zeros(256, bool)
_ACCEPTED[[NUMBER_OF[status] for status in ACCEPTED]] = True
_HAS_KEPT = kind_set(LINKED_KINDS - {Kind.EXPIRE_HOLD})
_MAY_HAVE_KEPT = _HAS_KEPT | kind_set(PURPOSES)


class Place(NamedTuple):
    """A point of a shard's history. hash: the rolling sha1 there, 40 hexadecimal digits."""

    epoch: int
    sequence: int
    hash: bytes


class Entry(NamedTuple):
    """The header of one journal entry. at_us: microseconds since 2000-01-01 UTC, as Postgres counts."""

    epoch: int
    first_sequence: int
    last_sequence: int
    at_us: int
    hash: bytes

    @property
    def place(self) -> Place:
        return Place(self.epoch, self.last_sequence, self.hash)


@dataclass(frozen=True)
class Batch:
    """Some entries that follow each other.

    records, sequence and at_us have one item per record; details are by sequence. origins, links, tier_changes and
    kept (IDEMPOTENCYs) have one for some of the records, in their order, and name the sequence.
    """

    before: Place
    entries: Sequence[Entry]
    records: NDArray[np.void]
    sequence: Numbers
    at_us: Numbers
    details: dict[int, bytes]
    origins: NDArray[np.void]
    links: NDArray[np.void]
    tier_changes: NDArray[np.void]
    kept: NDArray[np.void]

    @property
    def after(self) -> Place:
        return self.entries[-1].place

    @cached_property
    def moves_money(self) -> NDArray[np.bool_]:
        moves: NDArray[np.bool_] = _MOVES[self.records["kind"]]
        return moves

    @cached_property
    def opens_wallet(self) -> NDArray[np.bool_]:
        opening: NDArray[np.bool_] = self.records["kind"] == Kind.OPEN_WALLET
        return opening

    def records_of(self, attached: NDArray[np.void]) -> NDArray[np.intp]:
        """Where the records are that origins, links, tier_changes or kept belong to."""
        return (attached["sequence"] - (self.before.sequence + 1)).astype(np.intp)


class _Read(NamedTuple):
    """One entry's header, and the packed contents of its fields, b'' for those that it does not have."""

    name: str
    entry: Entry
    records: bytes
    details: bytes
    origins: bytes
    links: bytes
    tier_changes: bytes
    kept: bytes


def decode(before: Place, raw: Iterable[RawEntry]) -> Batch:
    """Check that the entries continue the history from `before`, and decode them.

    raw: at least one entry. Raises JournalGap if they do not continue it, CorruptRecord if they cannot be read.
    """
    place = before
    read = []
    details: dict[int, bytes] = {}
    for entry_id, fields in raw:
        found = _read_entry(entry_id.decode(errors="replace"), place, fields)
        read.append(found)
        if found.details:
            details.update(_split_details(found.name, found.details))
        place = found.entry.place
    entries = [found.entry for found in read]
    counts = [entry.last_sequence - entry.first_sequence + 1 for entry in entries]
    batch = Batch(
        before=before,
        entries=entries,
        records=np.frombuffer(b"".join([found.records for found in read]), RECORD),
        sequence=np.arange(before.sequence + 1, place.sequence + 1, dtype=np.int64),
        at_us=np.repeat(np.array([entry.at_us for entry in entries], np.int64), counts),
        details=details,
        origins=_attached(ORIGIN, entries, [found.origins for found in read]),
        links=_attached(LINK, entries, [found.links for found in read]),
        tier_changes=_attached(TIER_CHANGE, entries, [found.tier_changes for found in read]),
        kept=_attached(IDEMPOTENCY, entries, [found.kept for found in read]),
    )
    _check_records(batch)
    return batch


def _read_entry(name: str, place: Place, fields: dict[bytes, bytes]) -> _Read:
    try:
        header = ENTRY_HEADER.unpack(fields[JOURNAL_HEADER_FIELD])
        records = fields[JOURNAL_RECORDS_FIELD]
    except (KeyError, struct.error, ValueError, OverflowError) as error:
        raise CorruptRecord(f"journal entry {name}: its header cannot be read ({error!r})") from error
    details = fields.get(JOURNAL_DETAILS_FIELD, b"")
    origins = fields.get(JOURNAL_ORIGINS_FIELD, b"")
    links = fields.get(JOURNAL_LINKS_FIELD, b"")
    tiers = fields.get(JOURNAL_TIERS_FIELD, b"")
    kept = fields.get(JOURNAL_KEPT_FIELD, b"")
    if header["layout"] != LAYOUT_VERSION:
        raise CorruptRecord(f"journal entry {name}: layout {header['layout']}, this program reads {LAYOUT_VERSION}")
    _check_continues(name, place, header)
    _check_size(name, header, len(records))
    hashed = HASHED_HEADER.struct.pack(
        header["epoch"], header["first_sequence"], header["last_sequence"], header["time_ms"],
        len(details), len(origins), len(links), len(tiers),
    )  # fmt: skip
    content = b"".join((place.hash, hashed, records, details, origins, links, tiers, kept))
    rolled = sha1(content, usedforsecurity=False).hexdigest()
    if rolled.encode() != header["hash"]:
        raise JournalGap(f"journal entry {name}: its content hashes to {rolled}, it says {_text(header['hash'])}")
    at_us = microseconds(header["time_ms"])
    entry = Entry(header["epoch"], header["first_sequence"], header["last_sequence"], at_us, header["hash"])
    return _Read(name, entry, records, details, origins, links, tiers, kept)


def _check_continues(name: str, place: Place, header: dict[str, Any]) -> None:
    if header["epoch"] != place.epoch:
        raise JournalGap(f"journal entry {name}: it is of epoch {header['epoch']}, the ledger of {place.epoch}")
    if header["first_sequence"] != place.sequence + 1:
        raise JournalGap(
            f"journal entry {name}: it begins at sequence {header['first_sequence']}, "
            f"what is before it ends at {place.sequence}"
        )
    if header["previous_hash"] != place.hash:
        raise JournalGap(
            f"journal entry {name}: it follows the hash {_text(header['previous_hash'])}, "
            f"the history has {_text(place.hash)} at sequence {place.sequence}"
        )


def _check_size(name: str, header: dict[str, Any], size: int) -> None:
    count = header["last_sequence"] - header["first_sequence"] + 1
    if count < 1 or name != f"{header['last_sequence']}-0":
        raise JournalGap(
            f"journal entry {name}: it says it holds {header['first_sequence']} to {header['last_sequence']}"
        )
    if size != count * JOURNAL_RECORD.size:
        raise CorruptRecord(f"journal entry {name}: {size} bytes for {count} records of {JOURNAL_RECORD.size}")
    if not 0 <= header["time_ms"] < MAX_TIME_MS:
        raise CorruptRecord(f"journal entry {name}: time {header['time_ms']} ms")


def _split_details(name: str, packed: bytes) -> Iterable[tuple[int, bytes]]:
    position = 0
    while position < len(packed):
        try:
            sequence, size = DETAILS.struct.unpack_from(packed, position)
        except struct.error as error:
            raise CorruptRecord(f"journal entry {name}: its details cannot be read") from error
        position += DETAILS.size + size
        yield int(sequence), packed[position - size : position]


def _attached(layout: Layout, entries: Sequence[Entry], parts: Sequence[bytes]) -> NDArray[np.void]:
    """The records of a layout that entries have besides, parts[i] with entries[i]; each in the entry it belongs to."""
    packed = b"".join(parts)
    if not packed:
        return np.empty(0, numpy_type(layout))
    what = f"sequences {entries[0].first_sequence} to {entries[-1].last_sequence}: a {layout.name}"
    if any(len(part) % layout.size for part in parts):
        raise CorruptRecord(f"{what} has another size than {layout.size} bytes")
    records = np.frombuffer(packed, numpy_type(layout))
    for name, at in _broken_numbers(layout, records):
        raise CorruptRecord(f"{what}: {name} is {records[name][at]}, no whole number in its bound")
    counts = [len(part) // layout.size for part in parts]
    sequence = records["sequence"]
    outside = (sequence < np.repeat([entry.first_sequence for entry in entries], counts)) | (
        sequence > np.repeat([entry.last_sequence for entry in entries], counts)
    )
    if outside.any() or (np.diff(sequence) <= 0).any():
        raise CorruptRecord(f"{what} belongs to no record of its entry, or to one that has another")
    return records


def _broken_numbers(layout: Layout, records: NDArray[np.void]) -> Iterable[tuple[str, int]]:
    """The first value of each column that is no whole number within what Redis keeps exact: its name and place."""
    for name, code in layout.fields:
        if code == "d":
            column = records[name]
            whole = (np.abs(column) <= MAX_AMOUNT_MINOR) & (np.trunc(column) == column)  # both false for NaN
            if not whole.all():
                yield name, int(np.argmin(whole))


def _check_records(batch: Batch) -> None:
    """What the arithmetic further on relies on: known kinds, whole numbers, and what belongs to each is there."""
    records, kinds = batch.records, batch.records["kind"]
    known = _KNOWN[kinds]
    if not known.all():
        at = int(np.argmin(known))
        raise CorruptRecord(
            f"sequence {batch.sequence[at]}: kind {kinds[at]} is unknown; a newer engine may have written it"
        )
    for name, at in _broken_numbers(JOURNAL_RECORD, records):
        raise CorruptRecord(
            f"sequence {batch.sequence[at]}: {name} is {records[name][at]}, no whole number in its bound"
        )
    announced = {
        int(batch.sequence[at]): int(records["details_size"][at]) for at in np.flatnonzero(records["details_size"])
    }
    if announced != {sequence: len(text) for sequence, text in batch.details.items()}:
        raise CorruptRecord(f"sequences {batch.before.sequence + 1} on: the details are not those announced")
    _check_belong(batch, batch.links, _LINKED[kinds], "link")
    _check_belong(batch, batch.tier_changes, kinds == Kind.SET_TIER_LIMITS, "tier change")
    _check_tier_changes(batch)
    _check_kept(batch)


def _check_belong(batch: Batch, attached: NDArray[np.void], expected: NDArray[np.bool_], what: str) -> None:
    """attached: one for exactly the expected records."""
    present = np.zeros(len(expected), bool)
    present[batch.records_of(attached)] = True
    if (present != expected).any():
        at = int(np.argmax(present != expected))
        has = "has a" if present[at] else "lacks its"
        raise CorruptRecord(f"sequence {batch.sequence[at]}: kind {batch.records['kind'][at]} {has} {what}")


def _check_tier_changes(batch: Batch) -> None:
    tiers = batch.tier_changes
    sound = (tiers["layout"] == LAYOUT_VERSION) & (tiers["tier"] == batch.records["amount"][batch.records_of(tiers)])
    sound &= (tiers["tier"] >= 1) & (tiers["tier"] <= MAX_TIER)
    if not sound.all():
        raise CorruptRecord(f"sequence {tiers['sequence'][np.argmin(sound)]:.0f}: limits of another tier, or layout")


def _check_kept(batch: Batch) -> None:
    """There is one wherever the record cannot say what was answered; see JOURNAL_KEPT_FIELD."""
    kept, kinds = batch.kept, batch.records["kind"]
    expected, present = _HAS_KEPT[kinds], batch.records_of(kept)
    expected[present] |= _MAY_HAVE_KEPT[kinds[present]]
    _check_belong(batch, kept, expected, "kept outcome")
    sound = _ACCEPTED[kept["status"]] & (kept["replayed"] == 0) & _KNOWN[kept["kind"]]
    if not sound.all():
        raise CorruptRecord(
            f"sequence {kept['sequence'][np.argmin(sound)]:.0f}: its kept outcome is none of an accepted"
        )


def _text(digest: bytes) -> str:
    return digest.decode(errors="replace")
