"""Transfer ids, which are the idempotency keys: 16 bytes, chosen by the caller or derived from a text key."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from uuid import UUID

from engine.domain.transfer import MAX_KEY_CHARS
from engine.errors import InvalidRequest

ID_BYTES = 16
FINGERPRINT_BYTES = 8
ORIGIN_BYTES = 8
_KEPT_SCOPES = 1000


def key_fingerprint(digest_key: bytes) -> bytes:
    """8 bytes that recognise a digest key without revealing it.

    Every engine of a deployment must derive ids with the same key, or a retry through another one pays twice.
    """
    return hashlib.blake2b(digest_key, digest_size=FINGERPRINT_BYTES, person=b"hotledger.fpr").digest()


def id_deriver(digest_key: bytes) -> Callable[[str, str], bytes]:
    """A function (owner scope, key) -> 16-byte id, a UUID of version 8, the same wherever digest_key is the same.

    digest_key: up to 64 bytes. The scope keeps tenants apart: one's key never meets another's.
    """
    blank = hashlib.blake2b(key=digest_key, digest_size=ID_BYTES, person=b"hotledger.id")
    scopes: dict[str, hashlib.blake2b] = {}

    def begin(scope: str) -> hashlib.blake2b:
        digest = blank.copy()
        scope_bytes = scope.encode()
        digest.update(b"%d:%b:" % (len(scope_bytes), scope_bytes))
        if len(scopes) < _KEPT_SCOPES:
            scopes[scope] = digest
        return digest

    def derive(scope: str, key: str) -> bytes:
        digest = (scopes.get(scope) or begin(scope)).copy()
        digest.update(key.encode())
        return as_uuid8(digest.digest())

    return derive


def origin_digester(digest_key: bytes) -> Callable[[str], bytes]:
    """A function text -> 8 bytes that stand for a device or an IP without revealing it; never eight NULs."""
    blank = hashlib.blake2b(key=digest_key, digest_size=ORIGIN_BYTES, person=b"hotledger.dev")

    def digest(text: str) -> bytes:
        of_text = blank.copy()
        of_text.update(text.encode())
        return of_text.digest() if any(of_text.digest()) else b"\1" * ORIGIN_BYTES

    return digest


def as_uuid8(digest: bytes) -> bytes:
    """16 bytes as those of a UUID of version 8, which is for ids with a meaning of one's own."""
    packed = bytearray(digest)
    packed[6] = packed[6] & 0x0F | 0x80
    packed[8] = packed[8] & 0x3F | 0x80
    return bytes(packed)


def check_key(key: str) -> str:
    """key itself if it can be an idempotency key: text of 1 to 255 characters that UTF-8 can carry."""
    if type(key) is not str or not 1 <= len(key) <= MAX_KEY_CHARS:
        raise InvalidRequest("key", f"text of 1 to {MAX_KEY_CHARS} characters", key)
    try:
        key.encode()
    except UnicodeEncodeError:
        raise InvalidRequest("key", "text without lone surrogates", key) from None
    return key


def check_id(transfer_id: UUID, field: str = "id") -> UUID:
    """transfer_id itself if it is a UUID other than the nil one."""
    if not isinstance(transfer_id, UUID) or transfer_id.int == 0:
        raise InvalidRequest(field, "a UUID other than the nil UUID", transfer_id)
    return transfer_id
