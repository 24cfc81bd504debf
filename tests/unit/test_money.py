"""Decimal texts to minor units, exactly."""

from __future__ import annotations

import pytest

from engine import InvalidRequest
from engine.domain.money import MAX_AMOUNT_MINOR, pack_currency, parse_decimal, unpack_currency


@pytest.mark.parametrize(
    ("text", "minor"),
    [
        ("9839.64", 983964),
        ("0", 0),
        ("181.", 18100),
        (".5", 50),
        ("0.0", 0),
        ("1e3", 100000),
        ("1.23E+07", 1230000000),
        ("-1.5", -150),
        ("0.005", 0),  # half to even
        ("0.015", 2),
        ("0.025", 2),
        ("0.0250000000000000000000001", 3),
        ("1e-300", 0),
        ("90071992547409.91", MAX_AMOUNT_MINOR),
        ("-90071992547409.91", -MAX_AMOUNT_MINOR),
    ],
)
def test_exact(text: str, minor: int) -> None:
    assert parse_decimal(text, "amount") == minor


@pytest.mark.parametrize(
    "text",
    [
        *("", " 1", "1 ", "1_000", "1,5", ".", "1.5.", "x", "NaN", "Infinity", "1e9999", "1e999", "٣", "1\n", "0" * 29),
        *("90071992547409.92", "-90071992547409.92", "1e15"),
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_decimal(text, "amount")
    assert caught.value.field == "amount"


def test_another_exponent() -> None:
    assert parse_decimal("1.0005", "amount", exponent=3) == 1000
    assert parse_decimal("12", "amount", exponent=0) == 12


@pytest.mark.parametrize("code", ["USD", "USDC", "000", "ZZZZZZZZ"])
def test_currencies(code: str) -> None:
    assert unpack_currency(pack_currency(code)) == code
