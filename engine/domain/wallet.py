"""Wallets: one balance in one currency under a BIGINT id; and the external wallets, which are the outside world."""

from __future__ import annotations

from typing import NamedTuple

from engine.domain.money import pack_currency
from engine.errors import InvalidRequest

MAX_WALLET_ID = 2**63 - 1
MAX_SHARD = 2**15 - 1

FLAG_EXTERNAL = 1
"""Set on a wallet that may go negative without limit: the outside world of one currency on one shard."""

FLAG_DEBIT_FROZEN, FLAG_CREDIT_FROZEN, FLAG_CLOSED = 2, 4, 8
"""No money may leave; none may arrive; neither, for good."""

MAX_TIER = 2**16 - 1

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Balance(NamedTuple):
    """What a wallet has, in minor units, and how it is, as Redis holds it now.

    available_minor may be spent; locked_minor is reserved by holds; the wallet owns their sum.
    version grows by one with each change of the wallet. tier: whose limits it is under, 0 for none.
    overdraft_limit_minor: of an external wallet, its currency's exponent.
    """

    wallet_id: int
    currency: str
    available_minor: int
    locked_minor: int
    version: int
    overdraft_limit_minor: int
    flags: int = 0
    tier: int = 0

    @property
    def debit_frozen(self) -> bool:
        return bool(self.flags & FLAG_DEBIT_FROZEN)

    @property
    def credit_frozen(self) -> bool:
        return bool(self.flags & FLAG_CREDIT_FROZEN)

    @property
    def closed(self) -> bool:
        return bool(self.flags & FLAG_CLOSED)


def external_wallet_id(currency: str, shard: int = 0) -> int:
    """The id of the currency's external wallet on a shard: negative, and the same everywhere without a registry.

    The code read in base 37 (0 is padding) needs 42 bits; the shard takes 15 below it.
    """
    code = 0
    for byte in pack_currency(currency):
        code = code * 37 + (0 if byte == 0 else _ALPHABET.index(chr(byte)) + 1)
    return -(code << 15 | shard)


def check_wallet_id(wallet_id: int, field: str) -> int:
    """wallet_id itself if it is a BIGINT other than 0; positive is a user's, negative an external wallet's."""
    if type(wallet_id) is not int or not -MAX_WALLET_ID <= wallet_id <= MAX_WALLET_ID or wallet_id == 0:
        raise InvalidRequest(field, f"an integer from 1 to {MAX_WALLET_ID} (or an external wallet's id)", wallet_id)
    return wallet_id


def check_user_wallet_id(wallet_id: int, field: str) -> int:
    """wallet_id itself if it can be a user's wallet: 1 to 2^63-1."""
    if type(wallet_id) is not int or not 1 <= wallet_id <= MAX_WALLET_ID:
        raise InvalidRequest(field, f"an integer from 1 to {MAX_WALLET_ID}", wallet_id)
    return wallet_id


def check_owner_id(owner_id: int) -> int:
    if type(owner_id) is not int or not 0 <= owner_id <= MAX_WALLET_ID:
        raise InvalidRequest("owner_id", f"an integer from 0 to {MAX_WALLET_ID}", owner_id)
    return owner_id


def check_tier(tier: int, at_least: int = 0) -> int:
    if type(tier) is not int or not at_least <= tier <= MAX_TIER:
        raise InvalidRequest("tier", f"an integer from {at_least} to {MAX_TIER}", tier)
    return tier
