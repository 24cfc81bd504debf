"""What a measurement is, how the runs of several rounds become one case, and when a case reaches its target.

A machine is never quiet, so a figure is the median of several rounds, its range is given beside it, and a ratio is
the median of the ratios of each round: both of its sides were measured within seconds of each other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryFile
from types import MappingProxyType
from typing import Any, NamedTuple, Self

_SYNCS = 200


class Sample(NamedTuple):
    """One run of one thing.

    transfers_per_s: by the wall clock. p50_ms, p99_ms: of one call. batch: average records per call of `post`.
    server_us: time inside `post` per transfer, without the sync of the append-only file, which follows it.
    client_us: processor time of the calling process per transfer. None where there is no such thing.
    """

    transfers_per_s: float
    p50_ms: float | None = None
    p99_ms: float | None = None
    batch: float | None = None
    server_us: float | None = None
    client_us: float | None = None

    @property
    def server_transfers_per_s(self) -> float | None:
        """What the server could decide if nothing else took time."""
        return 1e6 / self.server_us if self.server_us else None


@dataclass(frozen=True, kw_only=True)
class Case:
    """One line of a report. details: what this case has besides the fields that all have.

    ratio_to_ceiling: of transfers_per_s to that of the ceiling at batch 1,024. target: in words; reached: None where
    there is no target.
    """

    case: str
    transfers_per_s: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    batch: float | None = None
    durability: str
    ratio_to_ceiling: float | None = None
    ratio_to_prototype: float | None = None
    target: str | None = None
    reached: bool | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        case: str,
        durability: str,
        samples: Sequence[Sample],
        *,
        ratio_to_ceiling: float | None = None,
        ratio_to_prototype: float | None = None,
        details: Mapping[str, Any] = MappingProxyType({}),
    ) -> Self:
        """The medians of the rounds."""
        rates = [sample.transfers_per_s for sample in samples]
        return cls(
            case=case,
            durability=durability,
            transfers_per_s=median(rates),
            p50_ms=middle(sample.p50_ms for sample in samples),
            p99_ms=middle(sample.p99_ms for sample in samples),
            batch=middle(sample.batch for sample in samples),
            ratio_to_ceiling=ratio_to_ceiling,
            ratio_to_prototype=ratio_to_prototype,
            details={
                "rounds": len(samples),
                "transfers_per_s_range": [min(rates), max(rates)],
                "server_us_per_transfer": middle(sample.server_us for sample in samples),
                "client_us_per_transfer": middle(sample.client_us for sample in samples),
                **details,
            },
        )

    def judged(self, target: Target | None) -> Self:
        """The same case with its target, and whether it is reached."""
        return self if target is None else replace(self, target=target.text, reached=target.reached_by(self))

    def as_json(self) -> dict[str, Any]:
        """One flat object, its numbers rounded to what they can be trusted for."""
        fields = asdict(self)
        fields.update(fields.pop("details"))
        return {name: _rounded(value) for name, value in fields.items()}


class Target(NamedTuple):
    """What a case should reach: in words, and as a rule."""

    text: str
    reached_by: Callable[[Case], bool]


def at_least(value: float | None, bound: float) -> bool:
    return value is not None and value >= bound


def at_most(value: float | None, bound: float) -> bool:
    return value is not None and value <= bound


def middle(values: Iterable[float | None]) -> float | None:
    """The median of the values that there are."""
    present = [value for value in values if value is not None]
    return median(present) if present else None


def percentiles_ms(latencies_s: Iterable[float]) -> tuple[float | None, float | None]:
    """(p50, p99) in ms of latencies in seconds; (None, None) of none."""
    ordered = sorted(latencies_s)
    if not ordered:
        return None, None
    p50, p99 = (ordered[int(len(ordered) * share)] * 1000 for share in (0.5, 0.99))
    return p50, p99


def ratio(values: Iterable[float | None], bases: Iterable[float | None]) -> float | None:
    """The median of value / base of each round, of those rounds that have both."""
    return middle(value / base if value and base else None for value, base in zip(values, bases, strict=True))


def sync_us(directory: Path | None) -> float:
    """The median time of a small write and its fdatasync in a directory, in us: what `always` costs a batch here."""
    times_s = []
    with TemporaryFile(dir=directory) as file:
        for _ in range(_SYNCS):
            began_s = time.perf_counter()
            os.write(file.fileno(), bytes(4096))
            os.fdatasync(file.fileno())
            times_s.append(time.perf_counter() - began_s)
    return median(times_s) * 1e6


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if not isinstance(value, float):
        return value
    return round(value) if abs(value) >= 1000 else round(value, 3)
