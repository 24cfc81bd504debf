"""Limits of tiers in TOML: the fields of engine.TierLimits under their own names; review is a list of rules' names."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine import InvalidRequest, Rule, TierLimits
from engine.domain.limits import check_limits

MAX_FILE_BYTES = 1 << 20


def read_toml(path: Path, name: str) -> dict[str, Any]:
    """The file's tables. name: the option that gave it. Raises InvalidRequest."""
    try:
        with path.open("rb") as file:
            packed = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidRequest(name, f"a file that can be read ({error.strerror})", str(path)) from None
    if len(packed) > MAX_FILE_BYTES:
        raise InvalidRequest(name, f"a file of at most {MAX_FILE_BYTES} bytes", str(path))
    try:
        return tomllib.loads(packed.decode())
    except ValueError as error:  # of TOML or of UTF-8
        raise InvalidRequest(name, f"a TOML file ({error})", str(path)) from None


def limits_of(fields: Mapping[str, Any], where: str) -> TierLimits:
    """The limits that a table names; what it does not name is no limit. Raises InvalidRequest, naming where.field."""
    unknown = sorted(set(fields) - set(TierLimits._fields))
    if unknown:
        raise InvalidRequest(f"{where}{unknown[0]}", f"one of {', '.join(TierLimits._fields)}", fields[unknown[0]])
    values = dict(fields)
    if "review" in values:
        values["review"] = _rules(values["review"], f"{where}review")
    try:
        return check_limits(TierLimits(**values))
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}{error.field}", error.bound, error.value) from None


def limits_json(limits: TierLimits) -> dict[str, Any]:
    """As a table of the file would have them, with null for no limit."""
    return limits._asdict() | {"review": [rule.name for rule in sorted(limits.review)]}


def _rules(names: Any, field: str) -> frozenset[Rule]:
    if not isinstance(names, list) or not all(name in Rule.__members__ for name in names):
        raise InvalidRequest(field, f"a list of {', '.join(Rule.__members__)}", names)
    return frozenset(Rule[name] for name in names)
