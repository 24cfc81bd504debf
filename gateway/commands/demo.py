"""demo: the main job, end to end, on a simulated day."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from engine import Status, run
from gateway.commands.bundles import bundled
from gateway.commands.ledger import print_statement
from gateway.commands.options import Place
from gateway.demo import CALLERS, DayResult, Step, Watch, run_day
from gateway.demo_day import MERCHANTS, MIN_REQUESTS, Day, simulate
from gateway.exits import Exit
from gateway.output import note, print_json, print_report, record_json, report_json, say, table
from gateway.progress import meter
from gateway.session import Origin, Session, Settings, open_session
from persister import queries
from persister.reconcile import reconcile

STATEMENT_LINES = 8
RETRY_INTERVAL_S = 0.1


@bundled
def demo(
    place: Place,
    requests: Annotated[int, typer.Option(metavar="N", min=MIN_REQUESTS, help="How many requests.")] = 200_000,
    seed: Annotated[int, typer.Option(help="Another seed is another day.")] = 2026,
) -> None:
    """A simulated mobile-money day: 10,000 wallets, 200,000 requests, and the proof that it all adds up.

    Runs on servers of its own in a temporary directory, unless --data or URLs are given; then what it did stays.
    Exits with 0 only if the ledger reconciles without a difference.

    \b
    Example: hotledger demo
    Example: hotledger demo --requests 5000 --seed 7 --json
    """
    with _settings(place) as settings:
        note("Starting the servers ...")
        with open_session(settings, attach=False) as session:
            note("Simulating the day ...")
            day = simulate(seed, requests)
            result = run(_run_day(session, day, seed, requests))
            ended_at = time.monotonic()
            session.wait_until_drained()
            lag = {"max_records": result.max_lag_records, "after_last_answer_s": round(time.monotonic() - ended_at, 3)}
            note("Reconciling ...")
            report = reconcile(session.servers.redis_url, session.servers.postgres_url)
            with session.ledger() as ledger:
                lines = queries.statement(ledger, day.hot_merchant, limit=STATEMENT_LINES)
    if place.as_json:
        statement = [record_json(line) for line in lines]
        print_json(_figures(result) | {"lag": lag, "statement": statement, "reconciliation": report_json(report)})
    else:
        _tell(result, lag, session.servers.origin)
        print_statement(f"The hottest merchant: {MERCHANTS[0]}, wallet {day.hot_merchant}, its last payments", lines)
        print_report(report)
    if not report.ok:
        raise typer.Exit(Exit.REFUSED)


@contextmanager
def _settings(place: Place) -> Iterator[Settings]:
    if place.data or place.redis_url or place.postgres_url:
        yield place.settings
        return
    with tempfile.TemporaryDirectory(prefix="hotledger-demo-") as directory:
        yield Settings(Path(directory) / "data")


async def _run_day(session: Session, day: Day, seed: int, requests: int) -> DayResult:
    with meter("demo") as bar:

        def show(result: DayResult) -> None:
            bar.show(result.requests / requests, f"{result.requests:,} requests")

        async def wait(reason: str) -> None:
            session.check()
            bar.show(0, f"waiting: {reason}")
            await asyncio.sleep(RETRY_INTERVAL_S)

        async with session.engine() as engine:
            return await run_day(engine, day, seed, Watch(wait, show, session.lag_records))


def _figures(result: DayResult) -> dict[str, Any]:
    return {
        "wallets": result.wallets,
        "requests": result.requests,
        "accepted": result.by_status[Status.POSTED],
        "refused": result.requests - result.by_status[Status.POSTED],
        "by_status": dict(result.by_status),
        "later": [{"step": step, "status": status, "count": count} for (step, status), count in _later(result)],
        "pending": result.pending,
        "replays": result.replays,
        "seconds": round(result.seconds, 3),
        "transfers_per_s": round(result.transfers_per_s),
    }


_EXPLAINED = {
    Status.POSTED: "the money moved",
    Status.INSUFFICIENT_FUNDS: "the payer had too little; nothing moved",
    Status.EXISTS_WITH_DIFFERENT_AMOUNT: "a key used again with another amount; nothing moved",
    Status.LIMIT_EXCEEDED: "a newcomer had his limit for the day; nothing moved",
    Status.UNDER_REVIEW: "a large amount for a newcomer: locked until an operator decided",
}
_LATER_EXPLAINED = {
    (Step.CAPTURE, Status.POSTED): "reserved money that the shop took; what was left was given back",
    (Step.VOID, Status.POSTED): "reserved money that was given back",
    (Step.REFUND, Status.POSTED): "purchases returned, as a whole or in part",
    (Step.CONFIRM, Status.POSTED): "a provider's word that a top-up or withdrawal happened, now and again",
    (Step.CONFIRM, Status.HOLD_NOT_FOUND): "word that came before we knew of the top-up; it came again",
    (Step.FAIL, Status.POSTED): "a provider's word that it did not; the money is where it was",
    (Step.FAIL, Status.HOLD_NOT_FOUND): "the same, ahead of the top-up",
    (Step.APPROVE, Status.POSTED): "the operator let a newcomer's movement happen",
    (Step.REJECT, Status.POSTED): "the operator did not; the money was given back",
}
"""A repeated word is answered as the first one was."""


def _later(result: DayResult) -> list[tuple[tuple[Step, Status], int]]:
    """By step in its order, the most frequent status first."""
    return sorted(result.later.items(), key=lambda item: (list(Step).index(item[0][0]), -item[1]))


def _tell(result: DayResult, lag: dict[str, Any], origin: Origin) -> None:
    durable = "" if origin is Origin.GIVEN else ", each on disk before its answer"
    say(f"{result.wallets:,} wallets, {result.requests:,} requests, by {CALLERS} callers at once and in bulk:")
    table(
        "Decisions",
        ("status", "requests", ""),
        [(status, count, _EXPLAINED.get(status)) for status, count in result.by_status.most_common()],
    )
    table(
        "What came of it later",
        ("step", "status", "times", ""),
        [(step, status, count, _LATER_EXPLAINED.get((step, status))) for (step, status), count in _later(result)],
    )
    say(f"Top-ups and withdrawals that still wait for their provider: {result.pending:,}")
    say(f"Retries answered from the record, without moving money again: {result.replays:,}")
    say(f"Speed: {result.transfers_per_s:,.0f} requests/s{durable}")
    say(
        f"Ledger lag: at most {lag['max_records']:,} records; complete in Postgres "
        f"{lag['after_last_answer_s']:.2f} s after the last answer"
    )
