"""Fraud rules for a replay of paysim: what a TOML file says, and how well its rules did by the file's own labels.

[default_tier]                tiers of wallets by their names: C... and M...; 0 has no limits
customers = 1
merchants = 0

[wallet_tier]                 wallets that are in another tier; may be absent
C1231006815 = 2

[tiers.1]                     the fields of engine.TierLimits
max_amount_minor = 100_000
review = ["MAX_AMOUNT"]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine import InvalidRequest, Outcome, Rule, Status, TierLimits
from engine.domain.wallet import check_tier
from gateway.limits_file import limits_of, read_toml
from gateway.replay_rows import is_merchant, wallet_of_name

PAYSIM_RULES = Path(__file__).parent / "rules" / "paysim.toml"
"""Shipped, with how well it does at its top."""

MAX_TIERS = 100
_TABLES = ("default_tier", "wallet_tier", "tiers")
_GROUPS = ("customers", "merchants")


@dataclass(frozen=True)
class Rules:
    """tiers: their limits. customers, merchants: the tier of a wallet that by_wallet does not name."""

    tiers: Mapping[int, TierLimits]
    customers: int
    merchants: int
    by_wallet: Mapping[int, int]

    def tier_of(self, wallet_id: int) -> int:
        return self.by_wallet.get(wallet_id, self.merchants if is_merchant(wallet_id) else self.customers)


@dataclass(slots=True)
class Group:
    """Rows with one label. declined, reviewed: by a fraud rule; by_rule: both. volume_minor: what all of them asked to
    move; stopped_minor: of that, what a rule stopped. posted: what moved at once; the rest was refused otherwise."""

    rows: int = 0
    posted: int = 0
    declined: int = 0
    reviewed: int = 0
    volume_minor: int = 0
    stopped_minor: int = 0
    by_rule: Counter[Rule] = field(default_factory=Counter)

    @property
    def stopped(self) -> int:
        return self.declined + self.reviewed

    def add(self, amount_minor: int, outcome: Outcome) -> None:
        self.rows += 1
        self.volume_minor += amount_minor
        self.posted += outcome.status is Status.POSTED
        if outcome.status in (Status.LIMIT_EXCEEDED, Status.UNDER_REVIEW):
            self.declined += outcome.status is Status.LIMIT_EXCEEDED
            self.reviewed += outcome.status is Status.UNDER_REVIEW
            self.stopped_minor += amount_minor
            self.by_rule[Rule(outcome.rule)] += 1

    def as_json(self) -> dict[str, Any]:
        """The shares are of rows and of money, 0 to 1; null where there are none."""
        return {
            "rows": self.rows,
            "stopped": self.stopped,
            "stopped_share": _share(self.stopped, self.rows),
            "declined": self.declined,
            "reviewed": self.reviewed,
            "posted": self.posted,
            "by_rule": {rule.name: count for rule, count in sorted(self.by_rule.items())},
            "volume_minor": self.volume_minor,
            "stopped_minor": self.stopped_minor,
            "stopped_minor_share": _share(self.stopped_minor, self.volume_minor),
        }


@dataclass(slots=True)
class Stopped:
    """What the rules stopped, by the rows' labels."""

    fraud: Group = field(default_factory=Group)
    honest: Group = field(default_factory=Group)

    def add(self, amount_minor: int, outcome: Outcome, fraud: bool) -> None:
        (self.fraud if fraud else self.honest).add(amount_minor, outcome)

    def as_json(self) -> dict[str, Any]:
        return {"fraud": self.fraud.as_json(), "honest": self.honest.as_json()}


def read_rules(path: Path) -> Rules:
    """Raises InvalidRequest, naming the table and field."""
    tables = read_toml(path, "--rules")
    for name in tables:
        if name not in _TABLES:
            raise InvalidRequest(name, f"one of the tables {', '.join(_TABLES)}", tables[name])
    limits = _optional_table(tables, "tiers")
    tiers = {_number(text): limits_of(_table(limits, text, "tiers."), f"tiers.{text}.") for text in limits}
    if len(tiers) > MAX_TIERS:
        raise InvalidRequest("tiers", f"at most {MAX_TIERS} tables", f"{len(tiers)} tables")
    defaults = _table(tables, "default_tier")
    for name in (*_GROUPS, *defaults):
        if name not in defaults or name not in _GROUPS:
            raise InvalidRequest("default_tier", f"a table of {' and '.join(_GROUPS)}", defaults)
    by_name = _optional_table(tables, "wallet_tier")
    return Rules(
        tiers,
        customers=_known(tiers, defaults["customers"], "default_tier.customers"),
        merchants=_known(tiers, defaults["merchants"], "default_tier.merchants"),
        by_wallet={
            wallet_of_name(name, "wallet_tier"): _known(tiers, tier, f"wallet_tier.{name}")
            for name, tier in by_name.items()
        },
    )


def _table(tables: Mapping[str, Any], name: str, above: str = "") -> dict[str, Any]:
    table = tables.get(name)
    if not isinstance(table, dict):
        raise InvalidRequest(f"{above}{name}", "a table", table)
    return table


def _optional_table(tables: Mapping[str, Any], name: str) -> dict[str, Any]:
    return _table(tables, name) if name in tables else {}


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 5:
        raise InvalidRequest("tiers", "tables named by the tier's number, such as [tiers.1]", text)
    return check_tier(int(text), at_least=1)


def _known(tiers: Mapping[int, TierLimits], tier: Any, field: str) -> int:
    if type(tier) is not int or (tier != 0 and tier not in tiers):
        raise InvalidRequest(field, "0 or a tier that the file has limits for", tier)
    return tier


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None
