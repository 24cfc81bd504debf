"""The one table of operations. Routing, validation, scopes, idempotency, the OpenAPI document and the tests of access
come from it, so they cannot drift apart."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from msgspec import Struct

from gateway.http import ops, reads, writes
from gateway.http import types as t
from gateway.http.call import JSON, Handler


class Who(StrEnum):
    """Which keys may call: any with the scope, or only those that are not bound to an owner."""

    ANYBODY = "anybody"  # no key at all
    OWNERS = "owners"
    OPERATORS = "operators"


class Operation(NamedTuple):
    """needs_id: an Idempotency-Key must come with it. refusals: HTTP statuses besides those that all operations have.
    content_type: of what is answered. raw: what is answered when it is no Struct, in words."""

    id: str
    method: str
    path: str
    summary: str
    handler: Handler
    scope: str = "read"
    who: Who = Who.OWNERS
    body: type[Struct] | None = None
    query: type[Struct] | None = None
    answer: type[Struct] | None = None
    success: tuple[int, ...] = (200,)
    refusals: tuple[int, ...] = (404,)
    needs_id: bool = False
    may_have_id: bool = False
    writes: bool = False
    content_types: tuple[str, ...] = (JSON,)


_MOVED = (201, 202)
_REFUSED = (402, 404, 409, 412, 422)
_ENDED = (404, 409, 422)


def _move(id: str, path: str, summary: str, handler: Handler, body: type[Struct], who: Who = Who.OWNERS) -> Operation:
    """A movement of money: POST with an Idempotency-Key."""
    return Operation(
        id, "POST", path, summary, handler, "write", who, body, None, t.OutcomeAnswer, _MOVED, _REFUSED,
        needs_id=True, writes=True,
    )  # fmt: skip


def _end(id: str, path: str, summary: str, handler: Handler, body: type[Struct], who: Who, scope: str) -> Operation:
    """The end of a hold: it happens once, so that it needs no key of its own."""
    return Operation(
        id, "POST", path, summary, handler, scope, who, body, None, t.OutcomeAnswer, (200, 202), _ENDED, writes=True
    )


def _read(
    id: str,
    path: str,
    summary: str,
    handler: Handler,
    answer: type[Struct],
    query: type[Struct] | None = None,
    who: Who = Who.OWNERS,
    content_types: tuple[str, ...] = (JSON,),
) -> Operation:
    return Operation(id, "GET", path, summary, handler, "read", who, None, query, answer, content_types=content_types)


def _open(id: str, path: str, summary: str, handler: Handler, content_type: str, answer: type[Struct] | None = None,
          success: tuple[int, ...] = (200,)) -> Operation:  # fmt: skip
    return Operation(
        id, "GET", path, summary, handler, who=Who.ANYBODY, answer=answer, success=success, refusals=(),
        content_types=(content_type,),
    )  # fmt: skip


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "openWallet", "POST", "/v1/wallets", "Open a wallet; the same again is a replay", writes.open_wallet, "write",
        Who.OWNERS, t.OpenWalletBody, None, t.OpenedAnswer, (201,), (403, 409, 422), writes=True,
    ),
    _read("listWallets", "/v1/wallets", "The wallets of an owner", reads.wallets, t.WalletPage, t.WalletsQuery),
    _read("getWallet", "/v1/wallets/{wallet_id}", "A wallet as it is now", reads.wallet, t.WalletAnswer),
    Operation(
        "changeWallet", "PATCH", "/v1/wallets/{wallet_id}", "Freeze, unfreeze, close, set tier or overdraft limit",
        writes.change_wallet, "admin", Who.OPERATORS, t.ChangeWalletBody, None, t.WalletAnswer, (200,), (404, 409, 422),
        may_have_id=True, writes=True,
    ),
    _read("getBalance", "/v1/wallets/{wallet_id}/balance", "What a wallet has now, or had at a time", reads.balance,
          t.BalanceAnswer, t.BalanceQuery),
    _read("listEntries", "/v1/wallets/{wallet_id}/entries", "The statement of a wallet", reads.entries, t.EntryPage,
          t.EntriesQuery, content_types=(JSON, "text/csv")),
    _move("topUp", "/v1/top-ups", "Bring money in, at once or in two steps", writes.top_up, t.TopUpBody, Who.OPERATORS),
    _end("confirmTopUp", "/v1/top-ups/{id}/confirm", "The provider says that it happened", writes.confirm_top_up,
         t.ConfirmBody, Who.OPERATORS, "write"),
    _end("failTopUp", "/v1/top-ups/{id}/fail", "The provider says that it did not happen", writes.fail_top_up,
         t.FailBody, Who.OPERATORS, "write"),
    _move("transfer", "/v1/transfers", "Move money from one wallet to another", writes.transfer, t.TransferBody),
    _move("pay", "/v1/payments", "Pay a merchant's wallet", writes.payment, t.TransferBody),
    _move("withdraw", "/v1/withdrawals", "Take money out, at once or in two steps", writes.withdrawal,
          t.WithdrawalBody),
    _end("confirmWithdrawal", "/v1/withdrawals/{id}/confirm", "The provider says that it happened",
         writes.confirm_withdrawal, t.ConfirmBody, Who.OPERATORS, "write"),
    _end("failWithdrawal", "/v1/withdrawals/{id}/fail", "The provider says that it did not happen",
         writes.fail_withdrawal, t.FailBody, Who.OPERATORS, "write"),
    Operation(
        "postBatch", "POST", "/v1/transfers/batch", "Up to 1,000 movements, each with its own status", writes.batch,
        "write", Who.OWNERS, t.BatchBody, None, t.BatchAnswer, (200,), (404,), needs_id=True, writes=True,
    ),
    _read("findTransfers", "/v1/transfers", "Transfers by reference or by a metadata key", reads.transfers,
          t.TransferPage, t.TransfersQuery),
    _read("getTransfer", "/v1/transfers/{id}", "A transfer of the ledger", reads.transfer, t.TransferAnswer,
          t.LedgerQuery),
    _read("listRefunds", "/v1/transfers/{id}/refunds", "The refunds of a transfer", reads.refunds, t.RefundPage,
          t.PageQuery),
    _read("getOutcome", "/v1/outcomes", "What became of a request, by its Idempotency-Key", reads.outcome,
          t.LookupAnswer, t.OutcomeQuery),
    _move("hold", "/v1/holds", "Reserve money", writes.hold, t.HoldBody),
    _read("listHolds", "/v1/holds", "Open holds", reads.holds, t.HoldPage, t.HoldsQuery),
    _read("getHold", "/v1/holds/{id}", "A hold as it is now", reads.hold, t.HoldAnswer),
    _move("captureHold", "/v1/holds/{id}/capture", "Move reserved money", writes.capture, t.CaptureBody),
    _end("voidHold", "/v1/holds/{id}/void", "Give reserved money back", writes.void, t.VoidBody, Who.OWNERS, "write"),
    _move("raiseHold", "/v1/holds/{id}/raise", "Reserve more", writes.raise_hold, t.RaiseBody),
    _move("refund", "/v1/refunds", "Give a transfer's money back, all or a part", writes.refund, t.RefundBody),
    _move("chargeBack", "/v1/chargebacks", "Reverse a top-up by force", writes.chargeback, t.RefundBody,
          Who.OPERATORS)._replace(scope="admin"),
    _read("listPending", "/v1/pending", "Top-ups and withdrawals that wait for their provider", reads.pending,
          t.HoldPage, t.PageQuery),
    _read("listReviews", "/v1/reviews", "What a fraud rule stopped until it is approved", reads.reviews, t.HoldPage,
          t.PageQuery, Who.OPERATORS),
    Operation(
        "approveReview", "POST", "/v1/reviews/{id}/approve", "Let it go on", writes.approve, "admin", Who.OPERATORS,
        None, None, t.OutcomeAnswer, (200, 202), _ENDED, writes=True,
    ),
    _end("rejectReview", "/v1/reviews/{id}/reject", "Do not let it happen", writes.reject, t.FailBody, Who.OPERATORS,
         "admin"),
    _read("listDeclined", "/v1/declined", "Movements that were refused", reads.declined, t.DeclinedPage,
          t.DeclinedQuery),
    _read("listTiers", "/v1/tiers", "All tiers and their limits", reads.tiers, t.TierList, t.LedgerQuery,
          Who.OPERATORS),
    _read("getTier", "/v1/tiers/{tier}", "What wallets of a tier may do", reads.tier, t.TierAnswer,
          who=Who.OPERATORS),
    Operation(
        "setTier", "PUT", "/v1/tiers/{tier}", "New limits, in force from the next request on", writes.set_tier, "admin",
        Who.OPERATORS, t.TierLimitsBody, None, t.TierAnswer, (200,), (404, 409, 422), writes=True,
    ),
    _read("listShards", "/v1/shards", "How far the journal and the ledger are", reads.shards, t.ShardList,
          who=Who.OPERATORS),
    _read("listReconciliations", "/v1/reconciliations", "What the reconciler looked at and found", reads.runs,
          t.RunPage, t.PageQuery, Who.OPERATORS),
    _open("live", "/health/live", "The process runs", ops.live, JSON, t.HealthAnswer),
    _open("ready", "/health/ready", "A payment would work", ops.ready, JSON, t.HealthAnswer, (200, 503)),
    _open("metrics", "/metrics", "For Prometheus", ops.metrics, "text/plain")._replace(who=Who.OPERATORS),
    _open("openapi", "/openapi.json", "This document", ops.openapi, JSON),
    _open("docs", "/docs", "A page to read it", ops.docs, "text/html"),
)  # fmt: skip
