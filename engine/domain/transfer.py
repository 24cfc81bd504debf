"""What can be asked of a shard, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, IntFlag
from typing import Any, NamedTuple
from uuid import UUID

from engine.domain.limits import TierLimits
from engine.domain.status import Status


class Kind(IntEnum):
    """What a journalled request is. Numbers go into records: they never change."""

    TRANSFER = 1
    TOP_UP = 2
    PAYMENT = 3
    WITHDRAWAL = 4
    REFUND = 5
    CHARGEBACK = 6
    HOLD = 7
    CAPTURE = 8
    RAISE_HOLD = 9
    VOID = 10
    EXPIRE_HOLD = 11
    APPROVE_HOLD = 12
    OPEN_WALLET = 16
    FREEZE = 17
    UNFREEZE = 18
    CLOSE_WALLET = 19
    SET_OVERDRAFT_LIMIT = 20
    SET_TIER = 21
    END_GENERATION = 32
    SET_TIER_LIMITS = 33


PURPOSES = frozenset({Kind.TRANSFER, Kind.TOP_UP, Kind.PAYMENT, Kind.WITHDRAWAL})
"""The kinds that move money at once from a debit to a credit wallet, and what a hold may be for."""

MOVEMENTS = PURPOSES | {Kind.REFUND, Kind.CHARGEBACK, Kind.CAPTURE}
"""The kinds that move money: each is one transfer in the ledger."""

HOLD_CHANGES = frozenset({Kind.HOLD, Kind.CAPTURE, Kind.RAISE_HOLD, Kind.VOID, Kind.EXPIRE_HOLD, Kind.APPROVE_HOLD})
"""The kinds that make or change a hold."""

WALLET_CHANGES = frozenset({Kind.FREEZE, Kind.UNFREEZE, Kind.CLOSE_WALLET, Kind.SET_OVERDRAFT_LIMIT, Kind.SET_TIER})
"""The kinds that change the state of one wallet and no money."""


class RequestFlag(IntFlag):
    """What changes a request's meaning; part of its content. Numbers go into records."""

    LINKED = 1  # with the request after it: both or none
    BALANCING = 2  # at most the amount, up to what is available
    FINAL = 4  # CAPTURE: what is left is released
    EXTERNAL = 8  # OPEN_WALLET: the outside world of its currency


class HoldState(IntEnum):
    OPEN = 0
    CAPTURED = 1
    VOIDED = 2
    EXPIRED = 3


class Review(IntEnum):
    """Whether an operator has to look at a hold before it goes on."""

    NONE = 0
    TRANSFER = 1  # a movement that a fraud rule stopped: approving posts it
    HOLD = 2  # a hold that a fraud rule stopped: approving lets it be captured


MAX_REFERENCE_CHARS = 64
MAX_ORIGIN_CHARS = 255
MAX_EXPIRY_MS = 366 * 86_400_000
MAX_METADATA_BYTES = 2048
MAX_KEY_CHARS = 255


class Transfer(NamedTuple):
    """A movement of money to be decided, for Engine.post.

    debit, credit: wallet ids; amount_minor leaves the first and reaches the second.
    key or id: the idempotency key, exactly one of them; an id is a UUID (version 7 advised).
    currency: if given, both wallets must have it.
    reference: up to 64 characters; metadata: a JSON object of up to 2 KiB; both reach the ledger.
    linked: with the request after it, as one chain: all of it happens or none.
    balancing: move at most amount_minor, up to what is available; the outcome says how much.
    expect_version, min_available_after_minor: of the debit wallet before and after, else CONDITION_FAILED.
    device, ip: where it came from, any text up to 255 characters; only keyed digests leave the process.
    """

    debit: int
    credit: int
    amount_minor: int
    key: str | None = None
    id: UUID | None = None
    kind: Kind = Kind.TRANSFER
    currency: str | None = None
    reference: str | None = None
    metadata: Mapping[str, Any] | None = None
    linked: bool = False
    balancing: bool = False
    expect_version: int | None = None
    min_available_after_minor: int | None = None
    device: str | None = None
    ip: str | None = None


class Hold(NamedTuple):
    """Money to be reserved on the debit wallet for a movement to the credit wallet later.

    purpose: the kind of that movement. expires_in_ms: 1 to 31,622,400,000 (366 days); None for never.
    The rest as in Transfer. The hold's id is this request's.
    """

    debit: int
    credit: int
    amount_minor: int
    key: str | None = None
    id: UUID | None = None
    purpose: Kind = Kind.TRANSFER
    expires_in_ms: int | None = None
    currency: str | None = None
    reference: str | None = None
    metadata: Mapping[str, Any] | None = None
    linked: bool = False
    expect_version: int | None = None
    min_available_after_minor: int | None = None
    device: str | None = None
    ip: str | None = None


class HoldChange(NamedTuple):
    """What becomes of a hold: CAPTURE, RAISE_HOLD, VOID or APPROVE_HOLD.

    amount_minor: CAPTURE: to post, None for all that is left; RAISE_HOLD: to reserve besides.
    final: CAPTURE: release what is left.
    """

    hold_id: UUID
    kind: Kind
    amount_minor: int | None = None
    final: bool = True
    key: str | None = None
    id: UUID | None = None
    reference: str | None = None
    metadata: Mapping[str, Any] | None = None
    linked: bool = False


class Refund(NamedTuple):
    """The opposite of a transfer, all of it or a part.

    kind: REFUND, or CHARGEBACK: of a top-up, even below the wallet's limit.
    amount_minor: None for all that is not refunded yet.
    """

    transfer_id: UUID
    amount_minor: int | None = None
    key: str | None = None
    id: UUID | None = None
    kind: Kind = Kind.REFUND
    reference: str | None = None
    metadata: Mapping[str, Any] | None = None
    linked: bool = False


class OpenWallet(NamedTuple):
    """A wallet to be opened, for Engine.post and Engine.open_wallets.

    key and id default to one derived from wallet_id, so opening the same wallet again is a replay.
    """

    wallet_id: int
    owner_id: int
    currency: str
    overdraft_limit_minor: int = 0
    key: str | None = None
    id: UUID | None = None


class WalletChange(NamedTuple):
    """A change of a wallet's state.

    kind and value: FREEZE and UNFREEZE with FLAG_DEBIT_FROZEN, FLAG_CREDIT_FROZEN or both; CLOSE_WALLET with 0;
    SET_OVERDRAFT_LIMIT with minor units; SET_TIER with a tier.
    """

    wallet_id: int
    kind: Kind
    value: int = 0
    key: str | None = None
    id: UUID | None = None
    linked: bool = False


class SetTierLimits(NamedTuple):
    """New limits for a tier, 1 to 65,535, in force from the next request on. Tier 0 has none, always."""

    tier: int
    limits: TierLimits
    key: str | None = None
    id: UUID | None = None


Request = Transfer | Hold | HoldChange | Refund | OpenWallet | WalletChange | SetTierLimits


class Outcome(NamedTuple):
    """The answer to one request.

    status: POSTED, or why not. sequence: the journal's sequence of the request, or of the shard when it was refused.
    replayed: the id was decided before and this is that decision, with the balances of that time.
    *_available_minor: what each side had available just after the decision; 0 for a wallet that does not exist.
    For the opening or a change of a wallet, debit is the wallet.
    amount_minor: what was moved, reserved or released; 0 for a refusal.
    rule: for LIMIT_EXCEEDED and UNDER_REVIEW, which fraud rule (engine.Rule); 0 else. used: LIMIT_EXCEEDED: how much
    of the rule's limit was used before, minor units or a number; retry_at_ms: LIMIT_EXCEEDED: the server time from
    which on it may be tried again, 0 if waiting does not help.
    """

    status: Status
    sequence: int
    replayed: bool
    debit_available_minor: int
    credit_available_minor: int
    id_bytes: bytes
    amount_minor: int = 0
    rule: int = 0
    used: int = 0
    retry_at_ms: int = 0

    @property
    def transfer_id(self) -> UUID:
        """The id that the request was decided under: the caller's, or the one derived from its key."""
        return UUID(bytes=self.id_bytes)

    @property
    def posted(self) -> bool:
        return self.status is Status.POSTED
