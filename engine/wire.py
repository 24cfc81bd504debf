"""The packed layouts: the only place on the Python side that knows them, and the source of Lua's copy.

Every layout is a row of (field, code). From it come the Python struct, the format string that
engine/library.py generates into the Lua library, and (persister/journal.py) the numpy type.
Codes are those of Python's struct, little-endian, without padding:
  B uint8, H uint16, d float64 holding an exact integer of at most 2^53, Ns N raw bytes,
  q int64, which Lua carries as 8 opaque bytes because its numbers are doubles.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from engine.domain.status import STATUS_OF
from engine.domain.transfer import Outcome

WIRE_VERSION = 1
ACCEPTED_WIRE_VERSIONS = (1,)
"""What `post` takes: this version and, from the next one on, the one before, for rolling upgrades."""

MAX_BATCH = 1024
"""Requests in one call of `post`; measured as the best size before Lua's garbage collector costs more."""

LAYOUT_VERSION = 1
"""First byte of every stored record."""

ZERO_HASH = b"0" * 40
"""The rolling hash of an empty history."""

_LUA_CODE = {"B": "B", "H": "H", "d": "d", "q": "c8"}


@dataclass(frozen=True)
class Layout:
    """A fixed-width record. fields: rows of (name, code), in order."""

    name: str
    fields: tuple[tuple[str, str], ...]
    struct: struct.Struct = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "struct", struct.Struct("<" + "".join(code for _, code in self.fields)))

    @property
    def size(self) -> int:
        return self.struct.size

    @property
    def lua_format(self) -> str:
        return "<" + "".join(_LUA_CODE.get(code) or "c" + code[:-1] for _, code in self.fields)

    def unpack(self, packed: bytes) -> dict[str, Any]:
        """The record's fields by name; numbers as int. struct.error if the size is wrong."""
        values = self.struct.unpack(packed)
        return {
            name: int(value) if code == "d" else value for (name, code), value in zip(self.fields, values, strict=True)
        }


# What makes two requests under one id the same request; compared byte by byte.
CONTENT = Layout(
    "CONTENT",
    (
        ("kind", "B"),
        ("flags", "B"),
        ("details_size", "H"),
        ("debit", "q"),  # OPEN_WALLET: the wallet
        ("credit", "q"),  # OPEN_WALLET: the owner's id
        ("amount", "d"),  # OPEN_WALLET: the overdraft limit; END_GENERATION: the generation that begins
        ("currency", "8s"),  # NUL-padded; eight NULs: the request names none
        ("details_digest", "8s"),  # of reference and metadata; eight NULs: none
    ),
)

REQUEST = Layout("REQUEST", (("id", "16s"), *CONTENT.fields))

_AFTER = (
    ("debit_available", "d"),
    ("debit_locked", "d"),
    ("debit_version", "d"),
    ("credit_available", "d"),
    ("credit_locked", "d"),
    ("credit_version", "d"),
)
AFTER = Layout("AFTER", _AFTER)

# One accepted request in a journal entry: the request as it came, then both wallets after it.
JOURNAL_RECORD = Layout("JOURNAL_RECORD", (*REQUEST.fields, *_AFTER))

# A reference or metadata of an accepted request, in the entry's second field, followed by `size` bytes.
DETAILS = Layout("DETAILS", (("sequence", "d"), ("size", "H")))

ENTRY_HEADER = Layout(
    "ENTRY_HEADER",
    (
        ("layout", "B"),
        ("epoch", "d"),
        ("first_sequence", "d"),
        ("last_sequence", "d"),
        ("time_ms", "d"),
        ("previous_hash", "40s"),
        ("hash", "40s"),
    ),
)

# What is rolled into the hash ahead of the records: the entry's place in the history.
HASHED_HEADER = Layout(
    "HASHED_HEADER", (("epoch", "d"), ("first_sequence", "d"), ("last_sequence", "d"), ("time_ms", "d"))
)

WALLET = Layout(
    "WALLET",
    (
        ("layout", "B"),
        ("flags", "B"),
        ("tier", "H"),
        ("available", "d"),
        ("locked", "d"),
        ("version", "d"),
        ("currency", "8s"),
        ("overdraft_limit", "d"),
    ),
)

META = Layout(
    "META",
    (
        ("layout", "B"),
        ("deployment", "16s"),
        ("key_fingerprint", "8s"),
        ("epoch", "d"),
        ("sequence", "d"),
        ("hash", "40s"),
        ("time_ms", "d"),  # of the journal's last entry; it never goes back
        ("persisted", "d"),
        ("generation", "d"),
        ("generation_sequence", "d"),  # the sequence at which the current generation began
    ),
)

# What a request is answered with.
ANSWER = Layout(
    "ANSWER",
    (
        ("status", "B"),
        ("sequence", "d"),
        ("debit_available", "d"),
        ("credit_available", "d"),
        ("replayed", "B"),  # last, so that a replay is the kept answer with its last byte set
    ),
)

# What is kept under a transfer id: the answer, then the content it was given for.
IDEMPOTENCY = Layout("IDEMPOTENCY", (*ANSWER.fields, *CONTENT.fields))

# Ahead of the replies: the server's clock as it is, by which engines keep deadlines.
REPLY_HEADER = Layout("REPLY_HEADER", (("time_ms", "d"),))

LAYOUTS = (
    CONTENT,
    REQUEST,
    AFTER,
    JOURNAL_RECORD,
    DETAILS,
    ENTRY_HEADER,
    HASHED_HEADER,
    WALLET,
    META,
    ANSWER,
    IDEMPOTENCY,
    REPLY_HEADER,
)

JOURNAL_HEADER_FIELD = b"h"
JOURNAL_RECORDS_FIELD = b"r"
JOURNAL_DETAILS_FIELD = b"x"


def request_ids(requests: bytes) -> list[UUID]:
    """The transfer ids in packed REQUESTs."""
    return [UUID(bytes=requests[at : at + 16]) for at in range(0, len(requests), REQUEST.size)]


def unpack_replies(replies: bytes, ids: Iterable[bytes]) -> list[Outcome]:
    """The outcomes in packed ANSWERs, in the order of the requests; ids are their 16-byte transfer ids."""
    return [
        Outcome(
            STATUS_OF[status],
            int(sequence),
            replayed == 1,
            int(debit_available),
            int(credit_available),
            transfer_id,
        )
        for (status, sequence, debit_available, credit_available, replayed), transfer_id in zip(
            ANSWER.struct.iter_unpack(replies), ids, strict=True
        )
    ]
