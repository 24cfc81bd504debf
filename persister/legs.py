"""The legs of a batch: each change of a wallet, checked to follow from the change before it.

This file owns the rule that a wallet's versions have no gap and that its balances move by exactly what its legs
say; within a batch it is checked here, across batches by the guards of sql/update_balances.sql.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.domain.transfer import HOLD_CHANGES, MOVEMENTS, WALLET_CHANGES, Kind
from engine.errors import CorruptRecord, JournalGap, LedgerImbalance
from persister.journal import Batch, Numbers, kind_set

_HAS_DEBIT = kind_set(MOVEMENTS | HOLD_CHANGES | WALLET_CHANGES | {Kind.OPEN_WALLET})
_HAS_AMOUNT = kind_set(MOVEMENTS | (HOLD_CHANGES - {Kind.APPROVE_HOLD}))

_RESERVES = kind_set({Kind.HOLD, Kind.RAISE_HOLD})
_POSTS = kind_set({Kind.CAPTURE})


class Legs(NamedTuple):
    """One item per new wallet version, in the journal's order, the debit side first.

    amount: signed minor units of what the wallet owns; 0 where no money moved. reserved: signed minor units of what
    is locked of it. available, locked: after it.
    """

    wallet: Numbers
    version: Numbers
    sequence: Numbers
    amount: Numbers
    reserved: Numbers
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


def reserved_of(kinds: NDArray[np.integer], amounts: NDArray[np.floating], released: NDArray[np.floating]) -> Numbers:
    """By how much each record changes what is locked, and with it what its hold has left.

    The arguments have one item per record; released is its LINK's. A refund has a LINK and reserves nothing.
    """
    change: Numbers = np.where(_RESERVES[kinds], amounts, -released - np.where(_POSTS[kinds], amounts, 0)).astype(
        np.int64
    )
    return change


def legs_of(batch: Batch) -> Legs:
    """Raises CorruptRecord for a record that moves, reserves or releases nothing though its kind does."""
    records, kinds = batch.records, batch.records["kind"]
    moved, has_debit = batch.moves_money, _HAS_DEBIT[kinds]
    if ((records["amount"] < 1) & _HAS_AMOUNT[kinds]).any():
        at = np.flatnonzero((records["amount"] < 1) & _HAS_AMOUNT[kinds])[0]
        raise CorruptRecord(f"sequence {batch.sequence[at]}: it moves no money, and its kind is {kinds[at]}")
    amount = np.where(moved, records["amount"], 0).astype(np.int64)
    nothing = np.zeros(len(records), np.int64)
    reserved = nothing
    if len(batch.links):
        at = batch.records_of(batch.links)
        reserved = nothing.copy()
        reserved[at] = reserved_of(kinds[at], records["amount"][at], batch.links["released"])
    present = np.column_stack((has_debit, moved)).ravel()

    def both(debit: NDArray[np.generic], credit: NDArray[np.generic]) -> Numbers:
        sides: Numbers = np.column_stack((debit, credit)).ravel()[present].astype(np.int64)
        return sides

    return Legs(
        wallet=both(records["debit"], records["credit"]),
        version=both(records["debit_version"], records["credit_version"]),
        sequence=both(batch.sequence, batch.sequence),
        amount=both(-amount, amount),
        reserved=both(reserved, nothing),
        available=both(records["debit_available"], records["credit_available"]),
        locked=both(records["debit_locked"], records["credit_locked"]),
        at_us=both(batch.at_us, batch.at_us),
    )


def changes_of(legs: Legs) -> Changes:
    """What the legs amount to per wallet.

    Raises JournalGap if a version is skipped or repeated, LedgerImbalance if a balance is not the one before plus
    what its leg says; the message names the wallet, the sequence and both figures.
    """
    order = by_wallet(legs)
    wallet, version, available, locked = (
        column[order] for column in (legs.wallet, legs.version, legs.available, legs.locked)
    )
    reserved, sequence = legs.reserved[order], legs.sequence[order]
    freed = legs.amount[order] - reserved
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
    available_before = before(available, available[first] - freed[first])
    locked_before = before(locked, locked[first] - reserved[first])
    for name, found, expected in (
        ("version", version, version_before + 1),
        ("available", available, available_before + freed),
        ("locked", locked, locked_before + reserved),
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
