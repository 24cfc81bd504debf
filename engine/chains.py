"""Chains of linked requests, and how a list of requests is cut into batches: a chain never splits across two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.domain.status import Status
from engine.domain.transfer import Outcome
from engine.errors import InvalidRequest
from engine.requests import Packed, as_chain
from engine.wire import MAX_BATCH

Placed = tuple[int, Packed]
"""A packed request and its place in the caller's list."""


def batches(packed: Sequence[Packed], outcomes: list[Outcome | None]) -> Iterator[list[Placed]]:
    """The requests in batches of at most MAX_BATCH, chains as such.

    outcomes: gets the answer of each request that is refused here: a chain longer than a batch, and one that is open
    at the end. Raises InvalidRequest for an id that a chain has twice, before the first batch.
    """
    if not any(request.linked for request in packed):
        for start in range(0, len(packed), MAX_BATCH):
            yield list(enumerate(packed[start : start + MAX_BATCH], start))
        return
    groups = [group for group in _groups(packed) if not _refused(group, outcomes)]
    batch: list[Placed] = []
    for group in groups:
        if len(batch) + len(group) > MAX_BATCH:
            yield batch
            batch = []
        batch += group
    if batch:
        yield batch


def _groups(packed: Sequence[Packed]) -> list[list[Placed]]:
    """Each a single request, or the requests of one chain with its digest."""
    groups: list[list[Placed]] = []
    start = 0
    for at, request in enumerate(packed):
        if request.linked and at + 1 < len(packed):
            continue
        members = list(packed[start : at + 1])
        if len(members) > 1 or request.linked:
            if len({member.id for member in members}) < len(members):
                raise InvalidRequest("id", "used once in a chain", f"a chain of {len(members)} with one twice")
            members = as_chain(members)
        groups.append(list(enumerate(members, start)))
        start = at + 1
    return groups


def _refused(group: list[Placed], outcomes: list[Outcome | None]) -> bool:
    """Whether the group is refused before it is sent; its answers are in outcomes then."""
    if len(group) > MAX_BATCH:
        statuses = [Status.CHAIN_TOO_LONG] * len(group)
    elif group[-1][1].linked:
        statuses = [Status.LINKED_FAILED] * (len(group) - 1) + [Status.LINKED_CHAIN_OPEN]
    else:
        return False
    for (at, request), status in zip(group, statuses, strict=True):
        outcomes[at] = Outcome(status, 0, False, 0, 0, request.id)
    return True
