"""Requests of a chain as JSON: one object each, an object a line or all of them in one array.

{"kind": "payment", "debit": 17, "credit": 900, "amount_minor": 1000, "reference": "cart 4711"}

kind is one of FORMS, in the words of a statement; the other names are those of engine's requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson

from engine import Hold, HoldChange, InvalidRequest, Kind, Refund, Transfer, WalletChange, external_wallet_id
from engine.domain.transfer import Request
from engine.domain.wallet import FLAG_CREDIT_FROZEN, FLAG_DEBIT_FROZEN
from gateway.session import SHARD

MAX_BYTES = 8 << 20
"""More than the longest chain takes with all that may be attached to it."""

_FROZEN = {"debits": FLAG_DEBIT_FROZEN, "credits": FLAG_CREDIT_FROZEN, "both": FLAG_DEBIT_FROZEN | FLAG_CREDIT_FROZEN}
_PURPOSES = {"payment": Kind.PAYMENT, "transfer": Kind.TRANSFER}
_IDS = ("id", "hold_id", "transfer_id")

_NAMES = ("key", "id")
_DETAILS = ("reference", "metadata")
_CONDITIONS = ("expect_version", "min_available_after_minor", "device", "ip")


@dataclass(frozen=True)
class Form:
    """What a request of some kinds looks like. must, may: its fields besides kind, key and id."""

    build: Callable[[Kind, dict[str, Any]], Request]
    must: tuple[str, ...]
    may: tuple[str, ...] = ()


def _movement(kind: Kind, fields: dict[str, Any]) -> Request:
    return Transfer(kind=kind, **fields)


def _external(kind: Kind, fields: dict[str, Any]) -> Request:
    wallet, outside = fields.pop("wallet_id"), external_wallet_id(fields["currency"], SHARD)
    debit, credit = (outside, wallet) if kind is Kind.TOP_UP else (wallet, outside)
    return Transfer(debit, credit, kind=kind, **fields)


def _hold(_: Kind, fields: dict[str, Any]) -> Request:
    purpose = _choice(_PURPOSES, "purpose", fields.pop("purpose", "payment"))
    return Hold(purpose=purpose, **fields)


def _hold_change(kind: Kind, fields: dict[str, Any]) -> Request:
    return HoldChange(kind=kind, **fields)


def _refund(kind: Kind, fields: dict[str, Any]) -> Request:
    return Refund(kind=kind, **fields)


def _freeze(kind: Kind, fields: dict[str, Any]) -> Request:
    return WalletChange(kind=kind, value=_choice(_FROZEN, "side", fields.pop("side", "both")), **fields)


def _wallet_change(kind: Kind, fields: dict[str, Any]) -> Request:
    return WalletChange(kind=kind, **fields)


_MOVEMENT = Form(_movement, ("debit", "credit", "amount_minor"), ("currency", "balancing", *_CONDITIONS, *_DETAILS))
_EXTERNAL = Form(_external, ("wallet_id", "currency", "amount_minor"), ("balancing", *_CONDITIONS, *_DETAILS))
_HOLD = Form(
    _hold, ("debit", "credit", "amount_minor"), ("purpose", "expires_in_ms", "currency", *_CONDITIONS, *_DETAILS)
)
_FREEZE = Form(_freeze, ("wallet_id",), ("side",))

# A chargeback is not here: it needs a permission of its own.
FORMS: Mapping[Kind, Form] = {
    Kind.TRANSFER: _MOVEMENT,
    Kind.PAYMENT: _MOVEMENT,
    Kind.TOP_UP: _EXTERNAL,
    Kind.WITHDRAWAL: _EXTERNAL,
    Kind.HOLD: _HOLD,
    Kind.CAPTURE: Form(_hold_change, ("hold_id",), ("amount_minor", "final", *_DETAILS)),
    Kind.RAISE_HOLD: Form(_hold_change, ("hold_id", "amount_minor"), _DETAILS),
    Kind.VOID: Form(_hold_change, ("hold_id",), _DETAILS),
    Kind.APPROVE_HOLD: Form(_hold_change, ("hold_id",), _DETAILS),
    Kind.REFUND: Form(_refund, ("transfer_id",), ("amount_minor", *_DETAILS)),
    Kind.FREEZE: _FREEZE,
    Kind.UNFREEZE: _FREEZE,
    Kind.CLOSE_WALLET: Form(_wallet_change, ("wallet_id",)),
    Kind.SET_OVERDRAFT_LIMIT: Form(_wallet_change, ("wallet_id", "value")),
    Kind.SET_TIER: Form(_wallet_change, ("wallet_id", "value")),
}
_KINDS = {kind.name.lower(): kind for kind in FORMS}


def read_chain(text: str) -> list[dict[str, Any]]:
    """The objects in the text, unchecked. Raises InvalidRequest, naming the line of what is no JSON."""
    whole = text.lstrip().startswith("[")
    parts = [text] if whole else [line for line in text.splitlines() if line.strip()]
    found: list[Any] = []
    for number, part in enumerate(parts, 1):
        try:
            found.append(orjson.loads(part))
        except orjson.JSONDecodeError as error:
            raise InvalidRequest(f"request {number}", f"a JSON object ({error})", part) from None
    objects = found[0] if whole else found
    for number, one in enumerate(objects, 1):
        if not isinstance(one, dict):
            raise InvalidRequest(f"request {number}", "a JSON object", one)
    if not objects:
        raise InvalidRequest("chain", "at least one request", text)
    return objects


def requests_of(objects: Sequence[Mapping[str, Any]], key: str | None) -> list[Request]:
    """The requests that the objects mean. key: gives `<key>/<number>` to those without key and id.

    Raises InvalidRequest, naming the request by its number, from 1.
    """
    requests = []
    for number, one in enumerate(objects, 1):
        fields = dict(one)
        if key is not None and not fields.keys() & set(_NAMES):
            fields["key"] = f"{key}/{number}"
        try:
            requests.append(_request(fields))
        except InvalidRequest as error:
            raise InvalidRequest(f"request {number}: {error.field}", error.bound, error.value) from None
    return requests


def has_nameless(objects: Sequence[Mapping[str, Any]]) -> bool:
    """Whether some request has neither key nor id."""
    return any(not one.keys() & set(_NAMES) for one in objects)


def forms_help() -> str:
    """For each form its kinds, what must be there, and on a line of its own what may."""
    kinds: dict[Form, list[str]] = {}
    for kind, form in FORMS.items():
        kinds.setdefault(form, []).append(kind.name.lower())
    return "\n".join(
        f"{', '.join(names)}: {', '.join(form.must)}" + (f"\n    [{', '.join(form.may)}]" if form.may else "")
        for form, names in kinds.items()
    )


def _request(fields: dict[str, Any]) -> Request:
    kind = _choice(_KINDS, "kind", fields.pop("kind", None))
    form = FORMS[kind]
    for name in form.must:
        if name not in fields:
            raise InvalidRequest(name, f"given for a {kind.name.lower()}", None)
    for name, value in fields.items():
        if name not in (*form.must, *form.may, *_NAMES):
            raise InvalidRequest(name, f"absent: a {kind.name.lower()} has {', '.join((*form.must, *form.may))}", value)
        if name in _IDS:
            fields[name] = _uuid(name, value)
    return form.build(kind, fields)


def _choice(choices: Mapping[str, Any], field: str, value: Any) -> Any:
    if not isinstance(value, str) or value not in choices:
        raise InvalidRequest(field, f"one of {', '.join(choices)}", value)
    return choices[value]


def _uuid(field: str, value: Any) -> UUID:
    try:
        return UUID(value)
    except (ValueError, TypeError, AttributeError):
        raise InvalidRequest(field, "a UUID", value) from None
