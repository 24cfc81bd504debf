"""Cases as lists of steps: a request and the status that it ends with, or time that passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tests.fixtures.shard import Asked, ShardDriver

Step = tuple[Asked, str] | int
"""A request and its status; or milliseconds that pass."""

OK = "POSTED"


def run(shard: ShardDriver, steps: Sequence[Step], *, at_once: bool = False) -> None:
    """Each request in a batch of its own; at_once: all that time does not part in one batch."""
    batch: list[tuple[int, Asked, str]] = []
    for number, step in enumerate(steps):
        if isinstance(step, int):
            _post(shard, batch)
            shard.pass_time(step)
        else:
            batch.append((number, *step))
            if not at_once:
                _post(shard, batch)
    _post(shard, batch)


def both_ways(shard: ShardDriver) -> Iterator[bool]:
    """At once or not: whether the requests of a case come in one batch. It begins anew for the second way."""
    yield False
    shard.begin_again()
    yield True


def _post(shard: ShardDriver, batch: list[tuple[int, Asked, str]]) -> None:
    if not batch:
        return
    numbers, records, statuses = zip(*batch, strict=True)
    found = shard.statuses(records)
    assert dict(zip(numbers, found, strict=True)) == dict(zip(numbers, statuses, strict=True))
    batch.clear()


def case_ids(cases: Sequence[tuple[Any, ...]]) -> list[str]:
    """Names of cases by their first field, made distinct by their place."""
    return [f"{str(case[0]).replace(' ', '_')}-{number}" for number, case in enumerate(cases)]
