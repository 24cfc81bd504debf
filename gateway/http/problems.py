"""Errors as RFC 9457 problems, and what each status of the engine is in HTTP: the one table of it.

402 is INSUFFICIENT_FUNDS alone, so that a program can tell "not enough money", which its user can do something about,
from every other conflict by the HTTP status.
"""

from __future__ import annotations

import math
import re
import time
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

import msgspec
from msgspec import UNSET

from engine import (
    Fatal,
    InvalidRequest,
    LedgerBacklog,
    Outcome,
    OutcomeUnknown,
    Overloaded,
    Rule,
    ShardNotOpen,
    Status,
    Unavailable,
)
from engine.domain.status import RETRYABLE, STATUS_RULES
from gateway.http.types import Problem

HTTP_OF: dict[Status, int] = {
    Status.POSTED: 201,
    Status.UNDER_REVIEW: 202,
    Status.SHARD_NOT_OPEN: 503,
    Status.DEADLINE_PASSED: 503,
    Status.CHAIN_TOO_LONG: 422,
    Status.LINKED_CHAIN_OPEN: 422,
    Status.EXISTS_WITH_DIFFERENT_KIND: 422,
    Status.EXISTS_WITH_DIFFERENT_CHAIN: 422,
    Status.EXISTS_WITH_DIFFERENT_REFERENCE: 422,
    Status.EXISTS_WITH_DIFFERENT_DEBIT: 422,
    Status.EXISTS_WITH_DIFFERENT_CREDIT: 422,
    Status.EXISTS_WITH_DIFFERENT_AMOUNT: 422,
    Status.EXISTS_WITH_DIFFERENT_WALLET: 422,
    Status.EXISTS_WITH_DIFFERENT_OWNER: 422,
    Status.EXISTS_WITH_DIFFERENT_OVERDRAFT_LIMIT: 422,
    Status.EXISTS_WITH_DIFFERENT_CURRENCY: 422,
    Status.EXISTS_WITH_DIFFERENT_TERMS: 422,
    Status.EXISTS_WITH_DIFFERENT_DETAILS: 422,
    Status.LINKED_FAILED: 409,
    Status.LEDGER_BACKLOG: 503,
    Status.LEDGER_BEHIND: 503,
    Status.AMOUNT_OUT_OF_RANGE: 422,
    Status.SAME_WALLET: 422,
    Status.WALLET_EXISTS: 409,
    Status.HOLD_EXISTS: 409,
    Status.HOLD_NOT_FOUND: 404,
    Status.HOLD_ALREADY_CAPTURED: 409,
    Status.HOLD_ALREADY_VOIDED: 409,
    Status.HOLD_EXPIRED: 409,
    Status.HOLD_NOT_DUE: 409,
    Status.HOLD_UNDER_REVIEW: 409,
    Status.HOLD_NOT_UNDER_REVIEW: 409,
    Status.TRANSFER_NOT_FOUND: 404,
    Status.NOT_REFUNDABLE: 409,
    Status.DEBIT_WALLET_NOT_FOUND: 404,
    Status.CREDIT_WALLET_NOT_FOUND: 404,
    Status.TIER_NOT_FOUND: 404,
    Status.CURRENCY_MISMATCH: 422,
    Status.WALLET_CLOSED: 409,
    Status.DEBIT_FROZEN: 409,
    Status.CREDIT_FROZEN: 409,
    Status.WALLET_NOT_EMPTY: 409,
    Status.EXCEEDS_HOLD: 409,
    Status.REFUND_EXCEEDS_TRANSFER: 409,
    Status.LIMIT_EXCEEDED: 409,
    Status.INSUFFICIENT_FUNDS: 402,
    Status.CONDITION_FAILED: 412,
    Status.BALANCE_OUT_OF_RANGE: 409,
    Status.NOT_APPLIED: 404,
}


class Own(NamedTuple):
    """A code of the door itself: its HTTP status and what it means."""

    http: int
    meaning: str


OWN: dict[str, Own] = {
    "INVALID_REQUEST": Own(400, "the request cannot be meant; field and bound say what is wrong; nothing was done"),
    "UNAUTHENTICATED": Own(401, "no key, or one that is unknown, expired or revoked"),
    "FORBIDDEN": Own(403, "the key lacks the scope, or is bound to an owner and this is for operators"),
    "NOT_FOUND": Own(404, "there is nothing under this address, or the key may not see it"),
    "METHOD_NOT_ALLOWED": Own(405, "the address exists, but not with this method"),
    "REQUEST_TIMEOUT": Own(408, "the body did not arrive in time"),
    "TOO_LARGE": Own(413, "the body is larger than it may be"),
    "UNSUPPORTED_MEDIA_TYPE": Own(415, "the body is not application/json"),
    "RATE_LIMITED": Own(429, "the key has used its requests of this second"),
    "INTERNAL": Own(500, "a bug of the door; a request that moves money may have been decided: send it again"),
    "BROKEN": Own(500, "something is broken and a person has to look; see the service's log"),
    "UNAVAILABLE": Own(503, "nothing was applied; send the same request again"),
    "OVERLOADED": Own(503, "the service's queue is full; nothing was applied"),
    "LEDGER_UNAVAILABLE": Own(503, "the ledger cannot be asked; payments may work all the same"),
    "NOT_YET_IN_LEDGER": Own(503, "the ledger does not have the sequence, or the new wallet, that was asked for yet"),
    "OUTCOME_UNKNOWN": Own(
        504,
        "the deadline passed: it may have been applied or not. Send the same request with the same Idempotency-Key "
        "again, or GET /v1/outcomes?key=...",
    ),
}

RETRY_AFTER_S = 1
_TITLES = {rule.status.value: rule.meaning for rule in STATUS_RULES} | {code: own.meaning for code, own in OWN.items()}
_AT = re.compile(r"^(.*?)(?: - at `(?:key in )?\$?\.?(.*)`)?$", re.DOTALL)


class Refused(Exception):
    """A request that is answered with a problem. code: of OWN, or a Status."""

    def __init__(
        self,
        code: str,
        detail: str = "",
        *,
        field: str | None = None,
        bound: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(code)
        self.code = code
        self.detail = detail
        self.field = field
        self.bound = bound
        self.retry_after_s = retry_after_s

    @property
    def http(self) -> int:
        return http_of(self.code)

    def problem(self, request_id: str) -> Problem:
        title = _TITLES[self.code]
        made = Problem(
            type=f"urn:hotledger:problem:{self.code}",
            title=title,
            status=self.http,
            detail=self.detail or title,
            code=self.code,
            instance=f"urn:hotledger:request:{request_id}",
        )
        if self.field is not None:
            made.field = self.field
        if self.bound is not None:
            made.bound = self.bound
        return made


class RefusedByStatus(Refused):
    """A refusal of the engine. sees_debit: whether the key may know the debit wallet's balance."""

    def __init__(self, outcome: Outcome, *, sees_debit: bool = False) -> None:
        super().__init__(outcome.status, retry_after_s=RETRY_AFTER_S if outcome.status in RETRYABLE else None)
        self.outcome = outcome
        self.sees_debit = sees_debit
        if outcome.retry_at_ms:
            self.retry_after_s = max(1, math.ceil(outcome.retry_at_ms / 1000 - time.time()))

    def problem(self, request_id: str) -> Problem:
        made = super().problem(request_id)
        outcome = self.outcome
        made.id = outcome.transfer_id
        made.instance = f"urn:hotledger:transfer:{outcome.transfer_id}"  # a replay has the very same body
        if self.sees_debit and outcome.status in _TELLS_BALANCE:
            made.debit_available_minor = outcome.debit_available_minor
        if outcome.rule:
            made.rule = Rule(outcome.rule).name
            made.used = outcome.used
        made.retry_at = datetime.fromtimestamp(outcome.retry_at_ms / 1000, UTC) if outcome.retry_at_ms else UNSET
        return made


_TELLS_BALANCE = frozenset({Status.INSUFFICIENT_FUNDS, Status.CONDITION_FAILED})


class UnknownOutcome(Refused):
    """504: the ids that may have been decided."""

    def __init__(self, ids: list[UUID]) -> None:
        super().__init__("OUTCOME_UNKNOWN")
        self.ids = ids

    def problem(self, request_id: str) -> Problem:
        made = super().problem(request_id)
        if len(self.ids) == 1:
            made.id = self.ids[0]
        return made


def http_of(code: str) -> int:
    """The HTTP status of a code of this door or of the engine."""
    own = OWN.get(code)
    return own.http if own else HTTP_OF[Status(code)]


def refusal_of(error: Exception) -> Refused | None:
    """How an expected error is answered; None for a bug."""
    match error:
        case Refused():
            return error
        case InvalidRequest():
            return Refused("INVALID_REQUEST", str(error), field=error.field, bound=error.bound)
        case OutcomeUnknown():
            return UnknownOutcome(error.transfer_ids)
        case Overloaded():
            return Refused("OVERLOADED", str(error), retry_after_s=RETRY_AFTER_S)
        case ShardNotOpen():
            return Refused(Status.SHARD_NOT_OPEN, retry_after_s=RETRY_AFTER_S)
        case LedgerBacklog():
            return Refused(Status.LEDGER_BACKLOG, retry_after_s=RETRY_AFTER_S)
        case Unavailable():
            return Refused("UNAVAILABLE", retry_after_s=RETRY_AFTER_S)
        case Fatal():
            return Refused("BROKEN")
    return None


def invalid(field: str, bound: str) -> Refused:
    """400 that names what is wrong."""
    return Refused("INVALID_REQUEST", f"{field} must be {bound}", field=field, bound=bound)


def unreadable(error: msgspec.MsgspecError | UnicodeDecodeError, where: str) -> Refused:
    """400 for a body or a query that is not what the operation takes. where: its name if the error names no field."""
    if not isinstance(error, msgspec.ValidationError):
        return invalid(where, "JSON in UTF-8" if where == "body" else "as documented")
    found = _AT.match(str(error))
    text, path = (found[1], found[2]) if found else (str(error), None)
    named = re.search(r"field `(\w+)`", text)
    field = named[1] if named else path or where
    return Refused("INVALID_REQUEST", f"{field}: {text}", field=field, bound=text)
