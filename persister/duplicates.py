"""A transfer id that comes again after Redis forgot it: the ledger's side of what was already decided.

Redis keeps outcomes for two idempotency generations. A key that returns later is a new request to it, posted and
answered; the ledger must hold what happened, and its transfer ids are unique. So the late one, whatever kind of
movement it is, is entered under an id derived from the first, and listed in transfer_duplicate: sequences, versions
and balances stay those of Redis, the shard goes on, and undoing the payment is an operator's decision.

Nothing that refers to such an id is renamed. A refund is judged by all that was paid under the id (checks/refunds.sql);
a hold's id is no transfer's, and names the last hold that was made under it (holds.py).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from hashlib import blake2b
from typing import NamedTuple
from uuid import UUID

import numpy as np

from engine.domain.ids import ID_BYTES, as_uuid8
from persister.journal import Batch


class Duplicate(NamedTuple):
    """transfer_id: what the late transfer is entered under. duplicate_of: the id that it came with."""

    transfer_id: UUID
    duplicate_of: UUID
    sequence: int


def ids_of_transfers(batch: Batch) -> list[UUID]:
    """The ids of the batch's movements of money."""
    return [UUID(bytes=packed.tobytes()) for packed in batch.records["id"][batch.moves_money]]


def renamed(batch: Batch, known: Collection[UUID], shard: int) -> tuple[Batch, list[Duplicate]]:
    """The batch with another id for each transfer whose id the ledger has, or an earlier record of the batch.

    known: the ids of the batch that the ledger has.
    """
    records, seen, found = batch.records.copy(), set(known), []
    for at in np.flatnonzero(batch.moves_money):
        came_with = UUID(bytes=records["id"][at].tobytes())
        if came_with in seen:
            sequence = int(batch.sequence[at])
            derived = derived_id(came_with, shard, sequence)
            records["id"][at] = np.void(derived.bytes)
            found.append(Duplicate(derived, came_with, sequence))
        seen.add(came_with)
    return replace(batch, records=records), found


def derived_id(duplicate_of: UUID, shard: int, sequence: int) -> UUID:
    """A UUID of version 8 that no key gives: the same whenever this duplicate is entered."""
    content = duplicate_of.bytes + shard.to_bytes(2, "big") + sequence.to_bytes(8, "big")
    return UUID(bytes=as_uuid8(blake2b(content, digest_size=ID_BYTES, person=b"hotledger.dup").digest()))
