"""The calls of Engine that change how a wallet is, and what its tier allows. In force from the next request on.

Each sets something, so it may be repeated: `key` and `id` are for callers who want a retry to be a replay.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from uuid import UUID

from engine.domain.limits import TierLimits
from engine.domain.transfer import Kind, Outcome, Request, SetTierLimits, WalletChange
from engine.domain.wallet import FLAG_CREDIT_FROZEN, FLAG_DEBIT_FROZEN, check_tier
from engine.errors import InvalidRequest
from engine.requests import check_bool, unpack_limits


class WalletCalls(ABC):
    """A part of Engine, which see; what it needs of it are the declarations below."""

    @abstractmethod
    async def _one(self, request: Request, durability: str | None, timeout_ms: int | None) -> Outcome:
        """Engine has it."""

    @abstractmethod
    async def _packed_tier(self, tier: int, timeout_ms: int | None) -> bytes:
        """Engine has it."""

    async def freeze(
        self,
        wallet_id: int,
        *,
        debits: bool = True,
        credits: bool = True,
        key: str | None = None,
        id: UUID | None = None,
        durability: str | None = None,
        timeout_ms: int | None = None,
    ) -> Outcome:
        """Let no money leave (debits), arrive (credits), or both. Holds stay; they cannot be captured meanwhile.

        Returns POSTED, WALLET_CLOSED, or DEBIT_WALLET_NOT_FOUND if there is no such wallet.
        Raises as open_wallet. Rule: lua/lib/wallet_changes.lua.
        """
        value = _frozen(debits, credits)
        return await self._one(WalletChange(wallet_id, Kind.FREEZE, value, key, id), durability, timeout_ms)

    async def unfreeze(
        self,
        wallet_id: int,
        *,
        debits: bool = True,
        credits: bool = True,
        key: str | None = None,
        id: UUID | None = None,
        durability: str | None = None,
        timeout_ms: int | None = None,
    ) -> Outcome:
        """Undo freeze, for debits, credits or both. As freeze."""
        value = _frozen(debits, credits)
        return await self._one(WalletChange(wallet_id, Kind.UNFREEZE, value, key, id), durability, timeout_ms)

    async def close_wallet(
        self,
        wallet_id: int,
        *,
        key: str | None = None,
        id: UUID | None = None,
        durability: str | None = None,
        timeout_ms: int | None = None,
    ) -> Outcome:
        """Close a wallet for good. Returns POSTED; WALLET_NOT_EMPTY unless it has nothing, no debt and no open hold.

        Holds of others in its favour, pending top-ups among them, stay open and can only be voided then: list them
        first. A chargeback still reaches it.
        """
        return await self._one(WalletChange(wallet_id, Kind.CLOSE_WALLET, 0, key, id), durability, timeout_ms)

    async def set_overdraft_limit(
        self,
        wallet_id: int,
        limit_minor: int,
        *,
        key: str | None = None,
        id: UUID | None = None,
        durability: str | None = None,
        timeout_ms: int | None = None,
    ) -> Outcome:
        """How far below zero available may go, 0 to 2^53-1. A wallet below a lowered limit can only be credited."""
        return await self._one(
            WalletChange(wallet_id, Kind.SET_OVERDRAFT_LIMIT, limit_minor, key, id), durability, timeout_ms
        )

    async def set_tier(
        self,
        wallet_id: int,
        tier: int,
        *,
        key: str | None = None,
        id: UUID | None = None,
        durability: str | None = None,
        timeout_ms: int | None = None,
    ) -> Outcome:
        """Put the wallet under a tier's limits; 0 for none. TIER_NOT_FOUND if the tier has no limits yet.

        Tier 0 forgets what was used of limits so far, and a debt that was set aside.
        """
        return await self._one(WalletChange(wallet_id, Kind.SET_TIER, tier, key, id), durability, timeout_ms)

    async def set_tier_limits(
        self,
        tier: int,
        limits: TierLimits,
        *,
        key: str | None = None,
        id: UUID | None = None,
        durability: str | None = None,
        timeout_ms: int | None = None,
    ) -> Outcome:
        """Give a tier, 1 to 65,535, new limits; see TierLimits. Returns POSTED. Raises InvalidRequest by field."""
        return await self._one(SetTierLimits(tier, limits, key, id), durability, timeout_ms)

    async def tier_limits(self, tier: int, *, timeout_ms: int | None = None) -> TierLimits | None:
        """What wallets of a tier are allowed; None if it has no limits. Raises Unavailable."""
        packed = await self._packed_tier(check_tier(tier), timeout_ms)
        return unpack_limits(packed) if packed else None


def _frozen(debits: bool, credits: bool) -> int:
    check_bool(debits, "debits")
    check_bool(credits, "credits")
    if not debits and not credits:
        raise InvalidRequest("debits", "True, unless credits is", debits)
    return debits * FLAG_DEBIT_FROZEN | credits * FLAG_CREDIT_FROZEN
