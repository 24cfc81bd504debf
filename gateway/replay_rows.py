"""Real input as rows: one CSV line in, one movement of money out, or what is wrong with the line. Pure but for reading.

This file owns the rule of what a bad row is. A row is judged by itself, whatever came before it:

    both formats  as many columns as the header; quotes in pairs; an amount of 1 to 2^53-1 minor units
    paysim        a type of PAYSIM_TYPES; names of C or M and digits, whose wallet id is 1 to 2^63-1; old balances
                  that are decimals of at most 2^53-1 cents either way; where labels are asked for, isFraud of 0 or 1
    csv           a key of 1 to 255 characters; wallet ids of 1 to 2^63-1, of which one may be empty; a currency of
                  3 to 8 of A-Z and 0-9; an amount of digits; a kind of CSV_KINDS

Bytes that are no UTF-8 make a row bad where they are in a column that is used. Empty lines are no rows: they are
neither counted nor numbered. A wrong header, a line longer than MAX_LINE_CHARS or a damaged gzip file is not a bad
row but an UnreadableFile: nothing after it can be trusted.
"""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from io import TextIOWrapper
from pathlib import Path
from typing import NamedTuple, TextIO, TypeVar

from engine.domain.ids import check_key
from engine.domain.money import check_amount, parse_decimal
from engine.domain.transfer import Kind, Transfer
from engine.domain.wallet import MAX_WALLET_ID, check_user_wallet_id, external_wallet_id
from engine.errors import HotledgerError, InvalidRequest

MAX_LINE_CHARS = 65_536
PAYSIM_CURRENCY = "USD"
PAYSIM_KEY = "paysim:{row}"
PAYSIM_COLUMNS = ("type", "amount", "nameOrig", "oldbalanceOrg", "nameDest", "oldbalanceDest")
PAYSIM_TYPES = {  # the kind, and whether the money goes from nameDest to nameOrig
    "CASH_IN": (Kind.TOP_UP, True),
    "CASH_OUT": (Kind.WITHDRAWAL, False),
    "DEBIT": (Kind.WITHDRAWAL, False),
    "PAYMENT": (Kind.PAYMENT, False),
    "TRANSFER": (Kind.TRANSFER, False),
}
PAYSIM_LABEL = "isFraud"
PAYSIM_LABELS = {"0": False, "1": True}
CSV_COLUMNS = ("key", "debit", "credit", "amount_minor", "currency")
CSV_KINDS = {
    "": Kind.TRANSFER,
    "transfer": Kind.TRANSFER,
    "top_up": Kind.TOP_UP,
    "payment": Kind.PAYMENT,
    "withdrawal": Kind.WITHDRAWAL,
}

_NAME = re.compile(r"[CM][0-9]{1,20}\Z")
_INTEGER = re.compile(r"[0-9]{1,20}\Z")
_WHERE_IDS_BEGIN = {"C": 0, "M": 1}

_Value = TypeVar("_Value")

outside_of = lru_cache(maxsize=1024)(external_wallet_id)
"""A currency's external wallet; computing it once per row would be a tenth of the work."""


class Format(StrEnum):
    PAYSIM = "paysim"
    CSV = "csv"


class Sight(NamedTuple):
    """A user's wallet that a row names. opening_minor: its top-up if this is its first sight; 0 for none."""

    wallet_id: int
    currency: str
    opening_minor: int


class Row(NamedTuple):
    """sights: in the order in which their wallets are to be opened. fraud: the file's label, if it was asked for."""

    line: int
    movement: Transfer
    sights: tuple[Sight, ...]
    fraud: bool = False


class UnreadableFile(HotledgerError):
    """The file is not what the format says, from some line on."""


class BadRow(HotledgerError):
    """A row that cannot be meant. line: its first one, from 1 for the header. field: the column."""

    def __init__(self, line: int, field: str, reason: str) -> None:
        super().__init__(f"line {line}: {field}: {reason}")
        self.line = line
        self.field = field
        self.reason = reason


@dataclass(frozen=True)
class Source:
    """An open file: its text, and how far its bytes were read, for a progress bar."""

    text: TextIO
    size_bytes: int
    read_bytes: Callable[[], int]


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """The file as text, unpacked if its name ends in .gz. Raises UnreadableFile."""
    try:
        with path.open("rb") as raw:
            unpacked = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
            # Bytes that are no UTF-8 come through as lone surrogates, for the row that has them to be found bad.
            text = TextIOWrapper(unpacked, encoding="utf-8-sig", errors="surrogateescape", newline="")
            yield Source(text, path.stat().st_size, raw.tell)
    except OSError as error:
        raise UnreadableFile(f"{path} cannot be read: {error.strerror or error}") from error


def read_rows(
    file: TextIO, format: Format, limit: int | None = None, *, labelled: bool = False
) -> Iterator[Row | BadRow]:
    """Each row of the file in order, as a Row or as what is wrong with it; at most `limit` of them.

    labelled: whether to read paysim's label of fraud too. Raises UnreadableFile.
    """
    lines = csv.reader(_lines(file), strict=True)
    try:
        header = next(lines, [])
    except csv.Error as error:
        raise UnreadableFile(f"line 1: the header cannot be read: {error}") from error
    parse = _paysim_parser(header, labelled) if format is Format.PAYSIM else _csv_parser(header)
    number = 0
    while limit is None or number < limit:
        line = lines.line_num + 1
        try:
            fields = next(lines, None)
            if fields is None:
                return
            if not fields:
                continue
            if len(fields) != len(header):
                raise InvalidRequest("columns", f"{len(header)} as in the header", len(fields))
            yield Row(line, *parse(number, fields))
        except InvalidRequest as error:
            yield BadRow(line, error.field, f"must be {error.bound}, not {str(error.value)[:80]!r}")
        except csv.Error as error:
            yield BadRow(line, "columns", str(error))
        number += 1


def _lines(file: TextIO) -> Iterator[str]:
    number = 0
    try:
        while line := file.readline(MAX_LINE_CHARS + 1):
            number += 1
            if len(line) > MAX_LINE_CHARS:
                raise UnreadableFile(f"line {number} is longer than {MAX_LINE_CHARS} characters")
            yield line
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableFile(f"the file is damaged after line {number}: {error}") from error


_Parsed = tuple[Transfer, tuple[Sight, ...], bool]
_Parser = Callable[[int, Sequence[str]], _Parsed]
"""(row number from 0, its fields) -> (movement, sights, fraud) of a Row. Raises InvalidRequest."""


def _paysim_parser(header: Sequence[str], labelled: bool) -> _Parser:
    wanted = (*PAYSIM_COLUMNS, PAYSIM_LABEL) if labelled else PAYSIM_COLUMNS
    missing = [name for name in wanted if name not in header]
    if missing:
        raise UnreadableFile(f"line 1: the header of a paysim file has the columns {missing}, this one does not")
    kind_at, amount_at, origin_at, origin_balance_at, destination_at, destination_balance_at = map(
        header.index, PAYSIM_COLUMNS
    )

    label_at = header.index(PAYSIM_LABEL) if labelled else None

    def parse(number: int, fields: Sequence[str]) -> _Parsed:
        kind, inwards = _one_of(PAYSIM_TYPES, "type", fields[kind_at])
        amount = check_amount(_cents(fields[amount_at], "amount"), "amount")
        origin = wallet_of_name(fields[origin_at], "nameOrig")
        destination = wallet_of_name(fields[destination_at], "nameDest")
        sights = (
            Sight(origin, PAYSIM_CURRENCY, max(0, _cents(fields[origin_balance_at], "oldbalanceOrg"))),
            Sight(destination, PAYSIM_CURRENCY, max(0, _cents(fields[destination_balance_at], "oldbalanceDest"))),
        )
        debit, credit = (destination, origin) if inwards else (origin, destination)
        key = PAYSIM_KEY.format(row=number)
        fraud = label_at is not None and _one_of(PAYSIM_LABELS, PAYSIM_LABEL, fields[label_at])
        return Transfer(debit, credit, amount, key, None, kind, PAYSIM_CURRENCY), sights, fraud

    return parse


def _csv_parser(header: Sequence[str]) -> _Parser:
    if tuple(header) not in (CSV_COLUMNS, (*CSV_COLUMNS, "kind")):
        raise UnreadableFile(f"line 1: the header must be {','.join(CSV_COLUMNS)}[,kind], not {','.join(header)[:200]}")
    has_kind = len(header) > len(CSV_COLUMNS)

    def parse(_: int, fields: Sequence[str]) -> _Parsed:
        key, debit_text, credit_text, amount_text, currency = fields[:5]
        check_key(key)
        outside = outside_of(currency)
        if not debit_text and not credit_text:
            raise InvalidRequest("credit", "given where debit is empty", credit_text)
        debit = _wallet(debit_text, "debit") if debit_text else outside
        credit = _wallet(credit_text, "credit") if credit_text else outside
        amount = check_amount(_integer(amount_text, "amount_minor"))
        kind = _one_of(CSV_KINDS, "kind", fields[5]) if has_kind else Kind.TRANSFER
        sights = tuple(Sight(wallet, currency, 0) for wallet in (debit, credit) if wallet != outside)
        return Transfer(debit, credit, amount, key, None, kind, currency), sights, False

    return parse


def _one_of(choices: dict[str, _Value], field: str, text: str) -> _Value:
    try:
        return choices[text]
    except KeyError:
        raise InvalidRequest(field, f"one of {', '.join(filter(None, choices))}", text) from None


def is_merchant(wallet_id: int) -> bool:
    """Of a wallet of wallet_of_name."""
    return wallet_id % 2 == _WHERE_IDS_BEGIN["M"]


def wallet_of_name(name: str, field: str) -> int:
    """2 n for C<n>, 2 n + 1 for M<n>. Raises InvalidRequest."""
    if not _NAME.match(name):
        raise InvalidRequest(field, "C or M and digits", name)
    wallet_id = 2 * int(name[1:]) + _WHERE_IDS_BEGIN[name[0]]
    if not 1 <= wallet_id <= MAX_WALLET_ID:
        raise InvalidRequest(field, f"a name whose wallet id is 1 to {MAX_WALLET_ID}", name)
    return wallet_id


def _wallet(text: str, field: str) -> int:
    if not _INTEGER.match(text):
        raise InvalidRequest(field, f"an integer from 1 to {MAX_WALLET_ID}, or empty", text)
    return check_user_wallet_id(int(text), field)


def _integer(text: str, field: str) -> int:
    if not _INTEGER.match(text):
        raise InvalidRequest(field, "digits", text)
    return int(text)


def _cents(text: str, field: str) -> int:
    """A decimal in cents, half to even."""
    whole, _, cents = text.partition(".")
    if len(cents) == 2 and len(whole) < 16 and text.isascii() and whole.isdigit() and cents.isdigit():
        return int(whole + cents)  # nothing to round: a third of the time
    return parse_decimal(text, field)
