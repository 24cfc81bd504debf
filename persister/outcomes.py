"""What a retry of an accepted request is answered: what of it the ledger keeps, and how the rest follows from its rows.

Redis forgets with its memory; the ledger must know every answer that Redis has to give again. Of a plain movement its
transfer, its entries and its details say it, of an opening its wallet: those have no row of their own (outcome),
because they are nearly all that there is. This file owns which requests these are, and both ways.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.domain.transfer import PURPOSES, Kind, RequestFlag
from engine.domain.wallet import FLAG_EXTERNAL
from engine.errors import LedgerImbalance
from engine.wire import CONTENT, IDEMPOTENCY
from persister.copy_binary import Rows
from persister.journal import Batch, kind_set, numpy_type

OUTCOME_TYPE = numpy_type(IDEMPOTENCY)
_SIDES = ("debit_available", "credit_available")
_CONTENT = tuple(name for name, _ in CONTENT.fields)

_PURPOSE = kind_set(PURPOSES)
_NEVER_ASKED_AGAIN = kind_set({Kind.EXPIRE_HOLD, Kind.END_GENERATION})
_EXTERNAL = np.uint8(RequestFlag.EXTERNAL)


def outcomes_to_keep(batch: Batch) -> NDArray[np.void]:
    """The IDEMPOTENCYs of the batch's requests that no other rows will say, in their order."""
    wanted = np.flatnonzero(~_in_rows(batch) & ~_NEVER_ASKED_AGAIN[batch.records["kind"]])
    outcomes = _as_recorded(batch, wanted)
    journalled = batch.records_of(batch.kept)
    outcomes[np.searchsorted(wanted, journalled)] = batch.kept
    return outcomes


def _in_rows(batch: Batch) -> NDArray[np.bool_]:
    """Which records are plain movements, or openings as engines send them, answered as they were recorded."""
    records, kinds = batch.records, batch.records["kind"]
    opens = kinds == Kind.OPEN_WALLET
    plain: NDArray[np.bool_] = _PURPOSE[kinds] & (records["flags"] == 0) & _is_blank(records["currency"])
    if opens.any():
        without_details = (records["details_size"] == 0) & _is_blank(records["details_digest"])
        plain |= opens & (records["flags"] & ~_EXTERNAL == 0) & without_details
    plain &= _is_blank(records["terms_digest"])
    plain[batch.records_of(batch.kept)] = False
    return plain


def _is_blank(column: NDArray[np.void]) -> NDArray[np.bool_]:
    blank: NDArray[np.bool_] = np.frombuffer(column.tobytes(), "<u8") == 0
    return blank


def _as_recorded(batch: Batch, at: NDArray[np.intp]) -> NDArray[np.void]:
    """The outcomes that records say, where the journal has no other; see engine.wire.JOURNAL_KEPT_FIELD."""
    records = batch.records[at]
    outcomes = np.zeros(len(at), OUTCOME_TYPE)
    outcomes["sequence"] = batch.sequence[at]
    outcomes["moved"] = np.where(_PURPOSE[records["kind"]], records["amount"], 0)
    for name in (*_SIDES, *_CONTENT):
        outcomes[name] = records[name]
    return outcomes


def outcomes_of_movements(movements: Rows, entries: Rows) -> NDArray[np.void]:
    """The IDEMPOTENCYs of plain movements, from rows of rebuild/movements.sql and, of at least these, entries.sql.

    Raises LedgerImbalance for a movement without its two entries.
    """
    outcomes = np.zeros(len(movements), OUTCOME_TYPE)
    sequence = movements["sequence"].astype(np.int64)
    for side, of_side in (("debit_available", entries["amount"] < 0), ("credit_available", entries["amount"] > 0)):
        outcomes[side] = _available_after(entries[of_side], sequence)
    outcomes["sequence"], outcomes["kind"] = sequence, movements["kind"]
    outcomes["moved"] = outcomes["amount"] = movements["amount"]
    outcomes["debit"], outcomes["credit"] = movements["debit_wallet_id"], movements["credit_wallet_id"]
    outcomes["details_size"] = movements["details_size"]
    outcomes["details_digest"] = np.frombuffer(movements["details_digest"].astype("<i8").tobytes(), "V8")
    return outcomes


def _available_after(entries: Rows, sequence: NDArray[np.int64]) -> NDArray[np.int64]:
    order = np.argsort(entries["sequence"], kind="stable")
    found = entries["sequence"][order].astype(np.int64)
    at = np.searchsorted(found, sequence)
    missing = np.append(found, -1)[at] != sequence
    if missing.any():
        raise LedgerImbalance(f"sequence {sequence[np.argmax(missing)]}: the ledger has a movement without its entries")
    available: NDArray[np.int64] = entries["available_after"][order][at].astype(np.int64)
    return available


def outcomes_of_openings(openings: Rows) -> NDArray[np.void]:
    """The same of openings, from rows of rebuild/openings.sql."""
    outcomes = np.zeros(len(openings), OUTCOME_TYPE)
    outcomes["sequence"], outcomes["kind"] = openings["sequence"], Kind.OPEN_WALLET
    outcomes["flags"] = np.where(openings["flags"] & FLAG_EXTERNAL, _EXTERNAL, 0)
    outcomes["debit"], outcomes["credit"] = openings["wallet_id"], openings["owner_id"]
    outcomes["amount"], outcomes["currency"] = openings["overdraft_limit"], unpadded(openings["currency"])
    return outcomes


def unpadded(currency: NDArray[np.void]) -> NDArray[np.void]:
    """Currency codes as Redis has them, from those of a char(8)."""
    return np.frombuffer(currency.tobytes().replace(b" ", b"\0"), "V8")
