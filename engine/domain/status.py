"""Every status that a request can end with: defined here once, generated into the Lua library from here.

Numbers go over the wire and into records, so they never change; gaps leave room. When several statuses
apply, the lowest number wins (POSTED, zero, is what is left when none does).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    POSTED = "POSTED"
    SHARD_NOT_OPEN = "SHARD_NOT_OPEN"
    DEADLINE_PASSED = "DEADLINE_PASSED"
    EXISTS_WITH_DIFFERENT_KIND = "EXISTS_WITH_DIFFERENT_KIND"
    EXISTS_WITH_DIFFERENT_DEBIT = "EXISTS_WITH_DIFFERENT_DEBIT"
    EXISTS_WITH_DIFFERENT_CREDIT = "EXISTS_WITH_DIFFERENT_CREDIT"
    EXISTS_WITH_DIFFERENT_AMOUNT = "EXISTS_WITH_DIFFERENT_AMOUNT"
    EXISTS_WITH_DIFFERENT_WALLET = "EXISTS_WITH_DIFFERENT_WALLET"
    EXISTS_WITH_DIFFERENT_OWNER = "EXISTS_WITH_DIFFERENT_OWNER"
    EXISTS_WITH_DIFFERENT_OVERDRAFT_LIMIT = "EXISTS_WITH_DIFFERENT_OVERDRAFT_LIMIT"
    EXISTS_WITH_DIFFERENT_CURRENCY = "EXISTS_WITH_DIFFERENT_CURRENCY"
    EXISTS_WITH_DIFFERENT_DETAILS = "EXISTS_WITH_DIFFERENT_DETAILS"
    LEDGER_BACKLOG = "LEDGER_BACKLOG"
    AMOUNT_OUT_OF_RANGE = "AMOUNT_OUT_OF_RANGE"
    SAME_WALLET = "SAME_WALLET"
    WALLET_EXISTS = "WALLET_EXISTS"
    DEBIT_WALLET_NOT_FOUND = "DEBIT_WALLET_NOT_FOUND"
    CREDIT_WALLET_NOT_FOUND = "CREDIT_WALLET_NOT_FOUND"
    CURRENCY_MISMATCH = "CURRENCY_MISMATCH"
    INSUFFICIENT_FUNDS = "INSUFFICIENT_FUNDS"
    BALANCE_OUT_OF_RANGE = "BALANCE_OUT_OF_RANGE"
    NOT_APPLIED = "NOT_APPLIED"


@dataclass(frozen=True, slots=True)
class StatusRule:
    """number: on the wire and by precedence. retryable: the same id may be decided otherwise later.
    recorded: kept under the transfer id, so that a retry gets this very answer."""

    number: int
    status: Status
    retryable: bool
    recorded: bool
    meaning: str


_FINAL, _RETRY = False, True
_RECORDED, _NOT_RECORDED = True, False

STATUS_RULES: tuple[StatusRule, ...] = tuple(
    StatusRule(*row)
    for row in (
        (0, Status.POSTED, _FINAL, _RECORDED, "accepted; journalled under the sequence in the answer"),
        (
            2,
            Status.SHARD_NOT_OPEN,
            _RETRY,
            _NOT_RECORDED,
            "this server process's history is not yet checked against the ledger",
        ),
        (
            4,
            Status.DEADLINE_PASSED,
            _RETRY,
            _NOT_RECORDED,
            "the request reached the server after its deadline; it was not decided",
        ),
        (
            10,
            Status.EXISTS_WITH_DIFFERENT_KIND,
            _FINAL,
            _NOT_RECORDED,
            "the id was used for another kind or flags",
        ),
        (
            12,
            Status.EXISTS_WITH_DIFFERENT_DEBIT,
            _FINAL,
            _NOT_RECORDED,
            "the id was used with another debit wallet",
        ),
        (
            14,
            Status.EXISTS_WITH_DIFFERENT_CREDIT,
            _FINAL,
            _NOT_RECORDED,
            "the id was used with another credit wallet",
        ),
        (
            16,
            Status.EXISTS_WITH_DIFFERENT_AMOUNT,
            _FINAL,
            _NOT_RECORDED,
            "the id was used with another amount",
        ),
        (
            18,
            Status.EXISTS_WITH_DIFFERENT_WALLET,
            _FINAL,
            _NOT_RECORDED,
            "the id was used to open another wallet",
        ),
        (
            20,
            Status.EXISTS_WITH_DIFFERENT_OWNER,
            _FINAL,
            _NOT_RECORDED,
            "the wallet was opened for another owner",
        ),
        (
            22,
            Status.EXISTS_WITH_DIFFERENT_OVERDRAFT_LIMIT,
            _FINAL,
            _NOT_RECORDED,
            "the wallet was opened with another overdraft limit",
        ),
        (
            24,
            Status.EXISTS_WITH_DIFFERENT_CURRENCY,
            _FINAL,
            _NOT_RECORDED,
            "the id was used with another currency",
        ),
        (
            26,
            Status.EXISTS_WITH_DIFFERENT_DETAILS,
            _FINAL,
            _NOT_RECORDED,
            "the id was used with another reference or metadata",
        ),
        (
            40,
            Status.LEDGER_BACKLOG,
            _RETRY,
            _NOT_RECORDED,
            "the ledger is too far behind, or the generation of outcomes is full",
        ),
        (50, Status.AMOUNT_OUT_OF_RANGE, _FINAL, _NOT_RECORDED, "the amount is no integer from 1 to 2^53-1"),
        (52, Status.SAME_WALLET, _FINAL, _RECORDED, "debit and credit are one wallet"),
        (60, Status.WALLET_EXISTS, _FINAL, _RECORDED, "the wallet was opened before, under another id"),
        (62, Status.DEBIT_WALLET_NOT_FOUND, _FINAL, _NOT_RECORDED, "the debit wallet was never opened"),
        (64, Status.CREDIT_WALLET_NOT_FOUND, _FINAL, _NOT_RECORDED, "the credit wallet was never opened"),
        (
            70,
            Status.CURRENCY_MISMATCH,
            _FINAL,
            _RECORDED,
            "the wallets, or the request, name different currencies",
        ),
        (
            100,
            Status.INSUFFICIENT_FUNDS,
            _FINAL,
            _RECORDED,
            "the amount is more than is available plus the overdraft limit",
        ),
        (110, Status.BALANCE_OUT_OF_RANGE, _FINAL, _RECORDED, "a balance would leave +-(2^53-1)"),
        (
            254,
            Status.NOT_APPLIED,
            _FINAL,
            _NOT_RECORDED,
            "only from lookup: no request with this id whose deadline has passed was or will be applied",
        ),
    )
)

NUMBER_OF: dict[Status, int] = {rule.status: rule.number for rule in STATUS_RULES}
STATUS_OF: dict[int, Status] = {rule.number: rule.status for rule in STATUS_RULES}
RETRYABLE: frozenset[Status] = frozenset(rule.status for rule in STATUS_RULES if rule.retryable)
RECORDED: frozenset[Status] = frozenset(rule.status for rule in STATUS_RULES if rule.recorded)
