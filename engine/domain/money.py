"""Money is an integer in a currency's minor unit, within a bound that Lua's doubles keep exact."""

from __future__ import annotations

import re
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation

from engine.errors import InvalidRequest

MAX_AMOUNT_MINOR = 2**53 - 1
"""The largest amount and the largest magnitude of a balance: every integer up to it is exact as a double."""

CURRENCY_BYTES = 8
_CURRENCY = re.compile(r"[A-Z0-9]{3,8}\Z")


def check_amount(amount_minor: int, field: str = "amount_minor", at_least: int = 1) -> int:
    """amount_minor itself if it is an integer from at_least to MAX_AMOUNT_MINOR; else InvalidRequest."""
    if type(amount_minor) is not int or not at_least <= amount_minor <= MAX_AMOUNT_MINOR:
        raise InvalidRequest(field, f"an integer from {at_least} to {MAX_AMOUNT_MINOR}", amount_minor)
    return amount_minor


def pack_currency(currency: str) -> bytes:
    """The currency's code as 8 bytes, padded with NUL; InvalidRequest unless 3 to 8 of A-Z and 0-9."""
    if type(currency) is not str or not _CURRENCY.match(currency):
        raise InvalidRequest("currency", "3 to 8 characters of A-Z and 0-9", currency)
    return currency.encode().ljust(CURRENCY_BYTES, b"\0")


def unpack_currency(packed: bytes) -> str:
    return packed.rstrip(b"\0").decode()


def parse_decimal(text: str, field: str, exponent: int = 2) -> int:
    """A decimal text such as '9839.64' in minor units, rounded half to even; InvalidRequest if it is no number.

    exponent: digits after the point that the currency has (2 for cents).
    """
    try:
        value = Decimal(text)
        if not value.is_finite():
            raise InvalidOperation
        minor = int(value.scaleb(exponent).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))
    except InvalidOperation:
        raise InvalidRequest(field, "a decimal number", text) from None
    if abs(minor) > MAX_AMOUNT_MINOR:
        raise InvalidRequest(field, f"at most {MAX_AMOUNT_MINOR} minor units", text)
    return minor
