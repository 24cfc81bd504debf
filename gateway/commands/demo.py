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
from gateway.commands.ledger import line_json, print_statement
from gateway.commands.options import Data, Json, PostgresUrl, RedisUrl
from gateway.demo import CALLERS, DayResult, Watch, run_day
from gateway.demo_day import MERCHANTS, MIN_REQUESTS, Day, simulate
from gateway.exits import Exit
from gateway.output import note, print_json, print_report, report_json, say, table
from gateway.progress import meter
from gateway.session import Origin, Session, Settings, open_session
from persister import queries
from persister.reconcile import reconcile

STATEMENT_LINES = 8
RETRY_INTERVAL_S = 0.1


def demo(
    requests: Annotated[int, typer.Option(metavar="N", min=MIN_REQUESTS, help="How many requests.")] = 200_000,
    seed: Annotated[int, typer.Option(help="Another seed is another day.")] = 2026,
    data: Data = None,
    redis_url: RedisUrl = None,
    postgres_url: PostgresUrl = None,
    as_json: Json = False,
) -> None:
    """A simulated mobile-money day: 10,000 wallets, 200,000 requests, and the proof that it all adds up.

    Runs on servers of its own in a temporary directory, unless --data or URLs are given; then what it did stays.
    Exits with 0 only if the ledger reconciles without a difference.

    \b
    Example: hotledger demo
    Example: hotledger demo --requests 5000 --seed 7 --json
    """
    with _settings(data, redis_url, postgres_url) as settings:
        note("Starting the servers ...")
        with open_session(settings, attach=False) as session:
            note("Simulating the day ...")
            day = simulate(seed, requests)
            result = run(_run_day(session, day, requests))
            ended_at = time.monotonic()
            session.wait_until_drained()
            lag = {"max_records": result.max_lag_records, "after_last_answer_s": round(time.monotonic() - ended_at, 3)}
            note("Reconciling ...")
            report = reconcile(session.servers.redis_url, session.servers.postgres_url)
            with session.ledger() as ledger:
                lines = queries.statement(ledger, day.hot_merchant, limit=STATEMENT_LINES)
    if as_json:
        statement = [line_json(line) for line in lines]
        print_json(_figures(result) | {"lag": lag, "statement": statement, "reconciliation": report_json(report)})
    else:
        _tell(result, lag, session.servers.origin)
        print_statement(f"The hottest merchant: {MERCHANTS[0]}, wallet {day.hot_merchant}, its last payments", lines)
        print_report(report)
    if not report.ok:
        raise typer.Exit(Exit.REFUSED)


@contextmanager
def _settings(data: Path | None, redis_url: str | None, postgres_url: str | None) -> Iterator[Settings]:
    if data or redis_url or postgres_url:
        yield Settings(data, redis_url, postgres_url)
        return
    with tempfile.TemporaryDirectory(prefix="hotledger-demo-") as directory:
        yield Settings(Path(directory) / "data")


async def _run_day(session: Session, day: Day, requests: int) -> DayResult:
    with meter("demo") as bar:

        def show(result: DayResult) -> None:
            bar.show(result.requests / requests, f"{result.requests:,} requests")

        async def wait(reason: str) -> None:
            session.check()
            bar.show(0, f"waiting: {reason}")
            await asyncio.sleep(RETRY_INTERVAL_S)

        async with session.engine() as engine:
            return await run_day(engine, day, Watch(wait, show, session.lag_records))


def _figures(result: DayResult) -> dict[str, Any]:
    return {
        "wallets": result.wallets,
        "requests": result.requests,
        "accepted": result.by_status[Status.POSTED],
        "refused": result.requests - result.by_status[Status.POSTED],
        "by_status": dict(result.by_status),
        "replays": result.replays,
        "seconds": round(result.seconds, 3),
        "transfers_per_s": round(result.transfers_per_s),
    }


_EXPLAINED = {
    Status.POSTED: "the money moved",
    Status.INSUFFICIENT_FUNDS: "the payer had too little; nothing moved",
    Status.EXISTS_WITH_DIFFERENT_AMOUNT: "a key used again with another amount; nothing moved",
}


def _tell(result: DayResult, lag: dict[str, Any], origin: Origin) -> None:
    durable = "" if origin is Origin.GIVEN else ", each on disk before its answer"
    say(f"{result.wallets:,} wallets, {result.requests:,} requests, by {CALLERS} callers at once and in bulk:")
    table(
        "Decisions",
        ("status", "requests", ""),
        [(status, count, _EXPLAINED.get(status)) for status, count in result.by_status.most_common()],
    )
    say(f"Retries answered from the record, without moving money again: {result.replays:,}")
    say(f"Speed: {result.transfers_per_s:,.0f} requests/s{durable}")
    say(
        f"Ledger lag: at most {lag['max_records']:,} records; complete in Postgres "
        f"{lag['after_last_answer_s']:.2f} s after the last answer"
    )
