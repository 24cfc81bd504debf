"""The legs of a batch: each change of a wallet, checked to follow from the change before it.

This file owns the rule that a wallet's versions have no gap and that its balances move by exactly what its legs
say; within a batch it is checked here, across batches by the guards of sql/update_balances.sql.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.errors import CorruptRecord, JournalGap, LedgerImbalance
from persister.journal import Batch

Numbers = NDArray[np.int64]


class Legs(NamedTuple):
    """One item per new wallet version, in the journal's order, the debit side first.

    amount: signed minor units; 0 for an opening. available, locked: after it.
    """

    wallet: Numbers
    version: Numbers
    sequence: Numbers
    amount: Numbers
    available: Numbers
    locked: Numbers
    at_us: Numbers


class Changes(NamedTuple):
    """One item per wallet that a batch touches, by ascending id: what it must have before, and has after."""

    wallet: Numbers
    version_before: Numbers
    available_before: Numbers
    locked_before: Numbers
    version: Numbers
    available: Numbers
    locked: Numbers


def by_wallet(legs: Legs) -> NDArray[np.intp]:
    """The order by wallet, and within one as the journal has it: by version, where no version is wrong."""
    return np.argsort(legs.wallet, kind="stable")


def legs_of(batch: Batch) -> Legs:
    """Raises CorruptRecord for a movement without an amount."""
    records = batch.records
    moved, opened = batch.moves_money, batch.opens_wallet
    amount = np.where(moved, records["amount"], 0).astype(np.int64)
    if (amount[moved] < 1).any():
        raise CorruptRecord(f"sequence {batch.sequence[moved & (amount < 1)][0]}: it moves no money")
    present = np.column_stack((moved | opened, moved)).ravel()

    def both(debit: NDArray[np.generic], credit: NDArray[np.generic]) -> Numbers:
        sides: Numbers = np.column_stack((debit, credit)).ravel()[present].astype(np.int64)
        return sides

    return Legs(
        wallet=both(records["debit"], records["credit"]),
        version=both(records["debit_version"], records["credit_version"]),
        sequence=both(batch.sequence, batch.sequence),
        amount=both(-amount, amount),
        available=both(records["debit_available"], records["credit_available"]),
        locked=both(records["debit_locked"], records["credit_locked"]),
        at_us=both(batch.at_us, batch.at_us),
    )


def changes_of(legs: Legs) -> Changes:
    """What the legs amount to per wallet.

    Raises JournalGap if a version is skipped or repeated, LedgerImbalance if a balance is not the one before plus
    the amount; the message names the wallet, the sequence and both figures.
    """
    order = np.argsort(legs.wallet, kind="stable")
    wallet, version, available, locked = (
        column[order] for column in (legs.wallet, legs.version, legs.available, legs.locked)
    )
    amount, sequence = legs.amount[order], legs.sequence[order]
    is_first = np.ones(len(wallet), bool)
    is_first[1:] = wallet[1:] != wallet[:-1]
    first = np.flatnonzero(is_first)
    last = np.append(first[1:], len(wallet))[: len(first)] - 1

    def before(column: Numbers, at_first: Numbers) -> Numbers:
        shifted = np.empty_like(column)
        shifted[1:] = column[:-1]
        shifted[first] = at_first
        return shifted

    version_before = before(version, version[first] - 1)
    available_before = before(available, available[first] - amount[first])
    locked_before = before(locked, locked[first])
    for name, found, expected in (
        ("version", version, version_before + 1),
        ("available", available, available_before + amount),
        ("locked", locked, locked_before),
    ):
        if (found != expected).any():
            at = int(np.argmax(found != expected))
            kind = JournalGap if name == "version" else LedgerImbalance
            raise kind(
                f"wallet {wallet[at]} at sequence {sequence[at]}: its {name} is {found[at]}, "
                f"it follows from what is before it that it is {expected[at]}"
            )
    return Changes(
        wallet=wallet[first],
        version_before=version_before[first],
        available_before=available_before[first],
        locked_before=locked_before[first],
        version=version[last],
        available=available[last],
        locked=locked[last],
    )
