"""What a client asked and was answered, on disk before it counts: packed records, one file for each incarnation."""

from __future__ import annotations

import asyncio
import os
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self
from uuid import UUID

import numpy as np

from engine.domain.durability import Durability
from engine.domain.status import NUMBER_OF
from engine.domain.transfer import Outcome
from engine.wire import Layout
from persister.copy_binary import Rows
from persister.journal import numpy_type

LEVELS = tuple(Durability)
"""By their numbers in records."""


class What(IntEnum):
    ASKED = 0  # before it is sent, each time that it is sent
    ANSWERED = 1
    UNKNOWN = 2  # OutcomeUnknown
    UNAVAILABLE = 3  # Unavailable: surely not applied


# ASKED: number is the kind; debit, credit and amount are the request's, 0 where it names none; flag is 1 if less than
# the amount may move. ANSWERED: number is the status, flag the rule; sequence, debit and credit (what both have
# available) and amount are the outcome's. asked_s: when this attempt began, by the machine's monotonic clock.
RECORD = Layout(
    "RECORD",
    (
        ("id", "16s"),
        ("what", "B"),
        ("level", "B"),
        ("number", "B"),
        ("flag", "B"),
        ("asked_s", "d"),
        ("at_s", "d"),
        ("sequence", "q"),
        ("debit", "q"),
        ("credit", "q"),
        ("amount", "q"),
    ),
)
_pack = RECORD.struct.pack


class Asked(NamedTuple):
    """One request as a client means it. id: what it will be decided under."""

    id: UUID
    kind: int
    debit: int = 0
    credit: int = 0
    amount_minor: int = 0
    may_be_less: bool = False


class Recorder:
    """Writes records to a file. One fsync serves all that were written meanwhile."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._loop = asyncio.get_running_loop()
        self._parts: list[bytes] = []
        self._on_disk: asyncio.Future[None] = self._loop.create_future()
        self._flushing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._flushing is not None:
            await asyncio.wait([self._flushing])
        self._file.close()

    async def asking(self, asked: list[Asked], level: Durability, at_s: float) -> None:
        """Note an attempt; returns when that is on disk. at_s: when it begins."""
        for one in asked:
            sides = one.debit, one.credit, one.amount_minor
            self._add(one.id, What.ASKED, level, one.kind, one.may_be_less, at_s, at_s, 0, *sides)
        await asyncio.shield(self._on_disk)

    def answered(self, outcomes: list[Outcome], level: Durability, asked_s: float, at_s: float) -> None:
        for one in outcomes:
            figures = one.sequence, one.debit_available_minor, one.credit_available_minor, one.amount_minor
            status = NUMBER_OF[one.status]
            self._add(one.transfer_id, What.ANSWERED, level, status, one.rule, asked_s, at_s, *figures)

    def not_answered(self, asked: list[Asked], what: What, level: Durability, asked_s: float, at_s: float) -> None:
        for one in asked:
            self._add(one.id, what, level, 0, 0, asked_s, at_s, 0, 0, 0, 0)

    def _add(self, id: UUID, what: What, level: Durability, *values: float) -> None:
        self._parts.append(_pack(id.bytes, what, LEVELS.index(level), *values))
        if self._flushing is None:
            self._flushing = self._loop.create_task(self._flush())

    async def _flush(self) -> None:
        while self._parts:
            data, done = b"".join(self._parts), self._on_disk
            self._parts, self._on_disk = [], self._loop.create_future()
            await asyncio.to_thread(self._write, data)
            done.set_result(None)
        self._flushing = None

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno())


def read_records(path: Path) -> Rows:
    """The records of a file; one that a kill cut short was not relied on by anybody."""
    data = path.read_bytes()
    return np.frombuffer(data[: len(data) // RECORD.size * RECORD.size], numpy_type(RECORD))
