"""The side stream of refused movements, as rows of declined_attempt: best effort by design.

Redis keeps a bounded number of them until they are read here. Nothing in it can stop the shard: what cannot be
decoded is left out.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from engine.domain.money import MAX_AMOUNT_MINOR
from engine.wire import DECLINED
from persister.copy_binary import Rows
from persister.formats import DECLINED_ATTEMPT
from persister.journal import MAX_TIME_MS, microseconds, numpy_type

BEGINNING = "0-0"
"""The place in the stream before its first entry."""

_DECLINED = numpy_type(DECLINED)


def rows_of(shard: int, entries: Iterable[bytes]) -> Rows:
    """entries: packed DECLINEDs, of each entry of the stream."""
    whole = [packed for packed in entries if len(packed) % DECLINED.size == 0]
    found = np.frombuffer(b"".join(whole), _DECLINED)
    amount, time_ms = found["amount"], found["time_ms"]
    # All false for NaN.
    sound = (amount >= 0) & (amount <= MAX_AMOUNT_MINOR) & (time_ms >= 0) & (time_ms < MAX_TIME_MS)
    found = found[sound]
    return DECLINED_ATTEMPT.rows(
        len(found),
        at=microseconds(found["time_ms"].astype(np.int64)),
        shard=shard,
        transfer_id=found["id"],
        kind=found["kind"],
        status=found["status"],
        rule=found["rule"],
        debit_wallet_id=found["debit"],
        credit_wallet_id=found["credit"],
        amount=found["amount"],
        device=found["device"],
        ip=found["ip"],
    )
