"""Wallets: one balance in one currency under a BIGINT id; and the external wallets, which are the outside world."""

from __future__ import annotations

from typing import NamedTuple

from engine.domain.money import pack_currency
from engine.errors import InvalidRequest

MAX_WALLET_ID = 2**63 - 1
MAX_SHARD = 2**15 - 1

FLAG_EXTERNAL = 1
"""Set on a wallet that may go negative without limit: the outside world of one currency on one shard."""

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Balance(NamedTuple):
    """What a wallet has, in minor units, as Redis holds it now.

    available_minor may be spent; locked_minor is reserved by holds; the wallet owns their sum.
    version grows by one with each change of the wallet.
    """

    wallet_id: int
    currency: str
    available_minor: int
    locked_minor: int
    version: int
    overdraft_limit_minor: int


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
