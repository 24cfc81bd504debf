"""What reconciliation found: checks, each with its differences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

MAX_DIFFERENCES = 1000
"""Most differences that a check keeps; it counts them all."""


class Difference(NamedTuple):
    """Two things that should agree and do not. subject: what it is about, e.g. 'wallet 17'."""

    check: str
    subject: str
    found: str
    expected: str


@dataclass
class Check:
    """One check. proves: in words. checked: how many things it looked at. total: how many differences there are,
    of which at most MAX_DIFFERENCES are kept in differences."""

    name: str
    proves: str
    checked: int = 0
    differences: list[Difference] = field(default_factory=list)
    total: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.total == 0

    def differs(self, subject: str, found: str, expected: str) -> None:
        """Count a difference, and keep it if there is room."""
        self.total += 1
        if len(self.differences) < MAX_DIFFERENCES:
            self.differences.append(Difference(self.name, subject, found, expected))


@dataclass
class Report:
    """A reconciliation of one shard. sequence: how far the ledger was; chain: the head of its sha256 chain then."""

    shard: int
    sequence: int = 0
    chain: str = ""
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    @property
    def total(self) -> int:
        """How many differences there are in all."""
        return sum(check.total for check in self.checks)

    @property
    def differences(self) -> list[Difference]:
        """Those that were kept."""
        return [difference for check in self.checks for difference in check.differences]
