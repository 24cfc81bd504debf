"""replay: real input through the engine, into the ledger, reconciled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import typer

from engine import Unavailable, run
from gateway.commands.options import Data, Json, PostgresUrl, RedisUrl
from gateway.exits import Exit
from gateway.output import note, print_json, print_report, say, table
from gateway.progress import meter
from gateway.replay import Chunk, Planner, Tally
from gateway.replay import replay as send_all
from gateway.replay_rows import BadRow, Format, Source, open_source, read_rows
from gateway.session import Session, Settings, open_session
from persister import queries
from persister.reconcile import reconcile
from persister.report import Report

PATIENCE_S = 600.0
"""How long the engine may take nothing before the run gives up; a later run goes on from there."""

RETRY_INTERVAL_S = 0.1


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .csv or .csv.gz file.", exists=True, dir_okay=False)],
    format: Annotated[Format, typer.Option(help="Its columns; see above.")],
    limit: Annotated[int | None, typer.Option(metavar="N", min=0, help="Only the first N rows.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Count bad rows instead of stopping.")] = False,
    data: Data = None,
    redis_url: RedisUrl = None,
    postgres_url: PostgresUrl = None,
    as_json: Json = False,
) -> None:
    """Run the payments of a file through the engine, in its order, into the ledger.

    csv: key,debit,credit,amount_minor,currency[,kind], where kind is transfer, top_up, payment or withdrawal and an
    empty wallet is the outside world. paysim: the columns of the PaySim data set. Wallets are opened at first sight.

    A bad row stops the run before anything of it happens, with its line, field and reason; the rows before it are
    applied. Running a file again is safe: it changes nothing, and every row is reported as replayed.
    Exits with 0 only if the ledger reconciles without a difference.

    \b
    Example: hotledger replay payments.csv --format csv
    Example: hotledger replay paysim.csv.gz --format paysim --limit 10000 --data ./money --json
    """
    settings = Settings(data, redis_url, postgres_url)
    tally, planner = Tally(), Planner(skip_bad=skip_bad)
    with open_source(file) as source, open_session(settings) as session:
        began_at = time.monotonic()
        chunks = planner.chunks(read_rows(source.text, format, limit))
        try:
            run(_send(session, source, chunks, tally))
        except BadRow:
            note(f"{tally.rows} rows before it were applied; run again after mending it, they will be replays.")
            raise
        seconds = time.monotonic() - began_at
        session.wait_until_drained()
        drained_s = time.monotonic() - began_at - seconds
        report = reconcile(session.servers.redis_url, session.servers.postgres_url)
        figures = _figures(tally, planner, seconds) | _ledger_figures(session) | {"drift": report.total}
    if tally.openings_declined:
        note(f"warning: opening balances refused: {dict(tally.openings_declined)}")
    if as_json:
        print_json(figures)
    else:
        _tell(figures, drained_s, report)
    if not report.ok:
        raise typer.Exit(Exit.REFUSED)


async def _send(session: Session, source: Source, chunks: Iterator[Chunk], tally: Tally) -> None:
    moved_at = time.monotonic()

    with meter("replay") as bar:

        def show(tally: Tally) -> None:
            nonlocal moved_at
            moved_at = time.monotonic()
            bar.show(
                source.read_bytes() / max(source.size_bytes, 1), f"{tally.rows:,} rows, {tally.declined:,} declined"
            )

        async def wait(reason: str) -> None:
            session.check()
            if time.monotonic() - moved_at > PATIENCE_S:
                raise Unavailable(f"nothing was taken for {PATIENCE_S:.0f} s: {reason}. Run the file again to go on.")
            bar.show(source.read_bytes() / max(source.size_bytes, 1), f"waiting: {reason}")
            await asyncio.sleep(RETRY_INTERVAL_S)

        async with session.engine() as engine:
            await send_all(engine, chunks, tally, wait, show)


def _figures(tally: Tally, planner: Planner, seconds: float) -> dict[str, Any]:
    return {
        "rows": tally.rows,
        "wallets": len(planner.wallets),
        "posted": tally.posted,
        "declined": tally.declined,
        "replayed": tally.replayed,
        "bad": tally.bad,
        "by_status": dict(tally.by_status),
        "volume_minor": tally.volume_minor,
        "seconds": round(seconds, 3),
        "transfers_per_s": round((tally.rows - tally.bad) / seconds),
    }


def _ledger_figures(session: Session) -> dict[str, Any]:
    """What Postgres has now. balances_sha256: of a line `<wallet id>:<available + locked>` per user's wallet."""
    digest = sha256()
    with session.ledger() as ledger:
        for wallet_id, owned_minor in queries.balances(ledger):
            digest.update(b"%d:%d\n" % (wallet_id, owned_minor))
        total = sum(currency.total_minor for currency in queries.currency_totals(ledger))
    return {"balances_sha256": digest.hexdigest(), "ledger_sum_minor": total}


def _tell(figures: dict[str, Any], drained_s: float, report: Report) -> None:
    plain = {name: value for name, value in figures.items() if name != "by_status"}
    table(
        "Replay",
        ("figure", "value"),
        [(name, f"{value:,}" if isinstance(value, int) else value) for name, value in plain.items()],
    )
    table("Rows by status", ("status", "rows"), sorted(figures["by_status"].items()))
    say(f"All of it was in the ledger {drained_s:.2f} s after the last answer.")
    print_report(report)
