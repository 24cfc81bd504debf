"""Money is an integer in a currency's minor unit, within a bound that Lua's doubles keep exact."""

from __future__ import annotations

import re
from decimal import ROUND_HALF_EVEN, Decimal

from engine.errors import InvalidRequest

MAX_AMOUNT_MINOR = 2**53 - 1
"""The largest amount and the largest magnitude of a balance: every integer up to it is exact as a double."""

CURRENCY_BYTES = 8
MAX_EXPONENT = 8
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?\Z")
_MAX_DIGITS = 28  # what Decimal's default context keeps exact
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


_ISO_EXPONENTS = {
    code: exponent
    for exponent, codes in (
        (0, "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"),
        (3, "BHD IQD JOD KWD LYD OMR TND"),
        (4, "CLF UYW"),
    )
    for code in codes.split()
}
"""ISO 4217's minor units other than 2."""


def default_exponent(currency: str) -> int:
    """Digits after the point of a currency that nobody defined: by ISO 4217 for three letters, else none."""
    return _ISO_EXPONENTS.get(currency, 2 if len(currency) == 3 and currency.isalpha() else 0)


def check_exponent(exponent: int) -> int:
    if type(exponent) is not int or not 0 <= exponent <= MAX_EXPONENT:
        raise InvalidRequest("exponent", f"an integer from 0 to {MAX_EXPONENT}", exponent)
    return exponent


def unpack_currency(packed: bytes) -> str:
    return packed.rstrip(b"\0").decode()


def parse_decimal(text: str, field: str, exponent: int = 2) -> int:
    """A decimal text such as '9839.64' or '1.2e7' in minor units, rounded half to even.

    exponent: digits after the point that the currency has (2 for cents). Raises InvalidRequest for what is no plain
    decimal number of at most 28 digits, or beyond MAX_AMOUNT_MINOR.
    """
    if not _DECIMAL.match(text) or sum(map(str.isdigit, text)) > _MAX_DIGITS:
        raise InvalidRequest(field, f"a decimal number of at most {_MAX_DIGITS} digits", text)
    value = Decimal(text)
    if value.adjusted() > _MAX_DIGITS:
        raise InvalidRequest(field, f"at most {MAX_AMOUNT_MINOR} minor units", text)
    minor = int(value.scaleb(exponent).to_integral_value(ROUND_HALF_EVEN))
    if abs(minor) > MAX_AMOUNT_MINOR:
        raise InvalidRequest(field, f"at most {MAX_AMOUNT_MINOR} minor units", text)
    return minor
