"""What commands print: one JSON object for programs, tables for people; only answers go to stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine import Outcome
from persister.report import Report

MAX_DIFFERENCES_SHOWN = 50

PLAIN_COLUMNS = 120
"""How wide tables are where there is no terminal to ask."""

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PLAIN_COLUMNS)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: dict[str, Any]) -> None:
    """One object on one line."""
    sys.stdout.buffer.write(orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS) + b"\n")
    sys.stdout.buffer.flush()


def say(text: str) -> None:
    """A line for people, on stdout; brackets are brackets."""
    out.print(text, markup=False)


def note(text: str) -> None:
    """A line beside the answer, on stderr."""
    err.print(text, markup=False)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Integers get separators, and their columns are aligned to the right; None is an empty cell."""
    cells = [tuple(row) for row in rows]
    made = Table(title=title, title_justify="left")
    for at, name in enumerate(columns):
        numeric = bool(cells) and all(isinstance(row[at], int) for row in cells)
        made.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        made.add_row(*map(_cell, row))
    out.print(made)


def outcome_json(outcome: Outcome, key: str | None) -> dict[str, Any]:
    return {
        "status": outcome.status,
        "sequence": outcome.sequence,
        "replayed": outcome.replayed,
        "debit_available_minor": outcome.debit_available_minor,
        "credit_available_minor": outcome.credit_available_minor,
        "transfer_id": outcome.transfer_id,
        "key": key,
    }


def report_json(report: Report) -> dict[str, Any]:
    return {
        "ok": report.ok,
        "drift": report.total,
        "shard": report.shard,
        "sequence": report.sequence,
        "chain": report.chain,
        "checks": [
            {
                "name": check.name,
                "proves": check.proves,
                "ok": check.ok,
                "checked": check.checked,
                "differences": check.total,
                "seconds": round(check.seconds, 3),
            }
            for check in report.checks
        ],
        "differences": [difference._asdict() for difference in report.differences],
    }


def print_report(report: Report) -> None:
    """The checks, then each difference that there is room for."""
    table(
        f"Reconciliation at sequence {report.sequence:,}",
        ("check", "proves", "looked at", "differences", "seconds"),
        [(c.name, c.proves, c.checked, c.total, f"{c.seconds:.2f}") for c in report.checks],
    )
    for difference in report.differences[:MAX_DIFFERENCES_SHOWN]:
        say(f"{difference.check}: {difference.subject}: found {difference.found}, expected {difference.expected}")
    if report.total > MAX_DIFFERENCES_SHOWN:
        say(f"... and {report.total - MAX_DIFFERENCES_SHOWN} more; --json lists those that were kept")
    say("Reconciled: no difference." if report.ok else f"NOT reconciled: {report.total} differences.")


def _cell(value: object) -> Text:
    if isinstance(value, int) and not isinstance(value, bool):
        return Text(f"{value:,}")
    return Text("" if value is None else str(value))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(type(value).__name__)
