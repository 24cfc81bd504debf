"""What makes two requests under one id the same request; the oracle's view of EXISTS_WITH_DIFFERENT_*."""

from __future__ import annotations

from typing import NamedTuple, assert_never
from uuid import UUID

from engine import Hold, HoldChange, Kind, OpenWallet, Refund, SetTierLimits, Transfer, WalletChange
from engine.domain.status import STATUS_RULES

_PREFIX = "EXISTS_WITH_DIFFERENT_"
_DIFFERENCES = [rule.status.value for rule in STATUS_RULES if rule.status.value.startswith(_PREFIX)]


class Expire(NamedTuple):
    """The sweeper's request, which engines do not have."""

    hold_id: UUID


Request = Transfer | Hold | HoldChange | Expire | Refund | OpenWallet | WalletChange | SetTierLimits


def content_of(request: Request) -> dict[str, object]:
    """By the word of the status that tells a difference. Where a request came from is no part of it."""
    match request:
        case Transfer():
            return {
                "KIND": (request.kind, request.balancing),
                "TERMS": (request.expect_version, request.min_available_after_minor),
            } | _of_movement(request)
        case Hold():
            return {
                "KIND": Kind.HOLD,
                "TERMS": (
                    request.purpose,
                    request.expires_in_ms,
                    request.expect_version,
                    request.min_available_after_minor,
                ),
            } | _of_movement(request)
        case HoldChange():
            return {
                "KIND": (request.kind, request.kind is Kind.CAPTURE and request.final),
                "REFERENCE": request.hold_id,
                "AMOUNT": request.amount_minor,
                "DETAILS": (request.reference, request.metadata),
            }
        case Expire():
            return {"KIND": Kind.EXPIRE_HOLD, "REFERENCE": request.hold_id}
        case Refund():
            return {
                "KIND": request.kind,
                "REFERENCE": request.transfer_id,
                "AMOUNT": request.amount_minor,
                "DETAILS": (request.reference, request.metadata),
            }
        case OpenWallet():
            return {
                "KIND": (Kind.OPEN_WALLET, request.wallet_id < 0),
                "WALLET": request.wallet_id,
                "OWNER": request.owner_id,
                "OVERDRAFT_LIMIT": request.overdraft_limit_minor,
                "CURRENCY": request.currency,
            }
        case WalletChange():
            return {"KIND": request.kind, "WALLET": request.wallet_id, "AMOUNT": request.value}
        case SetTierLimits():
            return {"KIND": Kind.SET_TIER_LIMITS, "AMOUNT": request.tier, "TERMS": request.limits}
    assert_never(request)


def _of_movement(request: Transfer | Hold) -> dict[str, object]:
    return {
        "DEBIT": request.debit,
        "CREDIT": request.credit,
        "AMOUNT": request.amount_minor,
        "CURRENCY": request.currency,
        "DETAILS": (request.reference, request.metadata),
    }


def difference(asked: dict[str, object], again: dict[str, object]) -> str | None:
    """The status that names the first difference, by precedence; None if there is none.

    Between requests of two kinds nothing else is compared.
    """
    words = (status.removeprefix(_PREFIX) for status in _DIFFERENCES)
    return next((_PREFIX + word for word in words if asked.get(word) != again.get(word)), None)
