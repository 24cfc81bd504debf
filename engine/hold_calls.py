"""The calls of Engine that reserve money and give it back: holds, two-step top-ups and withdrawals, refunds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from engine.domain.ids import check_id
from engine.domain.transfer import Hold, HoldChange, HoldState, Kind, Outcome, Refund, Request, Review
from engine.domain.wallet import check_user_wallet_id
from engine.errors import InvalidRequest
from engine.requests import RequestPacker
from engine.wire import HOLD, MAX_BATCH

DEFAULT_PENDING_MS = 7 * 86_400_000
"""How long a top-up or a withdrawal waits for its provider before the sweeper ends it."""


_HOW = {Kind.CAPTURE: "capture", Kind.VOID: "void", Kind.APPROVE_HOLD: "approve"}


class HoldNow(NamedTuple):
    """A hold as Redis has it. captured_minor: in all so far; remaining_minor: still locked. expires_at_ms: by the
    server's clock, None for never."""

    hold_id: UUID
    state: HoldState
    purpose: Kind
    review: Review
    debit: int
    credit: int
    remaining_minor: int
    captured_minor: int
    expires_at_ms: int | None


class HoldCalls(ABC):
    """A part of Engine, which see; what it needs of it are the declarations below."""

    _packer: RequestPacker

    @abstractmethod
    async def _one(self, request: Request, durability: str | None, timeout_ms: int | None) -> Outcome:
        """Engine has it."""

    @abstractmethod
    async def _outside_of(self, wallet_id: int, currency: str | None, timeout_ms: int | None) -> int:
        """Engine has it."""

    @abstractmethod
    async def _packed_holds(self, hold_ids: Sequence[UUID], timeout_ms: int | None) -> list[bytes]:
        """Engine has it."""

    # Holds

    async def hold(
        self,
        debit: int,
        credit: int,
        amount_minor: int,
        *,
        expires_in_ms: int | None = None,
        purpose: Kind = Kind.PAYMENT,
        key: str | None = None,
        id: UUID | None = None,
        currency: str | None = None,
        reference: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        device: str | None = None,
        ip: str | None = None,
        durability: str | None = None,
        timeout_ms: int | None = None,
    ) -> Outcome:
        """Reserve money of the debit wallet for the credit wallet: it moves from available to locked.

        expires_in_ms: 1 to 366 days, None for never; after that the hold cannot be captured any more, and the sweeper
        releases it. The hold's id is the outcome's transfer_id. device, ip: as in Transfer.
        Returns POSTED; UNDER_REVIEW if a fraud rule wants an operator's approval first; or what a transfer returns.
        Raises as transfer. Rule: lua/lib/movements.lua; invariants 1, 2 and 7.
        """
        check_user_wallet_id(debit, "debit")
        check_user_wallet_id(credit, "credit")
        request = Hold(
            debit, credit, amount_minor, key, id, purpose, expires_in_ms, currency, reference, metadata,
            device=device, ip=ip,
        )  # fmt: skip
        return await self._one(request, durability, timeout_ms)

    async def capture(
        self,
        hold_id: UUID,
        amount_minor: int | None = None,
        *,
        final: bool = True,
        key: str | None = None,
        id: UUID | None = None,
        reference: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        durability: str | None = None,
        timeout_ms: int | None = None,
    ) -> Outcome:
        """Post part or all of a hold; what is left returns to available, unless final is False.

        amount_minor: minor units of the hold's currency, 0 < n <= remaining; None takes all. key or id: of this
        capture; a final capture may do without (a second one is then a replay), a partial one may not.
        Returns the Outcome; its status is POSTED, or HOLD_NOT_FOUND, HOLD_EXPIRED, HOLD_ALREADY_CAPTURED,
        HOLD_ALREADY_VOIDED, HOLD_UNDER_REVIEW, EXCEEDS_HOLD, or what the wallets' states forbid. Its transfer_id is
        what can be refunded. A refusal that may pass (a frozen wallet, too high an amount) is not kept: the same
        capture may work later. Raises Unavailable (retry with the same id) or OutcomeUnknown (deadline passed).
        Rule: lua/lib/hold_changes.lua; invariants 3 and 7.
        """
        change = HoldChange(hold_id, Kind.CAPTURE, amount_minor, final, key, id, reference, metadata)
        if key is not None or id is not None:
            return await self._one(change, durability, timeout_ms)
        if not final:
            raise InvalidRequest("key", "given for a capture that is not final, unless an id is", None)
        return await self._end(change, durability, timeout_ms)

    async def raise_hold(
        self,
        hold_id: UUID,
        amount_minor: int,
        *,
        key: str | None = None,
        id: UUID | None = None,
        durability: str | None = None,
        timeout_ms: int | None = None,
    ) -> Outcome:
        """Reserve amount_minor more (incremental authorization), under the rules of a new hold. As hold and capture.

        A tier's largest single amount is compared with the whole hold. A raise comes from no device; what breaks a rule
        is declined, never reviewed.
        """
        return await self._one(
            HoldChange(hold_id, Kind.RAISE_HOLD, amount_minor, True, key, id), durability, timeout_ms
        )

    async def void(
        self,
        hold_id: UUID,
        *,
        reference: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        durability: str | None = None,
        timeout_ms: int | None = None,
    ) -> Outcome:
        """Release what a hold has left. A second void is a replay. Returns POSTED or HOLD_*; raises as capture."""
        change = HoldChange(hold_id, Kind.VOID, reference=reference, metadata=metadata)
        return await self._end(change, durability, timeout_ms)

    async def find_holds(self, hold_ids: Sequence[UUID], *, timeout_ms: int | None = None) -> list[HoldNow | None]:
        """Each hold as it is now, at most 1,024; None for one that Redis does not know (any more)."""
        if len(hold_ids) > MAX_BATCH:
            raise InvalidRequest("hold_ids", f"at most {MAX_BATCH}", f"{len(hold_ids)} ids")
        for hold_id in hold_ids:
            check_id(hold_id, "hold_ids")
        packed = await self._packed_holds(hold_ids, timeout_ms) if hold_ids else []
        return [_hold(hold_id, record) for hold_id, record in zip(hold_ids, packed, strict=True)]

    # What a fraud rule stopped

    async def approve(self, hold_id: UUID, *, durability: str | None = None, timeout_ms: int | None = None) -> Outcome:
        """Let go on what is UNDER_REVIEW: a transfer is posted, a hold may be captured from now on.

        Returns POSTED (of a transfer, the transfer_id is what can be refunded), HOLD_NOT_UNDER_REVIEW, or as capture.
        """
        return await self._end(HoldChange(hold_id, Kind.APPROVE_HOLD), durability, timeout_ms)

    async def reject(
        self, hold_id: UUID, *, reason: str | None = None, durability: str | None = None, timeout_ms: int | None = None
    ) -> Outcome:
        """Release what is UNDER_REVIEW. As void; reason reaches the ledger."""
        return await self._end(HoldChange(hold_id, Kind.VOID, metadata=_reason(reason)), durability, timeout_ms)

    # Top-ups and withdrawals that a provider answers later

    async def start_top_up(
        self,
        wallet_id: int,
        amount_minor: int,
        *,
        expires_in_ms: int | None = DEFAULT_PENDING_MS,
        key: str | None = None,
        id: UUID | None = None,
        currency: str | None = None,
        reference: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        durability: str | None = None,
        timeout_ms: int | None = None,
    ) -> Outcome:
        """A pending top-up: nothing can be spent until confirm(); fail() or its time ends it.

        It is a hold on the currency's external wallet; its id is the outcome's transfer_id. As hold.
        """
        outside = await self._outside_of(wallet_id, currency, timeout_ms)
        request = Hold(
            outside, wallet_id, amount_minor, key, id, Kind.TOP_UP, expires_in_ms, currency, reference, metadata
        )
        return await self._one(request, durability, timeout_ms)

    async def start_withdrawal(
        self,
        wallet_id: int,
        amount_minor: int,
        *,
        expires_in_ms: int | None = DEFAULT_PENDING_MS,
        key: str | None = None,
        id: UUID | None = None,
        currency: str | None = None,
        reference: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        device: str | None = None,
        ip: str | None = None,
        durability: str | None = None,
        timeout_ms: int | None = None,
    ) -> Outcome:
        """A pending withdrawal: the money is locked until confirm() takes it out, or fail() or its time gives it back.

        As hold. A payout that the provider makes after that time is a loss: choose one beyond the provider's own.
        """
        outside = await self._outside_of(wallet_id, currency, timeout_ms)
        request = Hold(
            wallet_id, outside, amount_minor, key, id, Kind.WITHDRAWAL, expires_in_ms, currency, reference, metadata,
            device=device, ip=ip,
        )  # fmt: skip
        return await self._one(request, durability, timeout_ms)

    async def confirm(
        self, pending_id: UUID, psp_reference: str, *, durability: str | None = None, timeout_ms: int | None = None
    ) -> Outcome:
        """The provider's word that a pending top-up or withdrawal happened. Repeating it is a replay.

        psp_reference: the provider's, up to 64 characters; another one later is EXISTS_WITH_DIFFERENT_DETAILS.
        Returns POSTED, HOLD_ALREADY_VOIDED after fail(), HOLD_EXPIRED, or HOLD_NOT_FOUND if it comes too early.
        """
        return await self._end(HoldChange(pending_id, Kind.CAPTURE, reference=psp_reference), durability, timeout_ms)

    async def fail(
        self,
        pending_id: UUID,
        reason: str | None = None,
        *,
        durability: str | None = None,
        timeout_ms: int | None = None,
    ) -> Outcome:
        """The provider's word that it did not happen. As confirm; HOLD_ALREADY_CAPTURED after confirm()."""
        return await self._end(HoldChange(pending_id, Kind.VOID, metadata=_reason(reason)), durability, timeout_ms)

    # Giving back

    async def refund(
        self,
        transfer_id: UUID,
        amount_minor: int | None = None,
        *,
        key: str | None = None,
        id: UUID | None = None,
        reference: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        durability: str | None = None,
        timeout_ms: int | None = None,
    ) -> Outcome:
        """Move a transfer's money back, all that is not refunded yet or a part, however old it is.

        transfer_id: of a transfer, payment, capture, or (a reversal, with the provider's reference) top-up or
        withdrawal. key or id: of this refund.
        Returns POSTED, REFUND_EXCEEDS_TRANSFER, TRANSFER_NOT_FOUND, NOT_REFUNDABLE, INSUFFICIENT_FUNDS, or what the
        wallets' states forbid. A transfer that left the idempotency window is looked up in Postgres: without a
        postgres_url it is TRANSFER_NOT_FOUND. Raises as transfer. Rule: lua/lib/refunds.lua; invariant 8.
        """
        return await self._one(
            Refund(transfer_id, amount_minor, key, id, Kind.REFUND, reference, metadata), durability, timeout_ms
        )

    async def chargeback(
        self,
        transfer_id: UUID,
        amount_minor: int | None = None,
        *,
        key: str | None = None,
        id: UUID | None = None,
        reference: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        durability: str | None = None,
        timeout_ms: int | None = None,
    ) -> Outcome:
        """Reverse a top-up by force, as its bank does: even if the money is spent, or the wallet frozen.

        The wallet may fall below its limit; that is a debt, which later credits pay back first unless its tier says
        otherwise. Doors must ask for a permission of its own. As refund; of anything but a top-up NOT_REFUNDABLE.
        """
        return await self._one(
            Refund(transfer_id, amount_minor, key, id, Kind.CHARGEBACK, reference, metadata), durability, timeout_ms
        )

    async def _end(self, change: HoldChange, durability: str | None, timeout_ms: int | None) -> Outcome:
        """Send a change of a hold under an id derived from the hold, so that a repetition is a replay."""
        id = self._packer.hold_id_of(change.hold_id, _HOW[change.kind])
        return await self._one(change._replace(id=id), durability, timeout_ms)


def _reason(reason: str | None) -> dict[str, Any] | None:
    return None if reason is None else {"reason": reason}


def _hold(hold_id: UUID, packed: bytes) -> HoldNow | None:
    if not packed:
        return None
    found = HOLD.unpack(packed)
    return HoldNow(
        hold_id,
        HoldState(found["state"]),
        Kind(found["purpose"]),
        Review(found["review"]),
        found["debit"],
        found["credit"],
        found["remaining"],
        found["captured"],
        found["expires_at_ms"] or None,
    )
