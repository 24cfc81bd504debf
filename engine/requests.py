"""From a request of the public API to its packed form; everything that is wrong with it is found here, before I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from uuid import UUID

import orjson

from engine.domain.ids import check_id, check_key
from engine.domain.money import check_amount, pack_currency
from engine.domain.transfer import (
    MAX_METADATA_BYTES,
    MAX_REFERENCE_CHARS,
    MOVEMENTS,
    Kind,
    OpenWallet,
    Request,
    Transfer,
)
from engine.domain.wallet import FLAG_EXTERNAL, check_owner_id, check_wallet_id, external_wallet_id
from engine.errors import InvalidRequest
from engine.wire import REQUEST

NO_CURRENCY = b"\0" * 8
NO_DIGEST = b"\0" * 8
OPENING_SCOPE = "\0wallet"
"""The scope of ids derived for wallet openings; no owner scope starts with NUL."""

DeriveId = Callable[[str, str], bytes]

_pack = REQUEST.struct.pack


class Packed(NamedTuple):
    """One request on its way: its id, its REQUEST record, and the bytes of its details (b'' for none)."""

    id: bytes
    record: bytes
    details: bytes


def pack_details(reference: str | None, metadata: Mapping[str, Any] | None) -> bytes:
    """A JSON array [reference, metadata], with null for what is absent."""
    if reference is not None:
        _check_reference(reference)
    if metadata is not None:
        _check_metadata(metadata)
    return orjson.dumps([reference, metadata], option=orjson.OPT_SORT_KEYS)


def details_digest(details: bytes) -> bytes:
    """8 bytes that stand for the details in the request's content and in the ledger's transfer."""
    return hashlib.blake2b(details, digest_size=8).digest()


def _check_reference(reference: str) -> None:
    if type(reference) is not str or not 1 <= len(reference) <= MAX_REFERENCE_CHARS:
        raise InvalidRequest("reference", f"text of 1 to {MAX_REFERENCE_CHARS} characters", reference)
    if "\0" in reference or any("\ud800" <= char <= "\udfff" for char in reference):
        raise InvalidRequest("reference", "text without NUL and lone surrogates", reference)


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    if not isinstance(metadata, dict):
        raise InvalidRequest("metadata", "a JSON object", metadata)
    try:
        packed = orjson.dumps(metadata)
    except orjson.JSONEncodeError as error:
        raise InvalidRequest("metadata", f"a JSON object ({error})", metadata) from None
    if len(packed) > MAX_METADATA_BYTES:
        raise InvalidRequest("metadata", f"at most {MAX_METADATA_BYTES} bytes of JSON", f"{len(packed)} bytes")
    if b"\\u0000" in packed:
        raise InvalidRequest("metadata", "JSON without NUL characters", metadata)


class RequestPacker:
    """Packs requests under one owner scope, for one shard."""

    def __init__(self, derive_id: DeriveId, scope: str, shard: int) -> None:
        self._shard = shard
        self._derive_id = derive_id
        self._scope = scope

    def id_of(self, key: str | None, transfer_id: UUID | None) -> bytes:
        """The 16-byte id of exactly one of key and transfer_id."""
        if transfer_id is not None:
            if key is not None:
                raise InvalidRequest("key", "absent when an id is given", key)
            return check_id(transfer_id).bytes
        if key is None:
            raise InvalidRequest("key", "given, unless an id is", key)
        return self._derive_id(self._scope, check_key(key))

    def pack(self, request: Request) -> Packed:
        """Raises InvalidRequest naming the field and its bound."""
        if isinstance(request, Transfer):
            return self.pack_transfer(*request)
        if isinstance(request, OpenWallet):
            return self._pack_opening(request)
        raise InvalidRequest("request", "a Transfer or an OpenWallet", request)

    def pack_transfer(
        self,
        debit: int,
        credit: int,
        amount_minor: int,
        key: str | None,
        transfer_id: UUID | None,
        kind: Kind,
        currency: str | None,
        reference: str | None,
        metadata: Mapping[str, Any] | None,
    ) -> Packed:
        """As pack, for the fields of a Transfer: the way of a single call, which builds no Transfer."""
        packed_id = self.id_of(key, transfer_id)
        if kind not in MOVEMENTS:
            raise InvalidRequest("kind", "TRANSFER, TOP_UP, PAYMENT or WITHDRAWAL", kind)
        details = b"" if reference is None and metadata is None else pack_details(reference, metadata)
        record = _pack(
            packed_id,
            kind,
            0,
            len(details),
            check_wallet_id(debit, "debit"),
            check_wallet_id(credit, "credit"),
            check_amount(amount_minor),
            NO_CURRENCY if currency is None else pack_currency(currency),
            details_digest(details) if details else NO_DIGEST,
        )
        return Packed(packed_id, record, details)

    def _pack_opening(self, request: OpenWallet) -> Packed:
        wallet_id = check_wallet_id(request.wallet_id, "wallet_id")
        currency = pack_currency(request.currency)
        if wallet_id < 0 and wallet_id != external_wallet_id(request.currency, self._shard):
            raise InvalidRequest("wallet_id", f"positive, or the external wallet's of {request.currency}", wallet_id)
        if request.key is None and request.id is None:
            packed_id = self._derive_id(OPENING_SCOPE, str(wallet_id))
        else:
            packed_id = self.id_of(request.key, request.id)
        record = _pack(
            packed_id,
            Kind.OPEN_WALLET,
            FLAG_EXTERNAL if wallet_id < 0 else 0,
            0,
            wallet_id,
            check_owner_id(request.owner_id),
            check_amount(request.overdraft_limit_minor, "overdraft_limit_minor", at_least=0),
            currency,
            NO_DIGEST,
        )
        return Packed(packed_id, record, b"")
