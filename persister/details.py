"""What callers attach: a JSON array [reference, metadata], split for its columns and put together again.

Both ways keep the bytes, because details_digest of the transfer or the hold's change is over them; the digest's
definition is engine.requests'.
"""

from __future__ import annotations

import struct

import orjson

from engine.errors import CorruptRecord
from engine.requests import details_digest
from persister.copy_binary import SIGNATURE, TRAILER

_TRANSFER_KEY = struct.Struct("!hi16s")
_HOLD_KEY = struct.Struct("!hihiq")
_LENGTH = struct.Struct("!i")
_NULL = _LENGTH.pack(-1)


def split(details: bytes) -> tuple[str | None, bytes | None]:
    """(reference, the JSON text of metadata). Raises CorruptRecord."""
    try:
        reference, _ = orjson.loads(details)
        metadata = details[len(_head(reference)) : -1]
    except (ValueError, TypeError) as error:
        raise CorruptRecord(f"details that are no [reference, metadata]: {details[:80]!r}") from error
    if not (reference is None or isinstance(reference, str)) or join(reference, metadata.decode()) != details:
        raise CorruptRecord(f"details in another form than this program writes: {details[:80]!r}")
    return reference, None if metadata == b"null" else metadata


def join(reference: str | None, metadata: str | None) -> bytes:
    """The bytes that were split into these columns."""
    return _head(reference) + (b"null" if metadata is None else metadata.encode()) + b"]"


def transfer_key(transfer_id: bytes) -> bytes:
    """What a row of transfer_detail begins with in the binary COPY: how many columns it has, and the first."""
    return _TRANSFER_KEY.pack(3, 16, transfer_id)


def hold_key(shard: int, sequence: int) -> bytes:
    """What a row of hold_detail begins with."""
    return _HOLD_KEY.pack(4, 2, shard, 8, sequence)


def copy_stream(details: list[tuple[bytes, bytes]]) -> bytes:
    """The binary COPY of one of the tables. details: (what its row begins with, details). Raises CorruptRecord."""
    parts = [SIGNATURE]
    for key, packed in details:
        reference, metadata = split(packed)
        parts.append(key)
        parts += _text(None if reference is None else reference.encode())
        parts += _text(metadata)
    parts.append(TRAILER)
    return b"".join(parts)


def digest_of(reference: str | None, metadata: str | None) -> int:
    """What details_digest must be for these columns."""
    return int.from_bytes(details_digest(join(reference, metadata)), "little", signed=True)


def _head(reference: str | None) -> bytes:
    return b"[" + orjson.dumps(reference) + b","


def _text(value: bytes | None) -> tuple[bytes, ...]:
    return (_NULL,) if value is None else (_LENGTH.pack(len(value)), value)
