"""What the oracle decides of a request that comes for the first time.

Of several refusals that apply, the one with the lowest number is the answer: so here each is looked for, in no
special order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, assert_never
from uuid import UUID

from engine import (
    Hold,
    HoldChange,
    HoldState,
    Kind,
    OpenWallet,
    Refund,
    Review,
    SetTierLimits,
    TierLimits,
    Transfer,
    WalletChange,
)
from engine.domain.status import ACCEPTED, NUMBER_OF, Status
from engine.domain.wallet import FLAG_CREDIT_FROZEN, FLAG_DEBIT_FROZEN
from tests.model_content import Expire, Request
from tests.model_rules import Attempts, Broken, Tried, broken_rules, count_usage, named
from tests.model_state import LIMIT, ModelHold, ModelWallet, Moved, State, Usage

REFUNDABLE = frozenset({Kind.TRANSFER, Kind.TOP_UP, Kind.PAYMENT, Kind.WITHDRAWAL})


class Decision(NamedTuple):
    status: str
    amount: int = 0
    rule: int = 0
    used: int = 0
    retry_at_ms: int = 0


class Decisions:
    """ledger: whether what Redis forgets of transfers is looked up in Postgres."""

    def __init__(self, *, ledger: bool = False) -> None:
        self.state = State()
        self.attempts = Attempts()
        self.generation = 1
        self.ledger = ledger
        self._now_ms = 0

    def _decide(self, id: UUID, request: Request, in_chain: bool) -> Decision:
        match request:
            case Transfer() | Hold():
                return self._move(id, request, in_chain)
            case HoldChange():
                return self._change_hold(id, request)
            case Expire():
                return self._expire(request)
            case Refund():
                return self._refund(id, request)
            case OpenWallet():
                return self._open(request)
            case WalletChange():
                return self._change_wallet(request)
            case SetTierLimits():
                self.state.tiers[request.tier] = request.limits
                self._journalled()
                return Decision("POSTED")
        assert_never(request)

    def _open(self, request: OpenWallet) -> Decision:
        if request.wallet_id in self.state.wallets:
            return Decision("WALLET_EXISTS")
        opened = ModelWallet(request.currency, request.overdraft_limit_minor, external=request.wallet_id < 0)
        self.state.wallets[request.wallet_id] = opened
        self._journalled(opened)
        return Decision("POSTED")

    def _change_wallet(self, request: WalletChange) -> Decision:
        wallet, kind, value = self.state.wallets.get(request.wallet_id), request.kind, request.value
        if wallet is None:
            return Decision("DEBIT_WALLET_NOT_FOUND")
        has_money = wallet.available != 0 or wallet.locked != 0
        refused = _refusal(
            (kind is Kind.SET_TIER and value != 0 and value not in self.state.tiers, "TIER_NOT_FOUND"),
            (wallet.closed, "WALLET_CLOSED"),
            (kind is Kind.CLOSE_WALLET and has_money, "WALLET_NOT_EMPTY"),
        )
        if refused:
            return Decision(refused)
        if kind in (Kind.FREEZE, Kind.UNFREEZE):
            if value & FLAG_DEBIT_FROZEN:
                wallet.debits_frozen = kind is Kind.FREEZE
            if value & FLAG_CREDIT_FROZEN:
                wallet.credits_frozen = kind is Kind.FREEZE
        elif kind is Kind.CLOSE_WALLET:
            wallet.closed = True
        elif kind is Kind.SET_OVERDRAFT_LIMIT:
            wallet.limit = value
        else:
            self._set_tier(wallet, value)
        self._journalled(wallet)
        return Decision("POSTED")

    @staticmethod
    def _set_tier(wallet: ModelWallet, tier: int) -> None:
        """Without a tier nothing is counted: what was used, and a debt that was set aside, are forgotten."""
        wallet.tier = tier
        if tier == 0:
            wallet.usage, wallet.debt = Usage(), 0

    def _move(self, id: UUID, request: Transfer | Hold, in_chain: bool) -> Decision:
        state, now_ms = self.state, self._now_ms
        debit, credit = state.wallets.get(request.debit), state.wallets.get(request.credit)
        holds = isinstance(request, Hold)
        if holds and id in state.holds:
            return Decision("HOLD_EXISTS")
        limits = self._limits(debit)
        tried = self.attempts.begin(request.debit, limits, request.device, request.ip, now_ms) if limits else Tried()
        refused = _refusal(
            (request.debit == request.credit, "SAME_WALLET"),
            (debit is None, "DEBIT_WALLET_NOT_FOUND"),
            (credit is None, "CREDIT_WALLET_NOT_FOUND"),
        )
        if refused or debit is None or credit is None:
            return Decision(refused or "")
        amount = request.amount_minor
        if isinstance(request, Transfer) and request.balancing and not debit.external:
            amount = max(0, min(amount, debit.available))
        broken, reviewed = None, False
        if limits:
            found = broken_rules(debit, limits, self.attempts, tried, amount, request.device, request.ip, now_ms)
            broken, reviewed = named(found, limits)
        reviewed = reviewed and not in_chain
        after = debit.available - amount
        least = request.min_available_after_minor
        refused = _refusal(
            (debit.currency != credit.currency, "CURRENCY_MISMATCH"),
            (request.currency not in (None, debit.currency), "CURRENCY_MISMATCH"),
            *_states(debit, credit),
            (broken is not None and not reviewed, "LIMIT_EXCEEDED"),
            (amount == 0 or _too_low(debit, after), "INSUFFICIENT_FUNDS"),
            (request.expect_version not in (None, debit.version), "CONDITION_FAILED"),
            (least is not None and after < least, "CONDITION_FAILED"),
            (after < -LIMIT or _too_high(credit, amount), "BALANCE_OUT_OF_RANGE"),
            ((holds or reviewed) and debit.locked + amount > LIMIT, "BALANCE_OUT_OF_RANGE"),
        )
        if refused:
            return _limited(broken) if refused == "LIMIT_EXCEEDED" and broken else Decision(refused)
        if reviewed and id in state.holds:
            return Decision("HOLD_EXISTS")
        if limits:
            count_usage(debit, limits, amount, None if reviewed else request.device, now_ms)
        if holds or reviewed:
            self._hold(id, request, amount, reviewed)
            self._journalled(debit)
            return Decision("UNDER_REVIEW" if reviewed else "POSTED", amount, broken.rule if broken else 0)
        debit.available -= amount
        credit.available += amount
        assert isinstance(request, Transfer)
        state.moved[id] = Moved(request.kind, request.debit, request.credit, amount)
        self._journalled(debit, credit)
        return Decision("POSTED", amount)

    def _hold(self, id: UUID, request: Transfer | Hold, amount: int, reviewed: bool) -> None:
        expires_at_ms, purpose, review = None, Kind.TRANSFER, Review.NONE
        if isinstance(request, Hold):
            purpose, review = request.purpose, Review.HOLD if reviewed else Review.NONE
            if request.expires_in_ms is not None:
                expires_at_ms = self._now_ms + request.expires_in_ms
        else:
            purpose, review = request.kind, Review.TRANSFER
        debit = self.state.wallets[request.debit]
        debit.available -= amount
        debit.locked += amount
        self.state.holds[id] = ModelHold(request.debit, request.credit, purpose, amount, expires_at_ms, review)

    def _limits(self, wallet: ModelWallet | None) -> TierLimits | None:
        return self.state.tiers[wallet.tier] if wallet and wallet.tier else None

    # Holds

    def _change_hold(self, id: UUID, request: HoldChange) -> Decision:
        hold = self.state.holds.get(request.hold_id)
        over = self._over(hold)
        if over or hold is None:
            return Decision(over or "HOLD_NOT_FOUND")
        debit, credit = self.state.wallets[hold.debit], self.state.wallets[hold.credit]
        kind, amount = request.kind, request.amount_minor
        moves = kind is Kind.CAPTURE or (kind is Kind.APPROVE_HOLD and hold.review is Review.TRANSFER)
        if amount is None and moves:
            amount = hold.remaining
        refused = _refusal(
            (kind in (Kind.CAPTURE, Kind.RAISE_HOLD) and hold.review is not Review.NONE, "HOLD_UNDER_REVIEW"),
            (kind is Kind.APPROVE_HOLD and hold.review is Review.NONE, "HOLD_NOT_UNDER_REVIEW"),
            *(_states(debit, credit) if moves or kind is Kind.RAISE_HOLD else ()),
            (moves and (amount or 0) > hold.remaining, "EXCEEDS_HOLD"),
            (moves and _too_high(credit, amount or 0), "BALANCE_OUT_OF_RANGE"),
        )
        if refused:
            return Decision(refused)
        if kind is Kind.RAISE_HOLD:
            return self._raise_hold(hold, debit, amount or 0)
        if kind is Kind.VOID:
            return self._release(hold, debit, HoldState.VOIDED)
        if not moves:
            hold.review = Review.NONE
            self._journalled(debit)
            return Decision("POSTED")
        return self._capture(id, hold, debit, credit, amount or 0, final=kind is Kind.APPROVE_HOLD or request.final)

    def _over(self, hold: ModelHold | None) -> str | None:
        """Why nothing can become of the hold any more."""
        if hold is None:
            return "HOLD_NOT_FOUND"
        timed_out = hold.expires_at_ms is not None and self._now_ms >= hold.expires_at_ms
        return _refusal(
            (hold.state is HoldState.CAPTURED, "HOLD_ALREADY_CAPTURED"),
            (hold.state is HoldState.VOIDED, "HOLD_ALREADY_VOIDED"),
            (hold.state is HoldState.EXPIRED or timed_out, "HOLD_EXPIRED"),
        )

    def _capture(
        self, id: UUID, hold: ModelHold, debit: ModelWallet, credit: ModelWallet, amount: int, *, final: bool
    ) -> Decision:
        released = hold.remaining - amount if final else 0
        debit.locked -= amount + released
        debit.available += released
        credit.available += amount
        hold.remaining -= amount + released
        hold.captured += amount
        hold.review = Review.NONE
        if hold.remaining == 0:
            self._end(hold, HoldState.CAPTURED)
        self.state.moved[id] = Moved(hold.purpose, hold.debit, hold.credit, amount)
        self._journalled(debit, credit)
        return Decision("POSTED", amount)

    def _release(self, hold: ModelHold, debit: ModelWallet, state: HoldState) -> Decision:
        released = hold.remaining
        debit.locked -= released
        debit.available += released
        hold.remaining = 0
        self._end(hold, state)
        self._journalled(debit)
        return Decision("POSTED", released)

    def _end(self, hold: ModelHold, state: HoldState) -> None:
        hold.state, hold.ended_in = state, self.generation

    def _raise_hold(self, hold: ModelHold, debit: ModelWallet, amount: int) -> Decision:
        """Under the rules of a new hold; what breaks one is declined, also where a new hold would be reviewed."""
        limits, broken = self._limits(debit), None
        if limits:
            tried = self.attempts.begin(hold.debit, limits, None, None, self._now_ms)
            whole = hold.captured + hold.remaining + amount
            found = broken_rules(debit, limits, self.attempts, tried, amount, None, None, self._now_ms, whole)
            broken, _ = named(found, limits)
        after = debit.available - amount
        refused = _refusal(
            (broken is not None, "LIMIT_EXCEEDED"),
            (_too_low(debit, after), "INSUFFICIENT_FUNDS"),
            (after < -LIMIT or debit.locked + amount > LIMIT, "BALANCE_OUT_OF_RANGE"),
            (hold.captured + hold.remaining + amount > LIMIT, "BALANCE_OUT_OF_RANGE"),
        )
        if refused:
            return _limited(broken) if refused == "LIMIT_EXCEEDED" and broken else Decision(refused)
        if limits:
            count_usage(debit, limits, amount, None, self._now_ms)
        debit.available -= amount
        debit.locked += amount
        hold.remaining += amount
        self._journalled(debit)
        return Decision("POSTED", amount)

    def _expire(self, request: Expire) -> Decision:
        hold = self.state.holds.get(request.hold_id)
        if hold is None or hold.state is not HoldState.OPEN:
            return Decision(self._over(hold) or "")
        if self._over(hold) is None:
            return Decision("HOLD_NOT_DUE")
        return self._release(hold, self.state.wallets[hold.debit], HoldState.EXPIRED)

    # Refunds

    def _refund(self, id: UUID, request: Refund) -> Decision:
        state, original_id, forced = self.state, request.transfer_id, request.kind is Kind.CHARGEBACK
        moved, kept = state.moved.get(original_id), state.kept.get(original_id)
        accepted = kept is not None and kept.answer.status in ACCEPTED
        topped_up = moved is not None and moved.kind is Kind.TOP_UP and state.wallets[moved.debit].external
        refused = _refusal(
            (not accepted and not (self.ledger and moved), "TRANSFER_NOT_FOUND"),
            (moved is None or moved.kind not in REFUNDABLE, "NOT_REFUNDABLE"),
            (forced and not topped_up, "NOT_REFUNDABLE"),
        )
        if refused or moved is None:
            return Decision(refused or "")
        debit, credit = state.wallets[moved.credit], state.wallets[moved.debit]
        so_far = state.refunded.get(original_id, (0, 0))[0]
        amount = moved.amount - so_far if request.amount_minor is None else request.amount_minor
        after = debit.available - amount
        refused = _refusal(
            *_states(debit, credit, forced=forced),
            (amount < 1 or so_far + amount > moved.amount, "REFUND_EXCEEDS_TRANSFER"),
            (not forced and _too_low(debit, after), "INSUFFICIENT_FUNDS"),
            (after < -LIMIT or _too_high(credit, amount), "BALANCE_OUT_OF_RANGE"),
        )
        if refused:
            return Decision(refused)
        debit.available -= amount
        credit.available += amount
        limits = self._limits(debit)
        if forced and limits and not limits.debt_first:
            debit.debt = max(debit.debt, -(debit.available + debit.limit))
        state.refunded[original_id] = (so_far + amount, self.generation)
        state.moved[id] = Moved(request.kind, moved.credit, moved.debit, amount)
        self._journalled(debit, credit)
        return Decision("POSTED", amount)

    def _journalled(self, *changed: ModelWallet) -> None:
        for wallet in changed:
            wallet.version += 1
            if wallet.available >= -wallet.limit:
                wallet.debt = 0
        self.state.sequence += 1
        self.state.time_ms = self._now_ms


def _refusal(*found: tuple[bool, str]) -> str | None:
    """Of the statuses that apply, the one that is answered; None if none does."""
    return min((status for applies, status in found if applies), key=lambda one: NUMBER_OF[Status(one)], default=None)


def _states(debit: ModelWallet, credit: ModelWallet, *, forced: bool = False) -> Iterator[tuple[bool, str]]:
    """forced: a chargeback asks nothing of the wallet that it takes from."""
    yield (debit.closed and not forced) or credit.closed, "WALLET_CLOSED"
    yield debit.debits_frozen and not forced, "DEBIT_FROZEN"
    yield credit.credits_frozen, "CREDIT_FROZEN"


def _too_low(wallet: ModelWallet, available: int) -> bool:
    return not wallet.external and available < wallet.floor


def _too_high(wallet: ModelWallet, more: int) -> bool:
    return wallet.available + wallet.locked + more > LIMIT


def _limited(broken: Broken) -> Decision:
    return Decision("LIMIT_EXCEEDED", 0, broken.rule, broken.used, broken.retry_at_ms)
