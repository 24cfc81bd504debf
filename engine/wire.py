"""The packed layouts: the only place on the Python side that knows them, and the source of Lua's copy.

Every layout is a row of (field, code). From it come the Python struct, the format string that
engine/library.py generates into the Lua library, and (persister/journal.py) the numpy type.
Codes are those of Python's struct, little-endian, without padding:
  B uint8, H uint16, I uint32, d float64 holding an exact integer of at most 2^53, Ns N raw bytes,
  q int64, which Lua carries as 8 opaque bytes because its numbers are doubles.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from engine.domain.status import NUMBER_OF, STATUS_OF, Status
from engine.domain.transfer import Outcome

WIRE_VERSION = 2
ACCEPTED_WIRE_VERSIONS = (2,)
"""What `post` takes: this version and, once one was released, the one before, for rolling upgrades."""

MAX_BATCH = 1024
"""Requests in one call of `post`; measured as the best size before Lua's garbage collector costs more."""

LAYOUT_VERSION = 3
"""First byte of every stored record."""

ZERO_HASH = b"0" * 40
"""The rolling hash of an empty history."""

_LUA_CODE = {"B": "B", "H": "H", "I": "I4", "d": "d", "q": "c8"}


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


# What makes two requests under one id the same request; compared byte by byte. What the fields hold besides:
# OPEN_WALLET, and the kinds that change a wallet: debit is the wallet. OPEN_WALLET: credit is the owner's id, amount
# the overdraft limit or, of an external wallet, its currency's exponent. FREEZE, UNFREEZE: amount is the wallet flags
# to set or clear; SET_OVERDRAFT_LIMIT, SET_TIER: what to set; SET_TIER_LIMITS: the tier; END_GENERATION: the
# generation that begins. REFUND, CHARGEBACK and the kinds that change a hold: debit and credit together are the
# 16-byte id of the transfer or hold; amount 0 is all that is left.
CONTENT = Layout(
    "CONTENT",
    (
        ("kind", "B"),
        ("flags", "B"),  # RequestFlag
        ("details_size", "H"),
        ("debit", "q"),
        ("credit", "q"),
        ("amount", "d"),
        ("currency", "8s"),  # NUL-padded; eight NULs: the request names none
        ("details_digest", "8s"),  # of reference and metadata; eight NULs: none
        ("terms_digest", "8s"),  # in a chain, of the whole chain; else of the TERMS or TIER_LIMITS; eight NULs: none
    ),
)

# attachment: which of the ATTACHMENTS comes with it in the call, 0 for none. It is no part of the content: a retry
# may come from another device, or with what the ledger knows.
REQUEST = Layout("REQUEST", (("id", "16s"), ("attachment", "B"), *CONTENT.fields))

# The content without its last three fields, which most requests leave NUL. Where they are, Lua and what it keeps go
# without them: see KEPT.
CONTENT_HEAD = Layout("CONTENT_HEAD", CONTENT.fields[:-3])
CONTENT_REST = Layout("CONTENT_REST", CONTENT.fields[-3:])

# A REQUEST as post reads it: the three as one.
REQUEST_PARTS = Layout("REQUEST_PARTS", (*REQUEST.fields[:-3], ("rest", f"{CONTENT_REST.size}s")))

# Attachment 1: what else a movement, a hold or a change of a hold asks for. conditions: bits of Condition.
TERMS = Layout(
    "TERMS",
    (
        ("conditions", "B"),
        ("purpose", "B"),  # HOLD: the kind of the movement that it is for
        ("expect_version", "d"),
        ("min_available_after", "d"),
        ("expires_in_ms", "d"),  # HOLD: 0 for never
        ("device", "8s"),  # keyed digests; eight NULs: none. The last two are no part of terms_digest
        ("ip", "8s"),
    ),
)

# Attachment 2, of REFUND and CHARGEBACK: the transfer as the ledger has it, for one that Redis no longer knows.
CLAIM = Layout(
    "CLAIM",
    (
        ("kind", "B"),
        ("debit", "q"),
        ("credit", "q"),
        ("amount", "d"),
        ("refunded", "d"),  # in all, at as_of
        ("as_of", "d"),  # the sequence at which the ledger was read
    ),
)

# Attachment 3, of SET_TIER_LIMITS, and a tier as it is kept. A limit of NO_LIMIT is none. See engine.domain.limits.
TIER_LIMITS = Layout(
    "TIER_LIMITS",
    (
        ("layout", "B"),
        ("debt_first", "B"),  # 1: later credits pay back a chargeback's debt before anything can be spent
        ("review", "H"),  # bits by rule number: what breaks it is reviewed, not declined
        ("max_amount", "d"),
        ("day_amount", "d"),
        ("day_count", "d"),
        ("window_count", "d"),
        ("window_ms", "d"),
        ("hour_amount", "d"),
        ("attempts_window_ms", "d"),
        ("device_attempts", "d"),
        ("ip_attempts", "d"),
        ("device_wallets", "d"),
        ("new_device_amount", "d"),
        ("new_device_ms", "d"),
    ),
)

ATTACHMENTS = (None, TERMS, CLAIM, TIER_LIMITS)

_AFTER = (
    ("debit_available", "d"),
    ("debit_locked", "d"),
    ("debit_version", "d"),
    ("credit_available", "d"),
    ("credit_locked", "d"),
    ("credit_version", "d"),
)
AFTER = Layout("AFTER", _AFTER)

# What follows a CONTENT_HEAD in a JOURNAL_RECORD.
REST_AND_AFTER = Layout("REST_AND_AFTER", (("rest", f"{CONTENT_REST.size}s"), *_AFTER))

# One accepted request in a journal entry, then the wallets after it; versions are 0 for a side that did not change.
# It is what was done: of a request that referred to a hold or a transfer, debit and credit are the wallets, and
# amount is what was moved, reserved or released. A movement that became a review is a HOLD.
JOURNAL_RECORD = Layout("JOURNAL_RECORD", (("id", "16s"), *CONTENT.fields, *_AFTER))

# A reference or metadata of an accepted request, in a field of its own of the entry, followed by `size` bytes.
DETAILS = Layout("DETAILS", (("sequence", "d"), ("size", "H")))

# Where an accepted request came from; for those that said so.
ORIGIN = Layout("ORIGIN", (("sequence", "d"), ("device", "8s"), ("ip", "8s")))

# What an accepted request did to a hold (the hold after it), or which transfer it refunded.
LINK = Layout(
    "LINK",
    (
        ("sequence", "d"),
        ("reference", "16s"),  # the hold's id, or the refunded transfer's
        ("purpose", "B"),  # of the hold; 0 for a refund
        ("state", "B"),  # HoldState
        ("review", "B"),  # Review
        ("rule", "B"),  # the fraud rule that made it a review
        ("remaining", "d"),  # of the hold; of a refund: the total refunded
        ("captured", "d"),  # of the hold, in all
        ("released", "d"),  # by this request
        ("expires_at_ms", "d"),  # 0 for never
    ),
)

# New limits of a tier.
TIER_CHANGE = Layout("TIER_CHANGE", (("sequence", "d"), ("tier", "d"), *TIER_LIMITS.fields))

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

# What is rolled into the hash ahead of the content: the entry's place in the history, and where its parts end.
HASHED_HEADER = Layout(
    "HASHED_HEADER",
    (
        ("epoch", "d"),
        ("first_sequence", "d"),
        ("last_sequence", "d"),
        ("time_ms", "d"),
        ("details_size", "d"),
        ("origins_size", "d"),
        ("links_size", "d"),
        ("tiers_size", "d"),
    ),
)

# USAGE follows it where the wallet's tier has limits.
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

# What a wallet used of its tier's limits; days and hours are counted from 1970 UTC, windows by the tier's length.
USAGE = Layout(
    "USAGE",
    (
        ("day", "I"),
        ("day_count", "I"),
        ("hour", "I"),
        ("window_before", "I"),
        ("window_count", "I"),
        ("window", "d"),
        ("day_amount", "d"),
        ("hour_before", "d"),
        ("hour_amount", "d"),
        ("debt", "d"),  # of chargebacks, where the tier does not have it paid first: the wallet's floor is lower by it
    ),
)

# A hold, in the hash of the open ones or of those that ended in a generation.
HOLD = Layout(
    "HOLD",
    (
        ("layout", "B"),
        ("state", "B"),
        ("purpose", "B"),
        ("review", "B"),
        ("debit", "q"),
        ("credit", "q"),
        ("remaining", "d"),
        ("captured", "d"),
        ("expires_at_ms", "d"),
    ),
)

# Attempts of a device or an IP in a window of a tier's length.
ATTEMPTS = Layout("ATTEMPTS", (("window", "d"), ("before", "d"), ("count", "d")))

# A device that a wallet has used, the one used last at the end of the list.
KNOWN_DEVICE = Layout("KNOWN_DEVICE", (("device", "8s"), ("since_ms", "d")))

# A refused movement, in the side stream; best effort.
DECLINED = Layout(
    "DECLINED",
    (
        ("time_ms", "d"),
        ("id", "16s"),
        ("kind", "B"),
        ("status", "B"),
        ("rule", "B"),
        ("debit", "q"),
        ("credit", "q"),
        ("amount", "d"),
        ("device", "8s"),
        ("ip", "8s"),
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

# What a request is answered with. LIMIT_EXCEEDED: moved is what was used of the rule's limit before, and
# credit_available the server time in ms from which on it may be tried again (0: waiting does not help).
ANSWER = Layout(
    "ANSWER",
    (
        ("status", "B"),
        ("rule", "B"),  # LIMIT_EXCEEDED and UNDER_REVIEW: which fraud rule
        ("sequence", "d"),
        ("debit_available", "d"),
        ("credit_available", "d"),
        ("moved", "d"),  # or reserved, or released
        ("replayed", "B"),  # last, so that a replay is the kept answer with its last byte set
    ),
)

# An answer that a caller was given, and the id that it was given for: to be found again on a server.
CONFIRMATION = Layout("CONFIRMATION", (("id", "16s"), *ANSWER.fields))

# What is kept under a transfer id: the answer, then the content it was given for. Redis has only its KEPT, if the
# rest is NUL.
IDEMPOTENCY = Layout("IDEMPOTENCY", (*ANSWER.fields, *CONTENT.fields))
KEPT = Layout("KEPT", (*ANSWER.fields, *CONTENT_HEAD.fields))

# Ahead of the replies: the server's clock as it is, by which engines keep deadlines.
REPLY_HEADER = Layout("REPLY_HEADER", (("time_ms", "d"),))

LAYOUTS = (
    CONTENT,
    CONTENT_HEAD,
    CONTENT_REST,
    REQUEST,
    REQUEST_PARTS,
    TERMS,
    CLAIM,
    TIER_LIMITS,
    AFTER,
    REST_AND_AFTER,
    JOURNAL_RECORD,
    DETAILS,
    ORIGIN,
    LINK,
    TIER_CHANGE,
    ENTRY_HEADER,
    HASHED_HEADER,
    WALLET,
    USAGE,
    HOLD,
    ATTEMPTS,
    KNOWN_DEVICE,
    DECLINED,
    META,
    ANSWER,
    CONFIRMATION,
    IDEMPOTENCY,
    KEPT,
    REPLY_HEADER,
)

JOURNAL_HEADER_FIELD = b"h"
JOURNAL_RECORDS_FIELD = b"r"
JOURNAL_DETAILS_FIELD = b"x"
JOURNAL_ORIGINS_FIELD = b"o"
JOURNAL_LINKS_FIELD = b"l"
JOURNAL_TIERS_FIELD = b"t"
JOURNAL_KEPT_FIELD = b"k"
"""The IDEMPOTENCYs of accepted requests that are not what their records say: status POSTED, no rule, the record's
sequence and balances, moved the record's amount of a movement from Kind.TRANSFER to WITHDRAWAL and else 0, and the
record's own content. An EXPIRE_HOLD and an END_GENERATION have none: nobody asks for their ids again."""
DECLINED_FIELD = b"d"


def request_ids(requests: bytes) -> list[UUID]:
    """The transfer ids in packed REQUESTs."""
    return [UUID(bytes=requests[at : at + 16]) for at in range(0, len(requests), REQUEST.size)]


def unpack_replies(replies: bytes, ids: Iterable[bytes]) -> list[Outcome]:
    """The outcomes in packed ANSWERs, in the order of the requests; ids are their 16-byte transfer ids."""
    return [
        outcome_of(answer, transfer_id)
        for answer, transfer_id in zip(ANSWER.struct.iter_unpack(replies), ids, strict=True)
    ]


def outcome_of(answer: tuple[int, int, float, float, float, float, int], transfer_id: bytes) -> Outcome:
    """answer: the values of an ANSWER."""
    status, rule, sequence, debit_available, credit_available, moved, replayed = answer
    if status == _LIMIT_EXCEEDED:
        return Outcome(
            Status.LIMIT_EXCEEDED, int(sequence), replayed == 1, int(debit_available), 0, transfer_id, 0, rule,
            int(moved), int(credit_available),
        )  # fmt: skip
    return Outcome(
        STATUS_OF[status],
        int(sequence),
        replayed == 1,
        int(debit_available),
        int(credit_available),
        transfer_id,
        int(moved),
        rule,
    )


_LIMIT_EXCEEDED = NUMBER_OF[Status.LIMIT_EXCEEDED]
