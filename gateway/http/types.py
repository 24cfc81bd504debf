"""What requests and answers of the HTTP API look like: validation, JSON and the OpenAPI document come from here.

Amounts are integers in minor units. A number may be given as a string of digits, for programs whose numbers are
doubles; answers have integers.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from msgspec import UNSET, Meta, Struct, UnsetType

from engine import MAX_AMOUNT_MINOR
from engine.domain.transfer import MAX_EXPIRY_MS, MAX_ORIGIN_CHARS, MAX_REFERENCE_CHARS
from engine.domain.wallet import MAX_TIER, MAX_WALLET_ID

MAX_PAGE = 1000
MAX_BATCH_ITEMS = 1000

Amount = (
    Annotated[int, Meta(ge=1, le=MAX_AMOUNT_MINOR)]
    | Annotated[str, Meta(pattern="^[0-9]{1,16}$", description="The same as digits.")]
)
Limit = (
    Annotated[int, Meta(ge=0, le=MAX_AMOUNT_MINOR)]
    | Annotated[str, Meta(pattern="^[0-9]{1,16}$", description="The same as digits.")]
)
WalletId = (
    Annotated[int, Meta(ge=1, le=MAX_WALLET_ID)]
    | Annotated[str, Meta(pattern="^[0-9]{1,19}$", description="The same as digits.")]
)
OwnerId = (
    Annotated[int, Meta(ge=0, le=MAX_WALLET_ID)]
    | Annotated[str, Meta(pattern="^[0-9]{1,19}$", description="The same as digits.")]
)
Currency = Annotated[str, Meta(pattern="^[A-Z0-9]{3,8}$")]
Reference = Annotated[str, Meta(min_length=1, max_length=MAX_REFERENCE_CHARS)]
Metadata = Annotated[dict[str, Any], Meta(description="A JSON object of at most 2,048 bytes.")]
Origin = Annotated[str, Meta(min_length=1, max_length=MAX_ORIGIN_CHARS)]
Expiry = Annotated[int, Meta(ge=1, le=MAX_EXPIRY_MS, description="Milliseconds.")]
Tier = Annotated[int, Meta(ge=0, le=MAX_TIER)]
Version = Annotated[int, Meta(ge=1, le=MAX_AMOUNT_MINOR)]
Signed = Annotated[int, Meta(ge=-MAX_AMOUNT_MINOR, le=MAX_AMOUNT_MINOR)]
Reason = Annotated[str, Meta(min_length=1, max_length=500)]
KindName = Literal["TRANSFER", "TOP_UP", "PAYMENT", "WITHDRAWAL"]


class Body(Struct, forbid_unknown_fields=True, kw_only=True):
    """A request's body."""


class OpenWalletBody(Body, kw_only=True):
    """A wallet to be opened. Opening the same one again is a replay."""

    wallet_id: WalletId
    owner_id: OwnerId
    currency: Currency
    overdraft_limit_minor: Limit = 0


class ChangeWalletBody(Body, kw_only=True):
    """What to change; several changes happen all or none. `closed` can only become true."""

    debit_frozen: bool | None = None
    credit_frozen: bool | None = None
    closed: Literal[True] | None = None
    tier: Tier | None = None
    overdraft_limit_minor: Limit | None = None


class MovementBody(Body, kw_only=True):
    """What all movements may say besides their wallets.

    currency: if given, the wallets must have it. expect_version, min_available_after_minor: of the debit wallet.
    balancing: move at most the amount, up to what is available. device, ip: for fraud rules; only digests are kept.
    """

    amount_minor: Amount
    currency: Currency | None = None
    reference: Reference | None = None
    metadata: Metadata | None = None


class TransferBody(MovementBody, kw_only=True):
    """Money from one wallet to another."""

    debit_wallet_id: WalletId
    credit_wallet_id: WalletId
    balancing: bool = False
    expect_version: Version | None = None
    min_available_after_minor: Signed | None = None
    device: Origin | None = None
    ip: Origin | None = None


class TopUpBody(MovementBody, kw_only=True):
    """Money from outside. two_step: pending until it is confirmed or failed, or for expires_in_ms (7 days)."""

    wallet_id: WalletId
    two_step: bool = False
    expires_in_ms: Expiry | None = None


class WithdrawalBody(TopUpBody, kw_only=True):
    """Money to the outside. two_step: locked until it is confirmed or failed, or for expires_in_ms (7 days)."""

    device: Origin | None = None
    ip: Origin | None = None


class HoldBody(MovementBody, kw_only=True):
    """Money to be reserved. purpose: what a capture is in the ledger. Without expires_in_ms it stays."""

    debit_wallet_id: WalletId
    credit_wallet_id: WalletId
    purpose: Literal["PAYMENT", "TRANSFER"] = "PAYMENT"
    expires_in_ms: Expiry | None = None
    device: Origin | None = None
    ip: Origin | None = None


class CaptureBody(Body, kw_only=True):
    """amount_minor: all that is left if it is absent. final: what is left after it is released."""

    amount_minor: Amount | None = None
    final: bool = True
    reference: Reference | None = None
    metadata: Metadata | None = None


class VoidBody(Body, kw_only=True):
    reference: Reference | None = None
    metadata: Metadata | None = None


class RaiseBody(Body, kw_only=True):
    """How much to reserve besides."""

    amount_minor: Amount


class RefundBody(Body, kw_only=True):
    """amount_minor: all that is not refunded yet if it is absent."""

    transfer_id: UUID
    amount_minor: Amount | None = None
    reference: Reference | None = None
    metadata: Metadata | None = None


class ConfirmBody(Body, kw_only=True):
    """psp_reference: the provider's own; another one later is refused."""

    psp_reference: Reference


class FailBody(Body, kw_only=True):
    reason: Reason | None = None


class BatchItem(TransferBody, kw_only=True):
    """One movement of a batch between two wallets."""

    kind: Literal["TRANSFER", "PAYMENT"] = "TRANSFER"


class BatchBody(Body, kw_only=True):
    """linked: all of them happen, or none."""

    transfers: Annotated[list[BatchItem], Meta(min_length=1, max_length=MAX_BATCH_ITEMS)]
    linked: bool = False


RuleName = Literal[
    "MAX_AMOUNT", "DAY_AMOUNT", "DAY_COUNT", "WINDOW_COUNT", "HOUR_AMOUNT", "DEVICE_ATTEMPTS", "IP_ATTEMPTS",
    "DEVICE_WALLETS", "NEW_DEVICE",
]  # fmt: skip
_Count = Annotated[int, Meta(ge=0, le=MAX_AMOUNT_MINOR - 1)]
_Minutes = Annotated[int, Meta(ge=1, le=1440)]


class TierLimitsBody(Body, kw_only=True):
    """What wallets of a tier may do; null or absent is no limit."""

    max_amount_minor: _Count | None = None
    day_amount_minor: _Count | None = None
    day_count: _Count | None = None
    window_count: _Count | None = None
    window_minutes: _Minutes = 60
    hour_amount_minor: _Count | None = None
    device_attempts: _Count | None = None
    ip_attempts: _Count | None = None
    attempts_window_minutes: _Minutes = 60
    device_wallets: Annotated[int, Meta(ge=0, le=16)] | None = None
    new_device_amount_minor: _Count | None = None
    new_device_hours: Annotated[int, Meta(ge=0, le=24 * 366)] = 24
    review: list[RuleName] = []
    debt_first: bool = True


# Answers


class OutcomeAnswer(Struct, kw_only=True):
    """What was decided. A balance is null where the key may not see that wallet.

    id: of the transfer or the hold. sequence: its place in the journal, for min_sequence. amount_minor: how much was
    moved, reserved or released. rule: which fraud rule, of UNDER_REVIEW.
    """

    status: Literal["POSTED", "UNDER_REVIEW"]
    id: UUID
    sequence: int
    amount_minor: int
    debit_available_minor: int | None
    credit_available_minor: int | None
    rule: str | None = None


class LookupAnswer(Struct, kw_only=True):
    """What became of a request. NOT_APPLIED is definite for one whose deadline has passed."""

    status: str
    id: UUID
    sequence: int
    amount_minor: int
    debit_available_minor: int | None
    credit_available_minor: int | None


class BatchResult(Struct, kw_only=True):
    """http_status: what the item would have been answered with alone."""

    status: str
    http_status: int
    id: UUID
    sequence: int
    amount_minor: int
    debit_available_minor: int | None
    credit_available_minor: int | None
    replayed: bool


class BatchAnswer(Struct, kw_only=True):
    """In the order of the request."""

    results: list[BatchResult]


class WalletAnswer(Struct, kw_only=True):
    """A wallet as it is now. version grows by one with each change of it."""

    wallet_id: int
    owner_id: int
    currency: str
    available_minor: int
    locked_minor: int
    version: int
    overdraft_limit_minor: int
    tier: int
    debit_frozen: bool
    credit_frozen: bool
    closed: bool


class OpenedAnswer(Struct, kw_only=True):
    """A wallet that was opened."""

    status: Literal["POSTED"]
    id: UUID
    sequence: int
    wallet_id: int
    owner_id: int
    currency: str


class WalletPage(Struct, kw_only=True):
    """As the ledger has them. next_cursor: null on the last page."""

    wallets: list[WalletAnswer]
    next_cursor: str | None


class BalanceAnswer(Struct, kw_only=True):
    """at, sequence: of a balance in the past, the entry that made it; null for now."""

    wallet_id: int
    currency: str
    available_minor: int
    locked_minor: int
    version: int
    at: datetime | None = None
    sequence: int | None = None


class Entry(Struct, kw_only=True):
    """One version of a wallet: see StatementLine."""

    version: int
    sequence: int
    at: datetime
    kind: str
    id: UUID
    counterparty_id: int | None
    amount_minor: int
    available_after_minor: int
    locked_after_minor: int
    reserved_minor: int
    hold_id: UUID | None
    reference: str | None
    metadata: dict[str, Any] | None


class EntryPage(Struct, kw_only=True):
    """The newest first. A page may be short although next_cursor has more: a filter looked far."""

    entries: list[Entry]
    next_cursor: str | None


class TransferAnswer(Struct, kw_only=True):
    """A movement as the ledger has it. A balance is null where the key may not see that wallet."""

    id: UUID
    sequence: int
    kind: str
    at: datetime
    debit_wallet_id: int
    credit_wallet_id: int
    amount_minor: int
    debit_available_minor: int | None
    credit_available_minor: int | None
    refunded_minor: int
    reference: str | None
    metadata: dict[str, Any] | None


class TransferPage(Struct, kw_only=True):
    """The newest first."""

    transfers: list[TransferAnswer]
    next_cursor: str | None


class HoldAnswer(Struct, kw_only=True):
    """A hold as it is now."""

    id: UUID
    state: Literal["OPEN", "CAPTURED", "VOIDED", "EXPIRED"]
    purpose: KindName
    under_review: bool
    debit_wallet_id: int
    credit_wallet_id: int
    remaining_minor: int
    captured_minor: int
    expires_at: datetime | None


class OpenHoldAnswer(Struct, kw_only=True):
    """An open hold as the ledger has it. rule: what stopped it, if it is under review."""

    id: UUID
    purpose: str
    debit_wallet_id: int
    credit_wallet_id: int
    currency: str
    remaining_minor: int
    captured_minor: int
    under_review: bool
    rule: str | None
    since: datetime
    expires_at: datetime | None
    reference: str | None
    metadata: dict[str, Any] | None


class HoldPage(Struct, kw_only=True):
    """The oldest first."""

    holds: list[OpenHoldAnswer]
    next_cursor: str | None


class RefundAnswer(Struct, kw_only=True):
    """total_minor: refunded in all, with this one."""

    id: UUID
    kind: str
    sequence: int
    at: datetime
    amount_minor: int
    total_minor: int
    reference: str | None


class RefundPage(Struct, kw_only=True):
    """The oldest first."""

    refunds: list[RefundAnswer]
    next_cursor: str | None


class DeclinedAnswer(Struct, kw_only=True):
    """A refused movement, kept by best effort. debit, credit: 0 where it is not known."""

    at: datetime
    id: UUID
    kind: str
    status: str
    rule: str | None
    debit_wallet_id: int
    credit_wallet_id: int
    amount_minor: int


class DeclinedPage(Struct, kw_only=True):
    """The newest first."""

    declined: list[DeclinedAnswer]
    next_cursor: str | None


class TierAnswer(TierLimitsBody, kw_only=True):
    """The limits of a tier."""

    tier: int


class TierList(Struct, kw_only=True):
    tiers: list[TierAnswer]


class ShardAnswer(Struct, kw_only=True):
    """lag: records that the journal has and the ledger has not. chain: the head of the ledger's sha256 chain."""

    shard: int
    open: bool
    epoch: int
    sequence: int
    persisted_sequence: int
    lag: int
    chain: str
    persisted_at: datetime


class ShardList(Struct, kw_only=True):
    shards: list[ShardAnswer]


class RunAnswer(Struct, kw_only=True):
    """One run of the reconciler, up to a sequence. kind: full, or recent: what came after after_sequence.

    checked: how many things were looked at. incomplete: why not all of them were.
    """

    id: int
    shard: int
    kind: str
    began_at: datetime
    seconds: float
    after_sequence: int
    sequence: int
    checked: int
    differences: int
    incomplete: str | None


class RunPage(Struct, kw_only=True):
    """The newest first."""

    runs: list[RunAnswer]
    next_cursor: str | None


class HealthAnswer(Struct, kw_only=True):
    """status: "ok", or what is missing."""

    status: str


class Problem(Struct, kw_only=True, omit_defaults=True):
    """RFC 9457. code: the status word, or one of the door's own. field and bound: what was wrong and what it may be.

    retry_at: when a fraud rule's limit would let the same pass, under a new key. used: how much of that limit was used.
    """

    type: str
    title: str
    status: int
    detail: str
    code: str
    instance: str
    field: str | UnsetType = UNSET
    bound: str | UnsetType = UNSET
    id: UUID | UnsetType = UNSET
    debit_available_minor: int | UnsetType = UNSET
    rule: str | UnsetType = UNSET
    used: int | UnsetType = UNSET
    retry_at: datetime | UnsetType = UNSET


# Queries


class Query(Struct, forbid_unknown_fields=True, kw_only=True):
    """Parameters of a URL."""


Moment = Annotated[datetime, Meta(tz=True, extra_json_schema={"format": "date-time"})]
Cursor = Annotated[str, Meta(min_length=1, max_length=200, description="next_cursor of the page before.")]
PageSize = Annotated[int, Meta(ge=1, le=MAX_PAGE)]
MinSequence = Annotated[
    int, Meta(ge=0, le=MAX_AMOUNT_MINOR, description="Wait, at most 2 s, until the ledger has this sequence.")
]
WalletNumber = Annotated[int, Meta(ge=1, le=MAX_WALLET_ID)]


class LedgerQuery(Query, kw_only=True):
    min_sequence: MinSequence = 0


class PageQuery(LedgerQuery, kw_only=True):
    cursor: Cursor | None = None
    page_size: PageSize = 100


class WalletsQuery(PageQuery, kw_only=True):
    owner_id: Annotated[int, Meta(ge=0, le=MAX_WALLET_ID)] | None = None


class BalanceQuery(LedgerQuery, kw_only=True):
    at: Moment | None = None


class EntriesQuery(PageQuery, kw_only=True):
    """kind: one or more, separated by commas. since, until: from and before. format: csv or json."""

    kind: Annotated[str, Meta(max_length=200, pattern="^[A-Z_]+(,[A-Z_]+)*$")] | None = None
    since: Moment | None = None
    until: Moment | None = None
    format: Literal["json", "csv"] = "json"


class TransfersQuery(PageQuery, kw_only=True):
    """Exactly one of reference, and metadata_key with metadata_value (text)."""

    reference: Reference | None = None
    metadata_key: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    metadata_value: Annotated[str, Meta(max_length=255)] | None = None


class HoldsQuery(PageQuery, kw_only=True):
    wallet_id: WalletNumber | None = None


class DeclinedQuery(PageQuery, kw_only=True):
    wallet_id: WalletNumber | None = None
    since: Moment | None = None


class OutcomeQuery(Query, kw_only=True):
    """The Idempotency-Key of the request."""

    key: Annotated[str, Meta(min_length=1, max_length=255)]
