"""From a request of the public API to its packed form; everything that is wrong with it is found here, before I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import orjson

from engine.domain.ids import check_id, check_key
from engine.domain.limits import HOUR_MS, MINUTE_MS, NO_LIMIT, Condition, Rule, TierLimits, check_limits
from engine.domain.money import MAX_AMOUNT_MINOR, check_amount, check_exponent, pack_currency
from engine.domain.transfer import (
    MAX_EXPIRY_MS,
    MAX_METADATA_BYTES,
    MAX_ORIGIN_CHARS,
    MAX_REFERENCE_CHARS,
    PURPOSES,
    WALLET_CHANGES,
    Hold,
    HoldChange,
    Kind,
    OpenWallet,
    Refund,
    Request,
    RequestFlag,
    SetTierLimits,
    Transfer,
    WalletChange,
)
from engine.domain.wallet import (
    FLAG_CREDIT_FROZEN,
    FLAG_DEBIT_FROZEN,
    check_owner_id,
    check_tier,
    check_user_wallet_id,
    check_wallet_id,
    external_wallet_id,
)
from engine.errors import InvalidRequest
from engine.wire import ATTACHMENTS, CLAIM, LAYOUT_VERSION, REQUEST, TERMS, TIER_LIMITS

NO_CURRENCY = b"\0" * 8
NO_DIGEST = b"\0" * 8
NO_ID = 0
OPENING_SCOPE = "\0wallet"
"""The scope of ids derived for wallet openings; no owner scope starts with NUL."""

HOLD_SCOPE = "\0hold"
"""The scope of ids derived for how a hold ends: such a request may be repeated without a key of its own."""

DeriveId = Callable[[str, str], bytes]
Digest = Callable[[str], bytes]

_pack = REQUEST.struct.pack
_ORIGIN_BYTES = 16
_TERMS = ATTACHMENTS.index(TERMS)
_CLAIM = ATTACHMENTS.index(CLAIM)
_TIER_LIMITS = ATTACHMENTS.index(TIER_LIMITS)
_NO_TERMS = TERMS.struct.pack(0, 0, 0, 0, 0, NO_DIGEST, NO_DIGEST)[:-_ORIGIN_BYTES]
_DIGEST_BYTES = 8
_PURPOSE = "TRANSFER, TOP_UP, PAYMENT or WITHDRAWAL"

_NOTHING_MORE = Transfer(0, 0, 0)[9:]

# As plain numbers: operations of IntFlag take longer than packing a request.
_LINKED, _BALANCING = RequestFlag.LINKED.value, RequestFlag.BALANCING.value


class Packed(NamedTuple):
    """One request on its way: its id, its REQUEST record, the bytes of its details and of its attachment (b'' for
    none), and whether the next request is linked to it."""

    id: bytes
    record: bytes
    details: bytes = b""
    attachment: bytes = b""
    linked: bool = False


class Claim(NamedTuple):
    """A transfer to refund, as the ledger has it. kind: what it was for. as_of: the sequence of the reading."""

    kind: int
    debit: int
    credit: int
    amount_minor: int
    refunded_minor: int
    as_of: int


def pack_details(reference: str | None, metadata: Mapping[str, Any] | None) -> bytes:
    """A JSON array [reference, metadata], with null for what is absent; b'' if both are."""
    if reference is None and metadata is None:
        return b""
    if reference is not None:
        _check_reference(reference)
    if metadata is not None:
        _check_metadata(metadata)
    return orjson.dumps([reference, metadata], option=orjson.OPT_SORT_KEYS)


def details_digest(details: bytes) -> bytes:
    """8 bytes that stand for the details in the request's content and in the ledger's transfer."""
    return hashlib.blake2b(details, digest_size=_DIGEST_BYTES).digest() if details else NO_DIGEST


def terms_digest(terms: bytes) -> bytes:
    """8 bytes that stand for what else a request asks for; its first byte is even, as a chain's is odd."""
    digest = bytearray(hashlib.blake2b(terms, digest_size=_DIGEST_BYTES).digest())
    digest[0] &= 0xFE
    return bytes(digest)


def as_chain(members: list[Packed]) -> list[Packed]:
    """The members, each with the digest of the whole chain in its content: it replays only as this chain."""
    whole = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for member in members:
        whole.update(member.record[:16] + member.record[17:])  # without what comes attached: it may differ in a retry
    digest = bytearray(whole.digest())
    digest[0] |= 1
    return [member._replace(record=member.record[:-_DIGEST_BYTES] + digest) for member in members]


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


def check_bool(value: bool, field: str) -> bool:
    """value itself if it is True or False; else InvalidRequest."""
    if type(value) is not bool:
        raise InvalidRequest(field, "True or False", value)
    return value


def _linked(request: Transfer | Hold | HoldChange | Refund | WalletChange) -> int:
    """RequestFlag.LINKED if it is, else 0."""
    return _LINKED if check_bool(request.linked, "linked") else 0


def _check_origin(text: str, field: str) -> str:
    if type(text) is not str or not 1 <= len(text) <= MAX_ORIGIN_CHARS:
        raise InvalidRequest(field, f"text of 1 to {MAX_ORIGIN_CHARS} characters", text)
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise InvalidRequest(field, "text without lone surrogates", text)
    return text


def pack_limits(limits: TierLimits) -> bytes:
    """A TIER_LIMITS record. Raises InvalidRequest."""
    check_limits(limits)

    def limit(value: int | None) -> int:
        return NO_LIMIT if value is None else value

    return TIER_LIMITS.struct.pack(
        LAYOUT_VERSION,
        limits.debt_first,
        sum(1 << rule for rule in limits.review),
        limit(limits.max_amount_minor),
        limit(limits.day_amount_minor),
        limit(limits.day_count),
        limit(limits.window_count),
        limits.window_minutes * MINUTE_MS,
        limit(limits.hour_amount_minor),
        limits.attempts_window_minutes * MINUTE_MS,
        limit(limits.device_attempts),
        limit(limits.ip_attempts),
        limit(limits.device_wallets),
        limit(limits.new_device_amount_minor),
        limits.new_device_hours * HOUR_MS,
    )


def unpack_limits(packed: bytes) -> TierLimits:
    """The limits in a TIER_LIMITS record."""
    found = TIER_LIMITS.unpack(packed)

    def limit(name: str) -> int | None:
        return None if found[name] == NO_LIMIT else int(found[name])

    return TierLimits(
        max_amount_minor=limit("max_amount"),
        day_amount_minor=limit("day_amount"),
        day_count=limit("day_count"),
        window_count=limit("window_count"),
        window_minutes=found["window_ms"] // MINUTE_MS,
        hour_amount_minor=limit("hour_amount"),
        device_attempts=limit("device_attempts"),
        ip_attempts=limit("ip_attempts"),
        attempts_window_minutes=found["attempts_window_ms"] // MINUTE_MS,
        device_wallets=limit("device_wallets"),
        new_device_amount_minor=limit("new_device_amount"),
        new_device_hours=found["new_device_ms"] // HOUR_MS,
        review=frozenset(rule for rule in Rule if found["review"] >> rule & 1),
        debt_first=found["debt_first"] == 1,
    )


class RequestPacker:
    """Packs requests under one owner scope, for one shard."""

    def __init__(self, derive_id: DeriveId, digest: Digest, scope: str, shard: int) -> None:
        """digest: of devices and IPs."""
        self._shard = shard
        self._derive_id = derive_id
        self._digest = digest
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

    def hold_id_of(self, hold_id: UUID, how: str) -> UUID:
        """The id of a request that ends a hold in one way, for callers without a key."""
        return UUID(bytes=self._derive_id(HOLD_SCOPE, f"{how}:{check_id(hold_id, 'hold_id')}"))

    def pack(self, request: Request, claim: Claim | None = None) -> Packed:
        """Raises InvalidRequest naming the field and its bound. claim: of a Refund."""
        match request:
            case Transfer():
                return self._pack_movement(request)
            case Hold():
                return self._pack_hold(request)
            case HoldChange():
                return self._pack_hold_change(request)
            case Refund():
                return self._pack_refund(request, claim)
            case OpenWallet():
                return self._pack_opening(request)
            case WalletChange():
                return self._pack_wallet_change(request)
            case SetTierLimits():
                return self._pack_tier_limits(request)
        raise InvalidRequest("request", "a Transfer or another request of engine.domain.transfer", request)

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
        """As pack, for a Transfer that asks for nothing more: the way of a single call, which builds no Transfer."""
        packed_id = self.id_of(key, transfer_id)
        if kind not in PURPOSES:
            raise InvalidRequest("kind", _PURPOSE, kind)
        details = b"" if reference is None and metadata is None else pack_details(reference, metadata)
        record = _pack(
            packed_id,
            0,
            kind,
            0,
            len(details),
            check_wallet_id(debit, "debit"),
            check_wallet_id(credit, "credit"),
            check_amount(amount_minor),
            NO_CURRENCY if currency is None else pack_currency(currency),
            details_digest(details) if details else NO_DIGEST,
            NO_DIGEST,
        )
        return Packed(packed_id, record, details)

    def _pack_movement(self, request: Transfer) -> Packed:
        plain = self.pack_transfer(*request[:9])
        if request[9:] == _NOTHING_MORE:
            return plain
        flags = _linked(request) | (_BALANCING if check_bool(request.balancing, "balancing") else 0)
        terms = self._terms(request, purpose=0, expires_in_ms=0)
        if not flags and not terms:
            return plain
        return _with_terms(plain, flags, terms)

    def _pack_hold(self, request: Hold) -> Packed:
        expires_in_ms = request.expires_in_ms
        if expires_in_ms is not None and (type(expires_in_ms) is not int or not 1 <= expires_in_ms <= MAX_EXPIRY_MS):
            raise InvalidRequest("expires_in_ms", f"an integer from 1 to {MAX_EXPIRY_MS}, or None", expires_in_ms)
        if request.purpose not in PURPOSES:
            raise InvalidRequest("purpose", _PURPOSE, request.purpose)
        # purpose takes the place of kind for the checks; the record's kind is HOLD.
        plain = self.pack_transfer(*request[:5], request.purpose, *request[7:10])
        held = plain._replace(record=plain.record[:17] + bytes((Kind.HOLD,)) + plain.record[18:])
        terms = self._terms(request, purpose=request.purpose, expires_in_ms=expires_in_ms or 0)
        return _with_terms(held, _linked(request), terms)

    def _terms(self, request: Transfer | Hold, purpose: int, expires_in_ms: int) -> bytes:
        """The TERMS of a request, b'' if it asks for nothing more than its content says."""
        version, least = request.expect_version, request.min_available_after_minor
        if version is None and least is None and request.device is None and request.ip is None and not purpose:
            return b""
        conditions = Condition(0)
        if version is not None:
            check_amount(version, "expect_version")
            conditions |= Condition.VERSION
        if least is not None:
            if type(least) is not int or abs(least) > MAX_AMOUNT_MINOR:
                bound = f"an integer from -{MAX_AMOUNT_MINOR} to {MAX_AMOUNT_MINOR}"
                raise InvalidRequest("min_available_after_minor", bound, least)
            conditions |= Condition.MIN_AVAILABLE
        return TERMS.struct.pack(
            conditions,
            purpose,
            version or 0,
            least or 0,
            expires_in_ms,
            NO_DIGEST if request.device is None else self._digest(_check_origin(request.device, "device")),
            NO_DIGEST if request.ip is None else self._digest(_check_origin(request.ip, "ip")),
        )

    def _pack_hold_change(self, request: HoldChange) -> Packed:
        kind, amount, flags = request.kind, request.amount_minor, RequestFlag(0)
        if kind is Kind.CAPTURE:
            flags = RequestFlag.FINAL if check_bool(request.final, "final") else flags
            amount = 0 if amount is None else check_amount(amount)
        elif kind is Kind.RAISE_HOLD:
            amount = check_amount(amount) if amount is not None else check_amount(0)
        elif kind not in (Kind.VOID, Kind.APPROVE_HOLD):
            raise InvalidRequest("kind", "CAPTURE, RAISE_HOLD, VOID or APPROVE_HOLD", kind)
        elif amount is not None:
            raise InvalidRequest("amount_minor", "absent", amount)
        return self._pack_reference(request, request.hold_id, "hold_id", amount or 0, flags)

    def _pack_refund(self, request: Refund, claim: Claim | None) -> Packed:
        if request.kind not in (Kind.REFUND, Kind.CHARGEBACK):
            raise InvalidRequest("kind", "REFUND or CHARGEBACK", request.kind)
        amount = 0 if request.amount_minor is None else check_amount(request.amount_minor)
        packed = self._pack_reference(request, request.transfer_id, "transfer_id", amount, RequestFlag(0))
        if claim is None:
            return packed
        record = packed.record[:16] + bytes((_CLAIM,)) + packed.record[17:]
        return packed._replace(record=record, attachment=CLAIM.struct.pack(*claim))

    def _pack_reference(
        self, request: HoldChange | Refund, refers_to: UUID, field: str, amount: int, flags: RequestFlag
    ) -> Packed:
        check_id(refers_to, field)
        packed_id = self.id_of(request.key, request.id)
        details = pack_details(request.reference, request.metadata)
        halves = (int.from_bytes(half, "little", signed=True) for half in (refers_to.bytes[:8], refers_to.bytes[8:]))
        flags |= _linked(request)
        digest = details_digest(details)
        record = _pack(packed_id, 0, request.kind, flags, len(details), *halves, amount, NO_CURRENCY, digest, NO_DIGEST)
        return Packed(packed_id, record, details, linked=request.linked)

    def _pack_opening(self, request: OpenWallet) -> Packed:
        wallet_id = check_wallet_id(request.wallet_id, "wallet_id")
        currency = pack_currency(request.currency)
        external = wallet_id < 0
        if external and wallet_id != external_wallet_id(request.currency, self._shard):
            raise InvalidRequest("wallet_id", f"positive, or the external wallet's of {request.currency}", wallet_id)
        if request.key is None and request.id is None:
            packed_id = self._derive_id(OPENING_SCOPE, str(wallet_id))
        else:
            packed_id = self.id_of(request.key, request.id)
        limit = request.overdraft_limit_minor
        record = _pack(
            packed_id,
            0,
            Kind.OPEN_WALLET,
            RequestFlag.EXTERNAL if external else 0,
            0,
            wallet_id,
            check_owner_id(request.owner_id),
            check_exponent(limit) if external else check_amount(limit, "overdraft_limit_minor", at_least=0),
            currency,
            NO_DIGEST,
            NO_DIGEST,
        )
        return Packed(packed_id, record)

    def _pack_wallet_change(self, request: WalletChange) -> Packed:
        kind, value = request.kind, request.value
        if kind not in WALLET_CHANGES:
            raise InvalidRequest("kind", "FREEZE, UNFREEZE, CLOSE_WALLET, SET_OVERDRAFT_LIMIT or SET_TIER", kind)
        if kind in (Kind.FREEZE, Kind.UNFREEZE):
            if value not in (FLAG_DEBIT_FROZEN, FLAG_CREDIT_FROZEN, FLAG_DEBIT_FROZEN | FLAG_CREDIT_FROZEN):
                raise InvalidRequest("value", "debits, credits or both", value)
        elif kind is Kind.SET_TIER:
            check_tier(value)
        elif kind is Kind.CLOSE_WALLET and value != 0:
            raise InvalidRequest("value", "0", value)
        else:
            check_amount(value, "overdraft_limit_minor", at_least=0)
        packed_id = self._own_id(request.key, request.id)
        wallet_id = check_user_wallet_id(request.wallet_id, "wallet_id")
        flags = _linked(request)
        digests = (NO_DIGEST, NO_DIGEST)
        record = _pack(packed_id, 0, kind, flags, 0, wallet_id, NO_ID, value, NO_CURRENCY, *digests)
        return Packed(packed_id, record, linked=request.linked)

    def _pack_tier_limits(self, request: SetTierLimits) -> Packed:
        limits = pack_limits(request.limits)
        packed_id = self._own_id(request.key, request.id)
        tier = check_tier(request.tier, at_least=1)
        record = _pack(
            packed_id,
            _TIER_LIMITS,
            Kind.SET_TIER_LIMITS,
            0,
            0,
            NO_ID,
            NO_ID,
            tier,
            NO_CURRENCY,
            NO_DIGEST,
            terms_digest(limits),
        )
        return Packed(packed_id, record, attachment=limits)

    def _own_id(self, key: str | None, transfer_id: UUID | None) -> bytes:
        """The id of a request that sets something, which may be repeated: a new one unless the caller has one."""
        return uuid4().bytes if key is None and transfer_id is None else self.id_of(key, transfer_id)


def _with_terms(packed: Packed, flags: int, terms: bytes) -> Packed:
    """The packed request with flags and TERMS; where it came from is no part of its content."""
    record = packed.record
    asked = terms[:-_ORIGIN_BYTES]
    digest = terms_digest(asked) if terms and asked != _NO_TERMS else NO_DIGEST
    head = record[:16] + bytes((_TERMS if terms else 0, record[17], flags))
    return packed._replace(
        record=head + record[19:-_DIGEST_BYTES] + digest,
        attachment=terms,
        linked=bool(flags & RequestFlag.LINKED),
    )
