"""Which answers the ledger keeps a row of, and how the others follow from its rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.domain.transfer import Kind, RequestFlag
from engine.errors import LedgerImbalance
from engine.wire import IDEMPOTENCY
from persister.outcomes import outcomes_of_movements, outcomes_to_keep
from persister.rebuild import _ENTRIES, _MOVEMENTS
from tests.fixtures.journal import batch, kept_of, record


def kept(*records: bytes, **parts: Any) -> list[dict[str, Any]]:
    return [IDEMPOTENCY.unpack(one.tobytes()) for one in outcomes_to_keep(batch(records, **parts))]


PLAIN = record(1, Kind.PAYMENT, 1, 2, 5, debit_available=95, credit_available=5, details_digest=b"digest!!")
OPENING = record(1, Kind.OPEN_WALLET, 1, 7, 500, currency=b"USD", debit_version=1)
OUTSIDE = record(1, Kind.OPEN_WALLET, -1, 0, 2, currency=b"USD", flags=RequestFlag.EXTERNAL)


@pytest.mark.parametrize("plain", [PLAIN, OPENING, OUTSIDE, record(1, Kind.END_GENERATION, amount=2)])
def test_what_other_rows_say_has_none(plain: bytes) -> None:
    assert kept(plain) == []


@pytest.mark.parametrize(
    ("fields", "moved"),
    [
        ({"kind": Kind.PAYMENT, "flags": RequestFlag.BALANCING}, 5),
        ({"kind": Kind.TOP_UP, "currency": b"USD\0\0\0\0\0"}, 5),
        ({"kind": Kind.TRANSFER, "terms_digest": b"12345678"}, 5),
        ({"kind": Kind.OPEN_WALLET, "flags": RequestFlag.LINKED}, 0),
        ({"kind": Kind.OPEN_WALLET, "details_digest": b"12345678"}, 0),
        ({"kind": Kind.OPEN_WALLET, "terms_digest": b"12345678"}, 0),
        ({"kind": Kind.FREEZE}, 0),
        ({"kind": Kind.SET_OVERDRAFT_LIMIT}, 0),
    ],
)
def test_the_rest_is_as_it_was_recorded(fields: dict[str, Any], moved: int) -> None:
    after = {"debit_available": -3, "credit_available": 9}
    [outcome] = kept(record(1, debit=1, credit=2, amount=5, **fields, **after))
    blank = dict.fromkeys(("currency", "details_digest", "terms_digest"), bytes(8))
    expected = {"status": 0, "rule": 0, "sequence": 1, "moved": moved, "replayed": 0, "flags": 0, "details_size": 0}
    assert outcome == expected | {"debit": 1, "credit": 2, "amount": 5} | blank | after | fields


def test_or_as_the_journal_says() -> None:
    """Also of a movement that looks plain."""
    second = kept_of(2, b"", kind=Kind.PAYMENT, amount=77, moved=5)
    found = kept(PLAIN, PLAIN, record(1, Kind.FREEZE, 1, 0, 2), kept=second)
    assert [(outcome["sequence"], outcome["amount"]) for outcome in found] == [(2, 77), (3, 2)]


def test_of_a_movement_both_entries_are_needed() -> None:
    movements, entries = np.zeros(2, _MOVEMENTS.dtype), np.zeros(4, _ENTRIES.dtype)
    movements["sequence"], entries["sequence"] = [9, 4], [4, 9, 9, 4]
    entries["amount"], entries["available_after"] = [-5, 5, -5, 5], [1, 2, 3, 4]
    outcomes = outcomes_of_movements(movements, entries)
    assert outcomes["debit_available"].tolist() == [3, 1]
    assert outcomes["credit_available"].tolist() == [2, 4]
    with pytest.raises(LedgerImbalance, match="sequence 4: the ledger has a movement without its entries"):
        outcomes_of_movements(movements, entries[:3])
    with pytest.raises(LedgerImbalance, match="sequence 9"):
        outcomes_of_movements(movements, entries[:0])
