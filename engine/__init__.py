"""Decides: the async client over Redis.

async with Engine.connect(redis_url) as engine:
    outcome = await engine.transfer(debit=1, credit=2, amount_minor=500, key="order-17")
"""

from engine.client import Engine
from engine.domain.durability import Durability
from engine.domain.limits import Rule, TierLimits
from engine.domain.money import MAX_AMOUNT_MINOR
from engine.domain.status import Status
from engine.domain.transfer import (
    Hold,
    HoldChange,
    HoldState,
    Kind,
    OpenWallet,
    Outcome,
    Refund,
    Review,
    SetTierLimits,
    Transfer,
    WalletChange,
)
from engine.domain.wallet import Balance, external_wallet_id
from engine.errors import (
    CorruptRecord,
    Fatal,
    HistoryMismatch,
    HotledgerError,
    InvalidRequest,
    JournalGap,
    LedgerBacklog,
    LedgerImbalance,
    LibraryMismatch,
    OutcomeUnknown,
    Overloaded,
    ServerRefused,
    ShardNotOpen,
    Unavailable,
)
from engine.guarantee import Guarantee
from engine.hold_calls import HoldNow
from engine.loop import run

__all__ = [
    "MAX_AMOUNT_MINOR",
    "Balance",
    "CorruptRecord",
    "Durability",
    "Engine",
    "Fatal",
    "Guarantee",
    "HistoryMismatch",
    "Hold",
    "HoldChange",
    "HoldNow",
    "HoldState",
    "HotledgerError",
    "InvalidRequest",
    "JournalGap",
    "Kind",
    "LedgerBacklog",
    "LedgerImbalance",
    "LibraryMismatch",
    "OpenWallet",
    "Outcome",
    "OutcomeUnknown",
    "Overloaded",
    "Refund",
    "Review",
    "Rule",
    "ServerRefused",
    "SetTierLimits",
    "ShardNotOpen",
    "Status",
    "TierLimits",
    "Transfer",
    "Unavailable",
    "WalletChange",
    "external_wallet_id",
    "run",
]
