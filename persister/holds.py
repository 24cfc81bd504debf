"""What a batch does to holds: each change checked to follow from the change before it.

This file owns the rule that what a hold has left and what was captured of it move by exactly what its records say, and
that a hold ends once; within a batch it is checked here, across batches by the guards of sql/change_open_holds.sql
and sql/end_open_holds.sql. What a record does to a hold's remaining is what it does to the wallet's locked
(legs.reserved_of), so that locked is the sum of the open holds.

A hold's id is Redis' name for it, as in the journal. Redis forgets a hold two idempotency generations after its end;
if the id comes again then, it names another hold from there on: it means the last hold that was made under it.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from engine.domain.transfer import HOLD_CHANGES, PURPOSES, HoldState, Kind, Review
from engine.errors import CorruptRecord, JournalGap, LedgerImbalance
from persister.journal import Batch, Numbers, kind_set
from persister.legs import reserved_of

Ids = NDArray[np.void]
"""16 raw bytes each."""

_CHANGES_HOLD = kind_set(HOLD_CHANGES)
_PURPOSE = kind_set(PURPOSES)
_RELEASES = kind_set({Kind.CAPTURE, Kind.VOID, Kind.EXPIRE_HOLD})
_RELEASES_ALL = kind_set({Kind.VOID, Kind.EXPIRE_HOLD})

# The state of a hold that has nothing left, by the kind that took the last of it; no other kind can.
_ENDS_AS = np.full(256, -1)
_ENDS_AS[[Kind.CAPTURE, Kind.VOID, Kind.EXPIRE_HOLD]] = HoldState.CAPTURED, HoldState.VOIDED, HoldState.EXPIRED


class HoldChanges(NamedTuple):
    """One item per record that makes or changes a hold, in the journal's order. at: its place among the records.

    id, purpose, state, review, rule, remaining, captured, released, expires_at_ms: its LINK's, after it.
    amount: captured, reserved or released by it. reserved: what it adds to remaining, signed.
    """

    at: NDArray[np.intp]
    sequence: Numbers
    kind: Numbers
    id: Ids
    debit: Numbers
    credit: Numbers
    amount: Numbers
    reserved: Numbers
    purpose: Numbers
    state: Numbers
    review: Numbers
    rule: Numbers
    remaining: Numbers
    captured: Numbers
    released: Numbers
    expires_at_ms: Numbers

    @property
    def remaining_before(self) -> Numbers:
        return self.remaining - self.reserved

    @property
    def captured_before(self) -> Numbers:
        return self.captured - np.where(self.kind == Kind.CAPTURE, self.amount, 0)

    @property
    def begins(self) -> NDArray[np.bool_]:
        """Which of them make their hold."""
        begun: NDArray[np.bool_] = self.kind == Kind.HOLD
        return begun

    def select(self, which: NDArray[np.intp]) -> Self:
        """Those at some places, in that order."""
        return type(self)._make(column[which] for column in self)


class OpenHolds(NamedTuple):
    """What a batch makes of the open holds; each a selection of HoldChanges with one item per hold.

    made: the last change of each hold that it makes and leaves open. makers: the HOLDs that made these.
    changed, ended: the last change of each that was open before, still is, or is no more; changed_from and ended_from:
    the first change of each of these.
    """

    made: HoldChanges
    makers: HoldChanges
    changed: HoldChanges
    changed_from: HoldChanges
    ended: HoldChanges
    ended_from: HoldChanges


def hold_changes_of(batch: Batch) -> HoldChanges:
    """Raises CorruptRecord for a change that no hold can have made."""
    links = batch.links[_CHANGES_HOLD[batch.records["kind"][batch.records_of(batch.links)]]]
    at = batch.records_of(links)
    records = batch.records[at]

    def whole(column: NDArray[np.generic]) -> Numbers:
        return column.astype(np.int64)

    changes = HoldChanges(
        at=at,
        sequence=batch.sequence[at],
        kind=whole(records["kind"]),
        id=links["reference"],
        debit=whole(records["debit"]),
        credit=whole(records["credit"]),
        amount=whole(records["amount"]),
        reserved=reserved_of(records["kind"], records["amount"], links["released"]),
        purpose=whole(links["purpose"]),
        state=whole(links["state"]),
        review=whole(links["review"]),
        rule=whole(links["rule"]),
        remaining=whole(links["remaining"]),
        captured=whole(links["captured"]),
        released=whole(links["released"]),
        expires_at_ms=whole(links["expires_at_ms"]),
    )
    _check_each(changes, records["id"])
    return changes


def open_holds_after(changes: HoldChanges) -> OpenHolds:
    """What the changes amount to per hold.

    Raises JournalGap if a hold is made twice or changed after its end, LedgerImbalance if what it had left, or what
    was captured of it, is not what follows from the change before; the message names the hold and the sequence.
    """
    names = np.frombuffer(changes.id.tobytes(), "S16")
    order = np.argsort(names, kind="stable")
    names, sorted_changes = names[order], changes.select(order)
    is_first = np.ones(len(names), bool)
    is_first[1:] = names[1:] != names[:-1]
    _check_follow(sorted_changes, np.flatnonzero(~is_first))
    first = np.flatnonzero(is_first)
    last = np.append(first[1:], len(names))[: len(first)] - 1
    opens = sorted_changes.state[last] == HoldState.OPEN
    begins = sorted_changes.begins[first]

    def pair(chosen: NDArray[np.bool_]) -> tuple[HoldChanges, HoldChanges]:
        return sorted_changes.select(last[chosen]), sorted_changes.select(first[chosen])

    return OpenHolds(*pair(begins & opens), *pair(~begins & opens), *pair(~begins & ~opens))


def _check_each(changes: HoldChanges, record_ids: Ids) -> None:
    kind, remaining = changes.kind, changes.remaining
    state = np.where(remaining > 0, HoldState.OPEN, _ENDS_AS[kind])
    own = np.frombuffer(record_ids.tobytes(), "S16") == np.frombuffer(changes.id.tobytes(), "S16")
    for what, sound in (
        ("purpose", _PURPOSE[changes.purpose]),
        ("state", (changes.state == state) & ((remaining == 0) | ~_RELEASES_ALL[kind])),
        ("review", changes.review <= max(Review)),
        ("remaining", changes.remaining_before >= 0),
        ("captured", changes.captured_before >= 0),
        ("released", np.where(_RELEASES[kind], changes.released >= 0, changes.released == 0)),
        ("amount", ~_RELEASES_ALL[kind] | (changes.amount == changes.released)),
        ("beginning", ~changes.begins | (own & (changes.remaining_before == 0) & (changes.captured == 0))),
    ):
        if not sound.all():
            at = int(np.argmin(sound))
            raise CorruptRecord(
                f"sequence {changes.sequence[at]}: the {what} of its hold is none that kind {kind[at]} can leave"
            )


def _check_follow(changes: HoldChanges, later: NDArray[np.intp]) -> None:
    """later: the changes whose hold was changed just before them."""
    after, before = changes.select(later), changes.select(later - 1)
    over = after.begins | (before.state != HoldState.OPEN)
    if over.any():
        at = int(np.argmax(over))
        raise JournalGap(f"{_name(after, at)}: its hold was made or ended before, at sequence {before.sequence[at]}")
    for name, found, expected in (
        ("remaining", after.remaining_before, before.remaining),
        ("captured", after.captured_before, before.captured),
        ("debit wallet", after.debit, before.debit),
        ("credit wallet", after.credit, before.credit),
        ("purpose", after.purpose, before.purpose),
        ("expiry", after.expires_at_ms, before.expires_at_ms),
    ):
        if (found != expected).any():
            at = int(np.argmax(found != expected))
            raise LedgerImbalance(
                f"{_name(after, at)}: it continues a hold with {name} {found[at]}, "
                f"at sequence {before.sequence[at]} that was {expected[at]}"
            )


def _name(changes: HoldChanges, at: int) -> str:
    return f"hold {changes.id[at].tobytes().hex()} at sequence {changes.sequence[at]}"
