"""What commands print: one JSON object for programs, tables for people; only answers go to stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any
from uuid import UUID

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine import Kind, Outcome, Rule, Status
from persister.report import Report
from persister.verify import ChainVerifier

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
    """Integers get separators, and their columns are aligned to the right; None is an empty cell.

    An id is never folded, because people copy it.
    """
    cells = [tuple(row) for row in rows]
    made = Table(title=title, title_justify="left")
    for at, name in enumerate(columns):
        numeric = bool(cells) and all(isinstance(row[at], int) for row in cells)
        whole = any(isinstance(row[at], UUID) for row in cells)
        made.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=whole)
    for row in cells:
        made.add_row(*map(_cell, row))
    out.print(made)


def utc(at: datetime | int | None) -> str | None:
    """A moment, given in ms since 1970 if it is an integer, for people."""
    if isinstance(at, int):
        at = datetime.fromtimestamp(at / 1000, UTC)
    return None if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def age(seconds: float) -> str:
    """A length of time for people, such as 2d 3h or 4m 5s."""
    left = max(0, round(seconds))
    parts = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        if left >= size:
            parts.append(f"{left // size}{unit}")
        left %= size
    return " ".join(parts[:2]) or "0s"


def rule_name(number: int) -> str | None:
    """Of a fraud rule; None for 0, which is none."""
    return Rule(number).name if number else None


def in_words(kind: Kind) -> str:
    return kind.name.lower().replace("_", " ")


def side(wallet_id: int) -> str:
    """A wallet for people: external ones have long negative ids."""
    return str(wallet_id) if wallet_id > 0 else "outside"


def record_json(record: Any) -> dict[str, Any]:
    """A named tuple by its fields, with the names of enumerated values and of a fraud rule."""
    fields: dict[str, Any] = {
        name: value.name if isinstance(value, IntEnum) else value for name, value in record._asdict().items()
    }
    return fields | ({"rule": rule_name(fields["rule"])} if "rule" in fields else {})


def outcome_json(outcome: Outcome, key: str | None) -> dict[str, Any]:
    """rule, used and retry_at_ms are null unless a fraud rule stopped the request; see engine.Outcome."""
    return {
        "status": outcome.status,
        "sequence": outcome.sequence,
        "replayed": outcome.replayed,
        "debit_available_minor": outcome.debit_available_minor,
        "credit_available_minor": outcome.credit_available_minor,
        "amount_minor": outcome.amount_minor,
        "rule": rule_name(outcome.rule),
        "used": outcome.used if outcome.status is Status.LIMIT_EXCEEDED else None,
        "retry_at_ms": outcome.retry_at_ms or None,
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


def chain_json(verified: ChainVerifier) -> dict[str, Any]:
    return {
        "ok": verified.ok,
        "shard": verified.shard,
        "after_sequence": verified.after.sequence,
        "sequence": verified.head.sequence,
        "head": verified.head.link,
        "entries": verified.entries,
        "records": verified.records,
        "bad_entries": verified.bad_total,
        "first_bad": verified.bad[0]._asdict() if verified.bad else None,
        "bad": [bad._asdict() for bad in verified.bad[:MAX_DIFFERENCES_SHOWN]],
        "ends": [end._asdict() for end in verified.ends],
    }


def print_chain(verified: ChainVerifier) -> None:
    say(
        f"Looked at {verified.entries:,} journal entries with {verified.records:,} records, "
        f"sequence {verified.after.sequence + 1:,} to {verified.head.sequence:,}."
    )
    for at, bad in enumerate(verified.bad[:MAX_DIFFERENCES_SHOWN]):
        say(
            f"{'FIRST BAD' if at == 0 else 'bad'}: journal entry with sequences {bad.first_sequence:,} to "
            f"{bad.last_sequence:,}, epoch {bad.epoch}, {utc(bad.at)} UTC: its rows make {bad.made}, "
            f"the chain has {bad.found}"
        )
    for end in verified.ends:
        say(f"BAD: {end.subject}: {end.found}; expected: {end.expected}")
    if verified.bad_total > MAX_DIFFERENCES_SHOWN:
        say(f"... and {verified.bad_total - MAX_DIFFERENCES_SHOWN:,} more entries")
    if verified.ok:
        say(f"The chain verifies. Head at sequence {verified.head.sequence:,}: {verified.head.link.hex()}")
    else:
        say(f"The chain does NOT verify: {verified.bad_total:,} bad entries, {len(verified.ends)} faults at its end.")


def _cell(value: object) -> Text:
    if isinstance(value, int) and not isinstance(value, bool):
        return Text(f"{value:,}")
    return Text("" if value is None else str(value))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(type(value).__name__)
