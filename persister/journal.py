"""Reads the journal: stream entries to one checked batch of records.

This file owns the rule of what continues a history: an entry must begin where the ledger ends, name the hash the
ledger has, and hash to what it says. The layouts are engine.wire's; Redis' side is lua/lib/journal.lua.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha1
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.domain.money import MAX_AMOUNT_MINOR
from engine.domain.transfer import MOVEMENTS, Kind
from engine.errors import CorruptRecord, JournalGap
from engine.wire import (
    DETAILS,
    ENTRY_HEADER,
    HASHED_HEADER,
    JOURNAL_DETAILS_FIELD,
    JOURNAL_HEADER_FIELD,
    JOURNAL_RECORD,
    JOURNAL_RECORDS_FIELD,
    LAYOUT_VERSION,
    Layout,
)

RawEntry = tuple[bytes, dict[bytes, bytes]]
"""A stream entry as the client returns it: its id, and its fields."""

_EPOCH_2000_MS = 946_684_800_000
_MAX_TIME_MS = 253_402_300_800_000  # the year 10000, well within timestamptz
_NUMPY_CODES = {"B": "u1", "H": "<u2", "d": "<f8", "q": "<i8"}


def numpy_type(layout: Layout) -> np.dtype[np.void]:
    """The layout as a structured type, without padding."""
    return np.dtype([(name, _NUMPY_CODES.get(code) or f"V{code[:-1]}") for name, code in layout.fields])


RECORD = numpy_type(JOURNAL_RECORD)
_NUMBERS = tuple(name for name, code in JOURNAL_RECORD.fields if code == "d")
_KINDS = np.array(sorted(Kind), np.uint8)
_MOVEMENTS = np.array(sorted(MOVEMENTS), np.uint8)


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
    """Some entries that follow each other. Arrays have one item per record; details are by sequence."""

    before: Place
    entries: Sequence[Entry]
    records: NDArray[np.void]
    sequence: NDArray[np.int64]
    at_us: NDArray[np.int64]
    details: dict[int, bytes]

    @property
    def after(self) -> Place:
        return self.entries[-1].place

    @property
    def moves_money(self) -> NDArray[np.bool_]:
        return np.isin(self.records["kind"], _MOVEMENTS)

    @property
    def opens_wallet(self) -> NDArray[np.bool_]:
        opening: NDArray[np.bool_] = self.records["kind"] == Kind.OPEN_WALLET
        return opening


def decode(before: Place, raw: Iterable[RawEntry]) -> Batch:
    """Check that the entries continue the history from `before`, and decode them.

    raw: at least one entry. Raises JournalGap if they do not continue it, CorruptRecord if they cannot be read.
    """
    place = before
    entries, packed = [], []
    details: dict[int, bytes] = {}
    for entry_id, fields in raw:
        name = entry_id.decode(errors="replace")
        entry, content, attached = _read_entry(name, place, fields)
        entries.append(entry)
        packed.append(content)
        if attached:
            details.update(_split_details(name, attached))
        place = entry.place
    records = np.frombuffer(b"".join(packed), RECORD)
    counts = [entry.last_sequence - entry.first_sequence + 1 for entry in entries]
    batch = Batch(
        before=before,
        entries=entries,
        records=records,
        sequence=np.arange(before.sequence + 1, place.sequence + 1, dtype=np.int64),
        at_us=np.repeat(np.array([entry.at_us for entry in entries], np.int64), counts),
        details=details,
    )
    _check_records(batch)
    return batch


def _read_entry(name: str, place: Place, fields: dict[bytes, bytes]) -> tuple[Entry, bytes, bytes]:
    try:
        header = ENTRY_HEADER.unpack(fields[JOURNAL_HEADER_FIELD])
        records = fields[JOURNAL_RECORDS_FIELD]
    except (KeyError, struct.error, ValueError, OverflowError) as error:
        raise CorruptRecord(f"journal entry {name}: its header cannot be read ({error!r})") from error
    attached = fields.get(JOURNAL_DETAILS_FIELD, b"")
    if header["layout"] != LAYOUT_VERSION:
        raise CorruptRecord(f"journal entry {name}: layout {header['layout']}, this program reads {LAYOUT_VERSION}")
    _check_continues(name, place, header)
    _check_size(name, header, len(records))
    numbers = [header[field] for field, _ in HASHED_HEADER.fields]
    hashed = sha1(place.hash + HASHED_HEADER.struct.pack(*numbers) + records + attached, usedforsecurity=False)
    if hashed.hexdigest().encode() != header["hash"]:
        raise JournalGap(
            f"journal entry {name}: its content hashes to {hashed.hexdigest()}, it says {_text(header['hash'])}"
        )
    at_us = (header["time_ms"] - _EPOCH_2000_MS) * 1000
    entry = Entry(header["epoch"], header["first_sequence"], header["last_sequence"], at_us, header["hash"])
    return entry, records, attached


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
    if not 0 <= header["time_ms"] < _MAX_TIME_MS:
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


def _check_records(batch: Batch) -> None:
    """What the arithmetic further on relies on: known kinds, whole numbers in their bound, all details there."""
    records = batch.records
    known = np.isin(records["kind"], _KINDS)
    if not known.all():
        at = int(np.argmin(known))
        raise CorruptRecord(
            f"sequence {batch.sequence[at]}: kind {records['kind'][at]} is unknown; a newer engine may have written it"
        )
    for name in _NUMBERS:
        column = records[name]
        whole = (np.abs(column) <= MAX_AMOUNT_MINOR) & (np.trunc(column) == column)  # both false for NaN
        if not whole.all():
            at = int(np.argmin(whole))
            raise CorruptRecord(f"sequence {batch.sequence[at]}: {name} is {column[at]}, no whole number in its bound")
    announced = {
        int(batch.sequence[at]): int(records["details_size"][at]) for at in np.flatnonzero(records["details_size"])
    }
    if announced != {sequence: len(text) for sequence, text in batch.details.items()}:
        raise CorruptRecord(f"sequences {batch.before.sequence + 1} on: the details are not those announced")


def _text(digest: bytes) -> str:
    return digest.decode(errors="replace")
