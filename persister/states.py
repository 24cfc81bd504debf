"""What a batch does to the states of wallets: flags, tier and overdraft limit; all changes of one wallet as one.

A state is set, not moved, so nothing here has to follow from what was before; that changes come in order, and none is
missing, is what the versions of the wallets say (legs.py).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.domain.transfer import WALLET_CHANGES, Kind, RequestFlag
from engine.domain.wallet import FLAG_CLOSED, FLAG_CREDIT_FROZEN, FLAG_DEBIT_FROZEN, FLAG_EXTERNAL, MAX_TIER
from engine.errors import CorruptRecord
from persister.journal import Batch, Numbers, kind_set

ALL_FLAGS = FLAG_EXTERNAL | FLAG_DEBIT_FROZEN | FLAG_CREDIT_FROZEN | FLAG_CLOSED
UNCHANGED = -1
"""As a tier or an overdraft limit: it stays what it is."""

_CHANGES_STATE = kind_set(WALLET_CHANGES)
_FREEZABLE = range(FLAG_DEBIT_FROZEN, (FLAG_DEBIT_FROZEN | FLAG_CREDIT_FROZEN) + 1, FLAG_DEBIT_FROZEN)
_TAKES: dict[int, range] = {
    Kind.FREEZE: _FREEZABLE,
    Kind.UNFREEZE: _FREEZABLE,
    Kind.CLOSE_WALLET: range(1),
    Kind.SET_OVERDRAFT_LIMIT: range(2**53),
    Kind.SET_TIER: range(MAX_TIER + 1),
}


class StateChanges(NamedTuple):
    """One item per wallet. Its flags become flags & keep | add; tier, overdraft_limit: UNCHANGED or the new ones."""

    wallet: Numbers
    keep: Numbers
    add: Numbers
    tier: Numbers
    overdraft_limit: Numbers


class _State:
    """What some changes of one wallet amount to."""

    def __init__(self) -> None:
        self.keep, self.add, self.tier, self.overdraft_limit = ALL_FLAGS, 0, UNCHANGED, UNCHANGED

    def change(self, kind: int, value: int) -> bool:
        """False for a value that the kind does not take."""
        match kind:
            case Kind.FREEZE:
                self.add |= value
            case Kind.UNFREEZE:
                self.add &= ~value
                self.keep &= ~value
            case Kind.CLOSE_WALLET:
                self.add |= FLAG_CLOSED
            case Kind.SET_OVERDRAFT_LIMIT:
                self.overdraft_limit = value
            case Kind.SET_TIER:
                self.tier = value
        return value in _TAKES[kind]


def changes_state(batch: Batch) -> NDArray[np.bool_]:
    """Which records of the batch change the state of a wallet."""
    changing: NDArray[np.bool_] = _CHANGES_STATE[batch.records["kind"]]
    return changing


def opened_flags(records: NDArray[np.void]) -> Numbers:
    """The flags that each wallet of these openings has from then on."""
    return np.where(records["flags"] & RequestFlag.EXTERNAL, np.int64(FLAG_EXTERNAL), np.int64(0))


def state_changes_of(batch: Batch) -> StateChanges | None:
    """None if the batch changes no state. Raises CorruptRecord for a value that no request can set."""
    changing = np.flatnonzero(changes_state(batch))
    if not len(changing):
        return None
    states: dict[int, _State] = {}
    records = batch.records[changing]
    for at, kind, wallet, value in zip(
        changing.tolist(),
        records["kind"].tolist(),
        records["debit"].tolist(),
        records["amount"].astype(np.int64).tolist(),
        strict=True,
    ):
        if not states.setdefault(wallet, _State()).change(kind, value):
            raise CorruptRecord(f"sequence {batch.sequence[at]}: kind {kind} takes no {value}")
    columns = [[wallet, it.keep, it.add, it.tier, it.overdraft_limit] for wallet, it in sorted(states.items())]
    return StateChanges(*np.array(columns, np.int64).T)
