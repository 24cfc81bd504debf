"""How cases are printed: a table for people, or one JSON object a line for programs; nothing else goes to stdout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.table import Table

from bench.measure import Case
from gateway.output import out, print_json, say

# Heading, field.
_COLUMNS = (
    ("transfers/s", "transfers_per_s"),
    ("p50 ms", "p50_ms"),
    ("p99 ms", "p99_ms"),
    ("batch", "batch"),
    ("of ceiling", "ratio_to_ceiling"),
    ("of prototype", "ratio_to_prototype"),
    ("server us", "server_us_per_transfer"),
    ("slowest to fastest", "transfers_per_s_range"),
)
_IN_TABLE = {field for _, field in _COLUMNS} | {"rounds", "client_us_per_transfer"}


def report(title: str, cases: Iterable[Case], *, as_json: bool) -> None:
    """Print the cases: as JSON as they come, for people all in the end."""
    if as_json:
        for case in cases:
            print_json(case.as_json())
        return
    measured = list(cases)
    out.print(_table(title, measured))
    for line in _lines(measured):
        say(line)


def _table(title: str, cases: Sequence[Case]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("case", no_wrap=True)
    for heading, _ in _COLUMNS:
        table.add_column(heading, justify="right")
    for case in cases:
        fields = case.as_json()
        table.add_row(case.case, *(_cell(fields.get(field)) for _, field in _COLUMNS))
    return table


def _lines(cases: Sequence[Case]) -> Iterator[str]:
    """What the table has no room for: targets, the figures that only some cases have, the durability."""
    for case in cases:
        if case.target is not None:
            yield f"{'reached' if case.reached else 'NOT reached'}: {case.case}: {case.target}"
    for case in cases:
        fields = case.as_json()
        besides = [
            f"{name} {_cell(fields[name])}"
            for name in case.details
            if name not in _IN_TABLE and fields[name] is not None
        ]
        if besides:
            yield f"{case.case}: {', '.join(besides)}"
    for durability in dict.fromkeys(case.durability for case in cases):
        yield f"{durability}: {', '.join(case.case for case in cases if case.durability == durability)}"


def _cell(value: object) -> str:
    if isinstance(value, list):
        return " to ".join(map(_cell, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value:,}" if isinstance(value, int | float) else str(value)
