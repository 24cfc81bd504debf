"""The audit: what the clients recorded against what the ledger has, and Redis against both.

It needs servers that are at rest: everything drained, no client left. The queries are in persister/sql/torture.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import psycopg

from engine import Engine, Outcome
from engine.domain.status import ACCEPTED, STATUS_OF
from gateway.torture.recorder import LEVELS, read_records
from gateway.torture.world import SHARD, Loss
from persister.copy_binary import RowFormat
from persister.reconcile import reconcile
from persister.sql import sql

MAX_DETAILS = 50
"""Most findings of one kind that are told; all are counted."""

MAX_LOOKUPS = 2_000
LOOKUPS_AT_ONCE = 16
LOOKUP_TIMEOUT_MS = 20_000

_RECORD = RowFormat(
    "torture_record", id="uuid", what="int2", level="int2", number="int2", flag="int2", asked_us="int8", at_us="int8",
    sequence="int8", debit="int8", credit="int8", amount="int8",
)  # fmt: skip
_LOSS = RowFormat("torture_loss", level="int2", until_us="int8", after_sequence="int8")

UNFIT = (("answers", "another answer"), ("invented", "not asked for"), ("contents", "other content"))
"""Queries whose every row is a broken invariant, and what it is called."""


@dataclass
class Findings:
    """asked: ids. acknowledged: ids with an accepted outcome, in all and by level. refused: ids. unavailable,
    unknown_answers: attempts that ended so. unknown_applied, unknown_not_applied: ids whose callers do not know, and
    the ledger does. lookups: how many were compared. lost, lost_rightly: acknowledged ids that are gone, against the
    fault model or by it. duplicated: ids. violations: everything else that is wrong. details: of these, in words.
    """

    asked: int = 0
    acknowledged: int = 0
    by_level: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    unavailable: int = 0
    unknown_answers: int = 0
    unknown_applied: int = 0
    unknown_not_applied: int = 0
    lookups: int = 0
    lost: int = 0
    lost_rightly: int = 0
    duplicated: int = 0
    violations: int = 0
    details: list[str] = field(default_factory=list)

    def note(self, kind: str, found: Sequence[str]) -> None:
        self.details += [f"{kind}: {text}" for text in found[:MAX_DETAILS]]


def audit(redis_url: str, postgres_url: str, records: Path, losses: Iterable[Loss], *, at_rest: bool) -> Findings:
    """Everything that can be checked. Raises psycopg.Error or what Engine.connect and reconcile raise.

    at_rest: whether the ledger has all that Redis has; if it has not, Redis is not asked, and what is missing is lost.
    """
    findings = Findings()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        with connection.cursor() as cursor:
            _load(cursor, records, losses)
            _compare(cursor, findings)
            unknown = cursor.execute(sql("torture/unknown")).fetchall()
            known = cursor.execute(sql("torture/acknowledged"), {"limit": MAX_LOOKUPS}).fetchall()
        findings.unknown_applied = sum(sequence is not None for _, sequence in unknown)
        findings.unknown_not_applied = len(unknown) - findings.unknown_applied
    if not at_rest:
        return findings
    asyncio.run(_look_up(redis_url, postgres_url, unknown[:MAX_LOOKUPS], known, findings))
    report = reconcile(redis_url, postgres_url, SHARD)
    findings.violations += report.total
    findings.note(
        "reconcile",
        [f"{d.check}: {d.subject}: found {d.found}, expected {d.expected}" for d in report.differences],
    )
    return findings


def _load(cursor: psycopg.Cursor[Any], records: Path, losses: Iterable[Loss]) -> None:
    cursor.execute("SET work_mem = '128MB'")
    cursor.execute(sql("torture/record"))
    for path in sorted(records.iterdir()):
        found = read_records(path)
        rows = _RECORD.rows(
            len(found),
            asked_us=_microseconds(found["asked_s"]),
            at_us=_microseconds(found["at_s"]),
            **{name: found[name] for name in _RECORD.columns if name not in ("asked_us", "at_us")},
        )
        _RECORD.copy_in(cursor, rows)
    noted = list(losses)
    _LOSS.copy_in(
        cursor,
        _LOSS.rows(
            len(noted),
            level=[LEVELS.index(loss.durability) for loss in noted],
            until_us=_microseconds(np.array([loss.until_s for loss in noted])),
            after_sequence=[loss.after_sequence for loss in noted],
        ),
    )
    # The server takes many statements in one text only if it has no parameters of its own.
    for statement in sql("torture/happened").split(";\n"):
        cursor.execute(statement, {"shard": SHARD})


def _compare(cursor: psycopg.Cursor[Any], findings: Findings) -> None:
    counts = cursor.execute(sql("torture/counts")).fetchone()
    assert counts is not None  # it has no FROM
    findings.acknowledged, *by_level = counts[:4]
    findings.by_level = {level.value: count for level, count in zip(LEVELS, by_level, strict=True)}
    findings.refused, findings.unavailable, findings.unknown_answers, findings.asked = counts[4:]
    lost = cursor.execute(sql("torture/lost"), {"levels": [level.value for level in LEVELS]}).fetchall()
    findings.lost = len({id for id, _ in lost})
    findings.note("lost", [text for _, text in lost])
    [[findings.lost_rightly]] = cursor.execute(sql("torture/lost_rightly")).fetchall()
    twice = cursor.execute(sql("torture/duplicated"), {}).fetchall()
    findings.duplicated = len(twice)
    findings.note("duplicated", [text for _, text in twice])
    for name, words in UNFIT:
        found = cursor.execute(sql(f"torture/{name}"), {}).fetchall()
        findings.violations += len(found)
        findings.note(words, [text for _, text in found])


async def _look_up(
    redis_url: str, postgres_url: str, unknown: Sequence[Any], known: Sequence[Any], findings: Findings
) -> None:
    """The engine says the same as the ledger: of what was unknown, and of some of what was acknowledged."""
    wrong: list[str] = []
    room = asyncio.Semaphore(LOOKUPS_AT_ONCE)

    async def look_up(id: UUID) -> Outcome:
        async with room:
            return await engine.lookup(id=id, timeout_ms=LOOKUP_TIMEOUT_MS)

    async with Engine.connect(redis_url, postgres_url, timeout_ms=LOOKUP_TIMEOUT_MS) as engine:
        found = await asyncio.gather(*(look_up(id) for id, *_ in (*unknown, *known)))
    for (id, sequence), outcome in zip(unknown, found, strict=False):
        now = outcome.sequence if outcome.status in ACCEPTED else None
        if now != sequence:
            wrong.append(f"{id} is {outcome.status} at {outcome.sequence}, the ledger has it at {sequence}")
    for (id, *answer), outcome in zip(known, found[len(unknown) :], strict=True):
        status, rule, *figures = answer
        given = (STATUS_OF[status], rule, *figures)
        if given != _answer(outcome):
            wrong.append(f"{id} was answered {given}, and is now {_answer(outcome)}")
    findings.lookups = len(found)
    findings.violations += len(wrong)
    findings.note("lookup", wrong)


def _answer(outcome: Outcome) -> tuple[Any, ...]:
    return (
        outcome.status, outcome.rule, outcome.sequence, outcome.debit_available_minor, outcome.credit_available_minor,
        outcome.amount_minor,
    )  # fmt: skip


def _microseconds(seconds: Any) -> Any:
    return (np.asarray(seconds, np.float64) * 1e6).astype(np.int64)
