"""The SQL of the ledger, one file a query; migrations are in migrations/."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def sql(name: str) -> str:
    """The text of `<name>.sql` in this directory; FileNotFoundError if there is none."""
    return files(__name__).joinpath(f"{name}.sql").read_text(encoding="utf-8")
