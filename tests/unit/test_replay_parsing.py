"""gateway.replay_rows: what a row means, and which rows are bad; gateway.replay's Planner: what is sent for it."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from random import Random

import pytest

from engine import (
    MAX_AMOUNT_MINOR,
    Kind,
    OpenWallet,
    SetTierLimits,
    TierLimits,
    Transfer,
    WalletChange,
    external_wallet_id,
)
from engine.wire import MAX_BATCH
from gateway.replay import Chunk, Planner
from gateway.replay_rows import MAX_LINE_CHARS, BadRow, Format, Row, UnreadableFile, open_source, read_rows
from gateway.replay_rules import Rules

MAX_ID = 2**63 - 1
USD, EUR = external_wallet_id("USD"), external_wallet_id("EUR")

PAYSIM_HEADER = (
    "step,type,amount,nameOrig,oldbalanceOrg,newbalanceOrig,nameDest,oldbalanceDest,newbalanceDest,isFraud,"
    "isFlaggedFraud"
)
CSV_HEADER = "key,debit,credit,amount_minor,currency,kind"


def paysim(type="PAYMENT", amount="10.00", orig="C1", orig_balance="0.0", dest="M2", dest_balance="0.0") -> str:
    return f"1,{type},{amount},{orig},{orig_balance},0.0,{dest},{dest_balance},0.0,0,0"


def rows_of(
    tmp_path: Path, format: Format, lines: Iterable[str | bytes], limit: int | None = None
) -> list[Row | BadRow]:
    """The rows of a file with the format's header and these lines."""
    header = PAYSIM_HEADER if format is Format.PAYSIM else CSV_HEADER
    path = tmp_path / "rows.csv"
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in (header, *lines))
    )
    with open_source(path) as source:
        return list(read_rows(source.text, format, limit))


def row_of(tmp_path: Path, format: Format, line: str | bytes) -> Row | BadRow:
    [row] = rows_of(tmp_path, format, [line])
    return row


def movement_of(tmp_path: Path, format: Format, line: str) -> Transfer:
    row = row_of(tmp_path, format, line)
    assert isinstance(row, Row), row
    return row.movement


@pytest.mark.parametrize(
    ("type", "kind", "debit", "credit"),
    [
        ("CASH_IN", Kind.TOP_UP, 5, 2),
        ("CASH_OUT", Kind.WITHDRAWAL, 2, 5),
        ("DEBIT", Kind.WITHDRAWAL, 2, 5),
        ("PAYMENT", Kind.PAYMENT, 2, 5),
        ("TRANSFER", Kind.TRANSFER, 2, 5),
    ],
)
def test_paysim_types_and_directions(tmp_path: Path, type: str, kind: Kind, debit: int, credit: int) -> None:
    movement = movement_of(tmp_path, Format.PAYSIM, paysim(type))
    assert movement == Transfer(debit, credit, 1000, "paysim:0", kind=kind, currency="USD")


@pytest.mark.parametrize(
    ("amount", "cents"),
    [
        ("9839.64", 983964),
        ("181.0", 18100),
        ("181", 18100),
        ("181.", 18100),
        ("1.0E7", 1_000_000_000),
        ("1.093722386E7", 1_093_722_386),
        ("0.005", None),  # half to even: nothing is left
        ("0.015", 2),
        ("0.025", 2),
        ("0.025000001", 3),
        ("0.025000000000000000000000001", 3),
        ("0.0250000000000000000000000001", None),  # more digits than are taken
        ("1.2345678901234567E+1", 1235),
        ("90071992547409.91", MAX_AMOUNT_MINOR),
        ("90071992547409.915", None),
        ("90071992547409.92", None),
        ("1E99", None),
        ("1E999999999", None),
        ("0.00", None),
        ("-1.00", None),
        ("", None),
        ("ten", None),
        ("1_000", None),
        (" 1.00", None),
        ("NaN", None),
        ("Infinity", None),
        ("١.٠٠", None),
        ("1²3.00", None),
    ],
)
def test_paysim_amounts(tmp_path: Path, amount: str, cents: int | None) -> None:
    row = row_of(tmp_path, Format.PAYSIM, paysim(amount=amount))
    if cents is None:
        assert isinstance(row, BadRow)
        assert (row.line, row.field) == (2, "amount")
    else:
        assert isinstance(row, Row)
        assert row.movement.amount_minor == cents


def test_amounts_are_rounded_as_decimal_does(tmp_path: Path) -> None:
    random = Random(1)
    texts = [
        f"{random.randrange(10 ** random.randrange(1, 9))}.{random.randrange(10**5):05}"[: -random.randrange(6) or None]
        for _ in range(2000)
    ]
    texts = [text for text in texts if Decimal(text) >= 1]
    rows = rows_of(tmp_path, Format.PAYSIM, [paysim(amount=text) for text in texts])
    expected = [int((Decimal(text) * 100).quantize(Decimal(1), ROUND_HALF_EVEN)) for text in texts]
    assert [row.movement.amount_minor for row in rows if isinstance(row, Row)] == expected


@pytest.mark.parametrize(
    ("name", "wallet_id"),
    [
        ("C1", 2),
        ("M0", 1),
        ("M1", 3),
        ("C0001231006815", 2462013630),
        (f"M{(MAX_ID - 1) // 2}", MAX_ID),
        (f"C{MAX_ID // 2}", MAX_ID - 1),
        ("C0", None),
        (f"C{MAX_ID // 2 + 1}", None),
        (f"M{MAX_ID // 2 + 1}", None),
        ("C99999999999999999999999999", None),
        ("X1", None),
        ("c1", None),
        ("C", None),
        ("", None),
        ("C-1", None),
        ("C1 ", None),
        ("C١", None),
    ],
)
def test_paysim_names(tmp_path: Path, name: str, wallet_id: int | None) -> None:
    for line, field, at in ((paysim(orig=name), "nameOrig", 0), (paysim(orig="C7", dest=name), "nameDest", 1)):
        row = row_of(tmp_path, Format.PAYSIM, line)
        if wallet_id is None:
            assert isinstance(row, BadRow)
            assert row.field == field
        else:
            assert isinstance(row, Row)
            assert row.sights[at].wallet_id == wallet_id


@pytest.mark.parametrize(
    ("balance", "cents"),
    [
        ("0.0", 0),
        ("-5.00", 0),
        ("0.005", 0),
        ("0.015", 2),
        ("170136.0", 17013600),
        ("2.1182E4", 2118200),
        ("x", None),
        ("", None),
        ("1E15", None),
    ],
)
def test_paysim_opening_balances(tmp_path: Path, balance: str, cents: int | None) -> None:
    for line, field, at in (
        (paysim(orig_balance=balance), "oldbalanceOrg", 0),
        (paysim(dest_balance=balance), "oldbalanceDest", 1),
    ):
        row = row_of(tmp_path, Format.PAYSIM, line)
        if cents is None:
            assert isinstance(row, BadRow)
            assert row.field == field
        else:
            assert isinstance(row, Row)
            assert row.sights[at].opening_minor == cents


def test_an_unknown_paysim_type_is_bad(tmp_path: Path) -> None:
    row = row_of(tmp_path, Format.PAYSIM, paysim("REFUND"))
    assert str(row) == "line 2: type: must be one of CASH_IN, CASH_OUT, DEBIT, PAYMENT, TRANSFER, not 'REFUND'"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("k,1,2,5,USD,", Transfer(1, 2, 5, "k", currency="USD")),
        ("k,1,2,5,USD,transfer", Transfer(1, 2, 5, "k", currency="USD")),
        ("k,,2,5,USD,top_up", Transfer(USD, 2, 5, "k", kind=Kind.TOP_UP, currency="USD")),
        ("k,1,,5,EUR,withdrawal", Transfer(1, EUR, 5, "k", kind=Kind.WITHDRAWAL, currency="EUR")),
        ("k,1,2,5,USD,payment", Transfer(1, 2, 5, "k", kind=Kind.PAYMENT, currency="USD")),
        ("k,,2,5,USD,", Transfer(USD, 2, 5, "k", currency="USD")),
        (f"k,{MAX_ID},1,{MAX_AMOUNT_MINOR},ABC12345,", Transfer(MAX_ID, 1, MAX_AMOUNT_MINOR, "k", currency="ABC12345")),
        ('"a,""b""",1,2,5,USD,', Transfer(1, 2, 5, 'a,"b"', currency="USD")),
        ('"two\nlines",1,2,5,USD,', Transfer(1, 2, 5, "two\nlines", currency="USD")),
        ("clé-💶,1,2,5,USD,", Transfer(1, 2, 5, "clé-💶", currency="USD")),
        ("k,1,1,5,USD,", Transfer(1, 1, 5, "k", currency="USD")),
        ("k,007,2,05,USD,", Transfer(7, 2, 5, "k", currency="USD")),
    ],
)
def test_csv_rows(tmp_path: Path, line: str, expected: Transfer) -> None:
    assert movement_of(tmp_path, Format.CSV, line) == expected


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (",1,2,5,USD,", "key"),
        (f"{'k' * 256},1,2,5,USD,", "key"),
        (b"k\xff,1,2,5,USD,", "key"),
        ("k,0,2,5,USD,", "debit"),
        ("k,-1,2,5,USD,", "debit"),
        ("k,1.0,2,5,USD,", "debit"),
        ("k, 1,2,5,USD,", "debit"),
        (b"k,\xff,2,5,USD,", "debit"),
        (f"k,1,{MAX_ID + 1},5,USD,", "credit"),
        (f"k,1,{'9' * 5000},5,USD,", "credit"),
        ("k,1,x,5,USD,", "credit"),
        ("k,,,5,USD,", "credit"),
        ("k,1,2,0,USD,", "amount_minor"),
        ("k,1,2,-5,USD,", "amount_minor"),
        ("k,1,2,5.0,USD,", "amount_minor"),
        ("k,1,2,+5,USD,", "amount_minor"),
        ("k,1,2,,USD,", "amount_minor"),
        ("k,1,2,1e3,USD,", "amount_minor"),
        (f"k,1,2,{MAX_AMOUNT_MINOR + 1},USD,", "amount_minor"),
        ("k,1,2,٥,USD,", "amount_minor"),
        ("k,1,2,5,usd,", "currency"),
        ("k,1,2,5,US,", "currency"),
        ("k,1,2,5,ABCDEFGHI,", "currency"),
        ("k,1,2,5,,", "currency"),
        (b"k,1,2,5,US\xff,", "currency"),
        ("k,1,2,5,USD,refund", "kind"),
        ("k,1,2,5,USD,TRANSFER", "kind"),
        ("k,1,2,5,USD", "columns"),
        ("k,1,2,5,USD,,", "columns"),
        ("k", "columns"),
        ('k,"1"x,2,5,USD,', "columns"),
        ('"k,1,2,5,USD,', "columns"),
    ],
)
def test_bad_csv_rows(tmp_path: Path, line: str | bytes, field: str) -> None:
    row = row_of(tmp_path, Format.CSV, line)
    assert isinstance(row, BadRow)
    assert (row.line, row.field) == (2, field)
    assert len(str(row)) < 300


def test_without_the_kind_column_rows_are_transfers(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("key,debit,credit,amount_minor,currency\nk,1,2,5,USD\n")
    with open_source(path) as source:
        [row] = read_rows(source.text, Format.CSV)
    assert isinstance(row, Row)
    assert row.movement == Transfer(1, 2, 5, "k", currency="USD")


def test_rows_are_numbered_in_the_file_and_empty_lines_are_none(tmp_path: Path) -> None:
    lines = ["", paysim(), paysim("?"), "", paysim()]
    rows = rows_of(tmp_path, Format.PAYSIM, lines)
    assert [row.line for row in rows] == [3, 4, 6]
    assert [row.movement.key for row in rows if isinstance(row, Row)] == ["paysim:0", "paysim:2"]


def test_a_quoted_line_break_keeps_the_line_numbers(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, Format.CSV, ['"a\nb\nc",1,2,5,USD,', "k,1,2,x,USD,"])
    assert [row.line for row in rows] == [2, 5]


def test_after_a_broken_quote_reading_goes_on(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, Format.CSV, ['a,"1"x,2,5,USD,', "k,1,2,5,USD,"])
    assert [type(row) for row in rows] == [BadRow, Row]


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4])
def test_a_limit_counts_rows_bad_ones_too(tmp_path: Path, limit: int) -> None:
    rows = rows_of(tmp_path, Format.CSV, ["a,1,2,5,USD,", "b,1,2,0,USD,", "", "c,1,2,5,USD,"], limit)
    assert len(rows) == min(limit, 3)


@pytest.mark.parametrize("ending", ["\n", "\r\n", ""])
def test_line_endings(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes((CSV_HEADER + (ending or "\n") + "k,1,2,5,USD,payment" + ending).encode())
    with open_source(path) as source:
        assert [type(row) for row in read_rows(source.text, Format.CSV)] == [Row]


@pytest.mark.parametrize(
    ("content", "format"),
    [
        (b"", Format.CSV),
        (b"", Format.PAYSIM),
        (b"key,debit,credit,amount,currency\n", Format.CSV),
        (b"debit,key,credit,amount_minor,currency\n", Format.CSV),
        (b"step,type,amount\n", Format.PAYSIM),
        (CSV_HEADER.encode() + b"\n", Format.PAYSIM),
        (b'"key\n', Format.CSV),
        (CSV_HEADER.encode() + b"\n" + b"x" * (MAX_LINE_CHARS + 1), Format.CSV),
    ],
)
def test_files_that_are_of_another_format(tmp_path: Path, content: bytes, format: Format) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with open_source(path) as source, pytest.raises(UnreadableFile, match="line"):
        list(read_rows(source.text, format))


def test_gzip_is_unpacked_and_its_damage_reported(tmp_path: Path) -> None:
    packed = gzip.compress((CSV_HEADER + "\n" + "k,1,2,5,USD,\n" * 5000).encode(), mtime=0)
    path = tmp_path / "rows.csv.gz"
    path.write_bytes(packed)
    with open_source(path) as source:
        assert len(list(read_rows(source.text, Format.CSV))) == 5000
    for damaged in (packed[: len(packed) // 2], b"plain text\n", packed[:-8] + b"\0" * 8):
        path.write_bytes(damaged)
        with open_source(path) as source, pytest.raises(UnreadableFile):
            list(read_rows(source.text, Format.CSV))


def test_a_missing_file_and_a_directory_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(UnreadableFile), open_source(path):
            pass


# Labels


def labels_of(tmp_path: Path, *labels: str, labelled: bool = True) -> list[Row | BadRow]:
    path = tmp_path / "rows.csv"
    path.write_text("\n".join([PAYSIM_HEADER, *(f"{paysim()[:-4]},{label},0" for label in labels)]))
    with open_source(path) as source:
        return list(read_rows(source.text, Format.PAYSIM, labelled=labelled))


def test_labels_of_fraud_are_read_when_asked_for(tmp_path: Path) -> None:
    rows = labels_of(tmp_path, "0", "1", "2", "")
    assert [row.fraud if isinstance(row, Row) else str(row) for row in rows] == [
        False,
        True,
        "line 4: isFraud: must be one of 0, 1, not '2'",
        "line 5: isFraud: must be one of 0, 1, not ''",
    ]
    assert [isinstance(row, Row) and row.fraud for row in labels_of(tmp_path, "1", "2", labelled=False)] == [False] * 2


def test_labels_that_are_not_there_make_the_file_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(PAYSIM_HEADER.replace("isFraud,", "") + "\n")
    with open_source(path) as source, pytest.raises(UnreadableFile, match="isFraud"):
        list(read_rows(source.text, Format.PAYSIM, labelled=True))
    with open_source(path) as source:
        assert list(read_rows(source.text, Format.PAYSIM)) == []


# The planner


RULES = Rules(
    tiers={1: TierLimits(max_amount_minor=500), 2: TierLimits(day_count=3)},
    customers=1,
    merchants=0,
    by_wallet={4: 2},
)


def sent_for(rows: Iterable[Row | BadRow], *, rules: Rules | None = None) -> list[Chunk]:
    return list(Planner(rules=rules).chunks(rows))


def test_wallets_are_opened_at_first_sight_origin_first(tmp_path: Path) -> None:
    lines = [
        paysim("CASH_IN", "10.00", "C1", "5.00", "C2", "7.00"),
        paysim("TRANSFER", "1.00", "C2", "9.00", "C3", "0.0"),
    ]
    [chunk] = sent_for(rows_of(tmp_path, Format.PAYSIM, lines))
    assert chunk.requests == [
        OpenWallet(USD, 0, "USD", 2),
        OpenWallet(2, 2, "USD"),
        Transfer(USD, 2, 500, "paysim:opening:2", kind=Kind.TOP_UP),
        OpenWallet(4, 4, "USD"),
        Transfer(USD, 4, 700, "paysim:opening:4", kind=Kind.TOP_UP),
        Transfer(4, 2, 1000, "paysim:0", kind=Kind.TOP_UP, currency="USD"),
        OpenWallet(6, 6, "USD"),
        Transfer(4, 6, 100, "paysim:1", kind=Kind.TRANSFER, currency="USD"),
    ]
    assert chunk.at == [5, 7]


def test_rules_go_ahead_of_the_rows_and_tiers_ahead_of_the_money(tmp_path: Path) -> None:
    lines = [paysim("TRANSFER", "1.00", "C1", "5.00", "M1", "0.0"), paysim("TRANSFER", "1.00", "C2", "0.0", "C1", "1")]
    [chunk] = sent_for(rows_of(tmp_path, Format.PAYSIM, lines), rules=RULES)
    assert chunk.requests == [
        SetTierLimits(1, RULES.tiers[1]),
        SetTierLimits(2, RULES.tiers[2]),
        OpenWallet(USD, 0, "USD", 2),
        OpenWallet(2, 2, "USD"),
        WalletChange(2, Kind.SET_TIER, 1),
        Transfer(USD, 2, 500, "paysim:opening:2", kind=Kind.TOP_UP),
        OpenWallet(3, 3, "USD"),
        WalletChange(3, Kind.SET_TIER, 0),
        Transfer(2, 3, 100, "paysim:0", kind=Kind.TRANSFER, currency="USD"),
        OpenWallet(4, 4, "USD"),
        WalletChange(4, Kind.SET_TIER, 2),
        Transfer(4, 2, 100, "paysim:1", kind=Kind.TRANSFER, currency="USD"),
    ]
    assert chunk.at == [8, 11]


def test_rules_alone_are_sent_for_a_file_without_rows() -> None:
    [chunk] = sent_for([], rules=RULES)
    assert [type(request) for request in chunk.requests] == [SetTierLimits, SetTierLimits]


def test_each_currency_has_its_outside_opened_once(tmp_path: Path) -> None:
    [chunk] = sent_for(rows_of(tmp_path, Format.CSV, ["a,,1,5,USD,", "b,1,,5,USD,", "c,,2,5,EUR,", "d,1,,5,EUR,"]))
    opened = [request.wallet_id for request in chunk.requests if isinstance(request, OpenWallet)]
    assert opened == [USD, 1, EUR, 2]


@pytest.mark.parametrize("rules", [None, RULES])
def test_chunks_keep_the_order_and_fit_one_batch(tmp_path: Path, rules: Rules | None) -> None:
    lines = [paysim("TRANSFER", "1.00", f"C{n + 1}", "3.00", f"C{n + 2}", "2.00") for n in range(3000)]
    planner = Planner(rules=rules)
    chunks = list(planner.chunks(rows_of(tmp_path, Format.PAYSIM, lines)))
    assert max(len(chunk.requests) for chunk in chunks) <= MAX_BATCH
    assert len(chunks) > 5
    movements = [chunk.requests[at] for chunk in chunks for at in chunk.at]
    assert [movement.key for movement in movements] == [f"paysim:{n}" for n in range(3000)]
    assert planner.wallets == {2 * (n + 1) for n in range(3001)}


def test_a_bad_row_stops_after_what_was_ahead_of_it(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, Format.CSV, ["a,1,2,5,USD,", "b,3,4,0,USD,", "c,1,2,5,USD,"])
    planner = Planner()
    chunks = planner.chunks(rows)
    assert len(next(chunks).at) == 1
    with pytest.raises(BadRow, match="line 3: amount_minor"):
        next(chunks)
    assert planner.wallets == {1, 2}


def test_skipped_rows_open_nothing_and_are_counted(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, Format.CSV, ["a,1,2,5,USD,", "b,3,4,0,USD,", "c,1,2,5,USD,"])
    planner = Planner(skip_bad=True)
    [chunk] = planner.chunks(rows)
    assert (len(chunk.at), chunk.bad, planner.wallets) == (2, 1, {1, 2})
