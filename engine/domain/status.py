"""Every status that a request can end with: defined here once, written into the Lua library from here.

Numbers go over the wire and into records, so they never change; gaps leave room. When several statuses
apply, the lowest number wins (POSTED, zero, is what is left when none does).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum, auto


class Status(StrEnum):
    POSTED = "POSTED"
    UNDER_REVIEW = "UNDER_REVIEW"
    SHARD_NOT_OPEN = "SHARD_NOT_OPEN"
    DEADLINE_PASSED = "DEADLINE_PASSED"
    CHAIN_TOO_LONG = "CHAIN_TOO_LONG"
    LINKED_CHAIN_OPEN = "LINKED_CHAIN_OPEN"
    EXISTS_WITH_DIFFERENT_KIND = "EXISTS_WITH_DIFFERENT_KIND"
    EXISTS_WITH_DIFFERENT_CHAIN = "EXISTS_WITH_DIFFERENT_CHAIN"
    EXISTS_WITH_DIFFERENT_REFERENCE = "EXISTS_WITH_DIFFERENT_REFERENCE"
    EXISTS_WITH_DIFFERENT_DEBIT = "EXISTS_WITH_DIFFERENT_DEBIT"
    EXISTS_WITH_DIFFERENT_CREDIT = "EXISTS_WITH_DIFFERENT_CREDIT"
    EXISTS_WITH_DIFFERENT_AMOUNT = "EXISTS_WITH_DIFFERENT_AMOUNT"
    EXISTS_WITH_DIFFERENT_WALLET = "EXISTS_WITH_DIFFERENT_WALLET"
    EXISTS_WITH_DIFFERENT_OWNER = "EXISTS_WITH_DIFFERENT_OWNER"
    EXISTS_WITH_DIFFERENT_OVERDRAFT_LIMIT = "EXISTS_WITH_DIFFERENT_OVERDRAFT_LIMIT"
    EXISTS_WITH_DIFFERENT_CURRENCY = "EXISTS_WITH_DIFFERENT_CURRENCY"
    EXISTS_WITH_DIFFERENT_TERMS = "EXISTS_WITH_DIFFERENT_TERMS"
    EXISTS_WITH_DIFFERENT_DETAILS = "EXISTS_WITH_DIFFERENT_DETAILS"
    LINKED_FAILED = "LINKED_FAILED"
    LEDGER_BACKLOG = "LEDGER_BACKLOG"
    LEDGER_BEHIND = "LEDGER_BEHIND"
    AMOUNT_OUT_OF_RANGE = "AMOUNT_OUT_OF_RANGE"
    SAME_WALLET = "SAME_WALLET"
    WALLET_EXISTS = "WALLET_EXISTS"
    HOLD_EXISTS = "HOLD_EXISTS"
    HOLD_NOT_FOUND = "HOLD_NOT_FOUND"
    HOLD_ALREADY_CAPTURED = "HOLD_ALREADY_CAPTURED"
    HOLD_ALREADY_VOIDED = "HOLD_ALREADY_VOIDED"
    HOLD_EXPIRED = "HOLD_EXPIRED"
    HOLD_NOT_DUE = "HOLD_NOT_DUE"
    HOLD_UNDER_REVIEW = "HOLD_UNDER_REVIEW"
    HOLD_NOT_UNDER_REVIEW = "HOLD_NOT_UNDER_REVIEW"
    TRANSFER_NOT_FOUND = "TRANSFER_NOT_FOUND"
    NOT_REFUNDABLE = "NOT_REFUNDABLE"
    DEBIT_WALLET_NOT_FOUND = "DEBIT_WALLET_NOT_FOUND"
    CREDIT_WALLET_NOT_FOUND = "CREDIT_WALLET_NOT_FOUND"
    TIER_NOT_FOUND = "TIER_NOT_FOUND"
    CURRENCY_MISMATCH = "CURRENCY_MISMATCH"
    WALLET_CLOSED = "WALLET_CLOSED"
    DEBIT_FROZEN = "DEBIT_FROZEN"
    CREDIT_FROZEN = "CREDIT_FROZEN"
    WALLET_NOT_EMPTY = "WALLET_NOT_EMPTY"
    EXCEEDS_HOLD = "EXCEEDS_HOLD"
    REFUND_EXCEEDS_TRANSFER = "REFUND_EXCEEDS_TRANSFER"
    LIMIT_EXCEEDED = "LIMIT_EXCEEDED"
    INSUFFICIENT_FUNDS = "INSUFFICIENT_FUNDS"
    CONDITION_FAILED = "CONDITION_FAILED"
    BALANCE_OUT_OF_RANGE = "BALANCE_OUT_OF_RANGE"
    NOT_APPLIED = "NOT_APPLIED"


class Kept(Enum):
    """Whether an answer stays with the transfer id.

    Of a capture or an approval outside a chain, DEBIT_FROZEN, CREDIT_FROZEN, EXCEEDS_HOLD and BALANCE_OUT_OF_RANGE do
    not, although they are RECORDED for others: a provider repeats its word, and the hold itself ends only once.
    """

    RECORDED = auto()  # kept: a retry gets this very answer
    MOMENT = auto()  # not kept, and true of the moment only: a retry may be decided otherwise
    CONTENT = auto()  # not kept, and true whenever the same is asked again


@dataclass(frozen=True, slots=True)
class StatusRule:
    """number: on the wire and by precedence. retryable: send the same id again, later.
    kept: whether a retry gets this very answer."""

    number: int
    status: Status
    retryable: bool
    kept: Kept
    meaning: str

    @property
    def recorded(self) -> bool:
        return self.kept is Kept.RECORDED


_FINAL, _RETRY = False, True
_RECORDED, _MOMENT, _CONTENT = Kept

# fmt: off
STATUS_RULES: tuple[StatusRule, ...] = tuple(
    StatusRule(*row)
    for row in (
        (0, Status.POSTED, _FINAL, _RECORDED, "accepted; journalled under the sequence in the answer"),
        (1, Status.UNDER_REVIEW, _FINAL, _RECORDED,
            "accepted as a hold that an operator approves or rejects, because of a fraud rule"),
        (2, Status.SHARD_NOT_OPEN, _RETRY, _MOMENT,
            "this server process's history is not yet checked against the ledger"),
        (4, Status.DEADLINE_PASSED, _RETRY, _MOMENT,
            "the request reached the server after its deadline; it was not decided"),
        (6, Status.CHAIN_TOO_LONG, _FINAL, _CONTENT, "the chain has more requests than a batch may"),
        (8, Status.LINKED_CHAIN_OPEN, _FINAL, _CONTENT, "the last request is linked to one that does not come"),
        (10, Status.EXISTS_WITH_DIFFERENT_KIND, _FINAL, _CONTENT, "the id was used for another kind or flags"),
        (11, Status.EXISTS_WITH_DIFFERENT_CHAIN, _FINAL, _CONTENT,
            "the id was used in another chain, or alone"),
        (12, Status.EXISTS_WITH_DIFFERENT_DEBIT, _FINAL, _CONTENT, "the id was used with another debit wallet"),
        (13, Status.EXISTS_WITH_DIFFERENT_REFERENCE, _FINAL, _CONTENT,
            "the id was used for another hold or another transfer to refund"),
        (14, Status.EXISTS_WITH_DIFFERENT_CREDIT, _FINAL, _CONTENT, "the id was used with another credit wallet"),
        (16, Status.EXISTS_WITH_DIFFERENT_AMOUNT, _FINAL, _CONTENT,
            "the id was used with another amount, or value to set"),
        (18, Status.EXISTS_WITH_DIFFERENT_WALLET, _FINAL, _CONTENT, "the id was used for another wallet"),
        (20, Status.EXISTS_WITH_DIFFERENT_OWNER, _FINAL, _CONTENT, "the wallet was opened for another owner"),
        (22, Status.EXISTS_WITH_DIFFERENT_OVERDRAFT_LIMIT, _FINAL, _CONTENT,
            "the wallet was opened with another overdraft limit, or the currency with another exponent"),
        (24, Status.EXISTS_WITH_DIFFERENT_CURRENCY, _FINAL, _CONTENT, "the id was used with another currency"),
        (25, Status.EXISTS_WITH_DIFFERENT_TERMS, _FINAL, _CONTENT,
            "the id was used with another expiry, condition, purpose or other limits"),
        (26, Status.EXISTS_WITH_DIFFERENT_DETAILS, _FINAL, _CONTENT,
            "the id was used with another reference or metadata"),
        (30, Status.LINKED_FAILED, _FINAL, _MOMENT,
            "another request of the chain was refused; kept if that one's refusal is"),
        (40, Status.LEDGER_BACKLOG, _RETRY, _MOMENT,
            "the ledger is too far behind, or the generation of outcomes is full"),
        (42, Status.LEDGER_BEHIND, _RETRY, _MOMENT,
            "the ledger was read too early to know all refunds of the transfer"),
        (48, Status.AMOUNT_OUT_OF_RANGE, _FINAL, _CONTENT, "the amount is no integer from 1 to 2^53-1"),
        (49, Status.HOLD_EXISTS, _FINAL, _MOMENT, "a hold under this id is open since before the idempotency window"),
        (51, Status.HOLD_NOT_FOUND, _FINAL, _MOMENT, "no hold has this id, or it ended before the idempotency window"),
        (52, Status.HOLD_ALREADY_CAPTURED, _FINAL, _RECORDED, "the hold ended by a final capture"),
        (53, Status.HOLD_ALREADY_VOIDED, _FINAL, _RECORDED, "the hold ended by a void"),
        (54, Status.HOLD_EXPIRED, _FINAL, _RECORDED, "the hold's time is over"),
        (55, Status.HOLD_NOT_DUE, _FINAL, _MOMENT, "the hold's time is not over; only the sweeper sees this"),
        (56, Status.HOLD_UNDER_REVIEW, _FINAL, _MOMENT, "the hold waits for an operator's approval"),
        (57, Status.HOLD_NOT_UNDER_REVIEW, _FINAL, _RECORDED, "there is nothing to approve"),
        (58, Status.TRANSFER_NOT_FOUND, _FINAL, _MOMENT, "no transfer has this id"),
        (59, Status.NOT_REFUNDABLE, _FINAL, _RECORDED,
            "the id is of no transfer that can be refunded this way: a refund, a hold, a refusal"),
        (60, Status.SAME_WALLET, _FINAL, _RECORDED, "debit and credit are one wallet"),
        (61, Status.WALLET_EXISTS, _FINAL, _RECORDED, "the wallet was opened before, under another id"),
        (62, Status.DEBIT_WALLET_NOT_FOUND, _FINAL, _MOMENT, "the debit wallet was never opened"),
        (64, Status.CREDIT_WALLET_NOT_FOUND, _FINAL, _MOMENT, "the credit wallet was never opened"),
        (66, Status.TIER_NOT_FOUND, _FINAL, _MOMENT, "the tier has no limits yet"),
        (70, Status.CURRENCY_MISMATCH, _FINAL, _RECORDED,
            "the wallets, or the request, name different currencies"),
        (72, Status.WALLET_CLOSED, _FINAL, _RECORDED, "the debit or the credit wallet is closed"),
        (74, Status.DEBIT_FROZEN, _FINAL, _RECORDED, "the debit wallet may not be debited"),
        (76, Status.CREDIT_FROZEN, _FINAL, _RECORDED, "the credit wallet may not be credited"),
        (78, Status.WALLET_NOT_EMPTY, _FINAL, _RECORDED, "the wallet to close has money, debt or open holds"),
        (80, Status.EXCEEDS_HOLD, _FINAL, _RECORDED, "the amount is more than the hold has left"),
        (82, Status.REFUND_EXCEEDS_TRANSFER, _FINAL, _RECORDED,
            "the amount is more than the transfer has left to refund"),
        (90, Status.LIMIT_EXCEEDED, _FINAL, _RECORDED,
            "a fraud rule of the debit wallet's tier; the answer says which, what was used, and when to retry"),
        (100, Status.INSUFFICIENT_FUNDS, _FINAL, _RECORDED,
            "the amount is more than is available plus the overdraft limit"),
        (105, Status.CONDITION_FAILED, _FINAL, _RECORDED,
            "the debit wallet's version, or what would be available after, is not as the request demands"),
        (110, Status.BALANCE_OUT_OF_RANGE, _FINAL, _RECORDED, "a balance would leave +-(2^53-1)"),
        (254, Status.NOT_APPLIED, _FINAL, _CONTENT,
            "only from lookup: no request with this id whose deadline has passed was or will be applied"),
    )
)
# fmt: on

NUMBER_OF: dict[Status, int] = {rule.status: rule.number for rule in STATUS_RULES}
STATUS_OF: dict[int, Status] = {rule.number: rule.status for rule in STATUS_RULES}
RETRYABLE: frozenset[Status] = frozenset(rule.status for rule in STATUS_RULES if rule.retryable)
RECORDED: frozenset[Status] = frozenset(rule.status for rule in STATUS_RULES if rule.recorded)
ACCEPTED: frozenset[Status] = frozenset({Status.POSTED, Status.UNDER_REVIEW})
"""Journalled under the sequence in the answer; everything else is a refusal."""
