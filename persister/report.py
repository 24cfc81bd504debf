"""What reconciliation found: checks, each with its differences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from persister.chain import Head

MAX_DIFFERENCES = 1000
"""Most differences that a check keeps; it counts them all."""


class Difference(NamedTuple):
    """Two things that should agree and do not. subject: what it is about, e.g. 'wallet 17'; it stays the same as long
    as the difference does. found, expected: of the check `redis`, what Redis and what the ledger has, and of wallets
    both sides' versions."""

    check: str
    subject: str
    found: str
    expected: str
    redis_version: int | None = None
    ledger_version: int | None = None


@dataclass
class Check:
    """One check. proves: in words. checked: how many things it looked at. total: how many differences there are,
    of which at most MAX_DIFFERENCES are kept in differences. incomplete: why it could not look at everything, which
    is one of the differences."""

    name: str
    proves: str
    checked: int = 0
    differences: list[Difference] = field(default_factory=list)
    total: int = 0
    seconds: float = 0.0
    incomplete: Difference | None = None

    @property
    def ok(self) -> bool:
        return self.total == 0

    @property
    def drift(self) -> list[Difference]:
        """The differences that were kept, without the one that says why the check is incomplete."""
        return [difference for difference in self.differences if difference is not self.incomplete]

    def differs(
        self,
        subject: str,
        found: str,
        expected: str,
        redis_version: int | None = None,
        ledger_version: int | None = None,
    ) -> None:
        """Count a difference, and keep it if there is room."""
        self.add(Difference(self.name, subject, found, expected, redis_version, ledger_version))

    def add(self, difference: Difference) -> None:
        """As differs."""
        self.total += 1
        if len(self.differences) < MAX_DIFFERENCES:
            self.differences.append(difference)

    def give_up(self, subject: str, found: str, expected: str) -> None:
        """Say why the check comes to no end; it is kept whatever else there is."""
        self.incomplete = Difference(self.name, subject, found, expected)
        self.total += 1
        self.differences.insert(0, self.incomplete)

    def forget(self) -> None:
        """Take back what differed."""
        self.differences.clear()
        self.total = 0


@dataclass
class Report:
    """A reconciliation of one shard. sequence: how far the ledger was; chain: the head of its sha256 chain then, in
    hex, as the ledger says; head: the place in the chain up to which it was verified."""

    shard: int
    sequence: int = 0
    chain: str = ""
    checks: list[Check] = field(default_factory=list)
    head: Head | None = None

    def check(self, name: str, proves: str) -> Check:
        """The check of that name; made if there is none yet."""
        for check in self.checks:
            if check.name == name:
                return check
        self.checks.append(Check(name, proves))
        return self.checks[-1]

    def merge(self, more: Check) -> None:
        """Add a check to the one of its name."""
        check = self.check(more.name, more.proves)
        check.checked += more.checked
        check.seconds += more.seconds
        check.incomplete = check.incomplete or more.incomplete
        check.differences += more.differences[: MAX_DIFFERENCES - len(check.differences)]
        check.total += more.total

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    @property
    def why_incomplete(self) -> str | None:
        """Why a check could not look at everything; None if all could."""
        found = next((check.incomplete for check in self.checks if check.incomplete), None)
        return f"{found.subject}: {found.found}" if found else None

    @property
    def checked(self) -> int:
        """How many things were looked at."""
        return sum(check.checked for check in self.checks)

    @property
    def total(self) -> int:
        """How many differences there are in all."""
        return sum(check.total for check in self.checks)

    @property
    def differences(self) -> list[Difference]:
        """Those that were kept."""
        return [difference for check in self.checks for difference in check.differences]
