"""How cases are printed: a table for people, or one JSON object a line for programs; nothing else goes to stdout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from bench.measure import Case
from gateway.output import out, print_json

_COLUMNS = ("case", "transfers/s", "p50 ms", "p99 ms", "batch", "of ceiling", "of prototype", "besides", "target")
_IN_COLUMNS = frozenset({"rounds"})


def report(title: str, cases: Iterable[Case], *, as_json: bool) -> None:
    """Print the cases as they come, or as one table in the end."""
    if as_json:
        for case in cases:
            print_json(case.as_json())
    else:
        measured = list(cases)
        out.print(_table(title, measured))
        for durability in dict.fromkeys(case.durability for case in measured):
            names = ", ".join(case.case for case in measured if case.durability == durability)
            out.print(f"{durability}: {names}", markup=False)


def _table(title: str, cases: Sequence[Case]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in _COLUMNS:
        is_text = name in ("case", "besides", "target")
        table.add_column(name, justify="left" if is_text else "right", overflow="fold")
    for case in cases:
        fields = case.as_json()
        table.add_row(
            case.case,
            *(
                _cell(fields[name])
                for name in (
                    "transfers_per_s",
                    "p50_ms",
                    "p99_ms",
                    "batch",
                    "ratio_to_ceiling",
                    "ratio_to_prototype",
                )
            ),
            "\n".join(
                f"{name} {_cell(fields[name])}" for name in case.details if name not in _IN_COLUMNS and fields[name]
            ),
            _verdict(case),
        )
    return table


def _verdict(case: Case) -> Text:
    if case.target is None:
        return Text("")
    if case.reached:
        return Text(f"reached: {case.target}", style="green")
    return Text(f"NOT reached: {case.target}", style="red")


def _cell(value: object) -> str:
    if isinstance(value, list):
        return " to ".join(map(_cell, value))
    return "" if value is None else f"{value:,}" if isinstance(value, int | float) else str(value)
