"""replay: real input through the engine, into the ledger, reconciled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import typer

from engine import InvalidRequest, Unavailable, run
from gateway.commands.bundles import bundled
from gateway.commands.options import WritingPlace
from gateway.exits import Exit
from gateway.output import note, print_json, print_report, say, table
from gateway.progress import meter
from gateway.replay import Chunk, Planner, Tally
from gateway.replay import replay as send_all
from gateway.replay_rows import BadRow, Format, Source, open_source, read_rows
from gateway.replay_rules import PAYSIM_RULES, Group, Stopped, read_rules
from gateway.session import Session, open_session
from persister import queries
from persister.reconcile import reconcile
from persister.report import Report

PATIENCE_S = 600.0
"""How long the engine may take nothing before the run gives up; a later run goes on from there."""

RETRY_INTERVAL_S = 0.1


@bundled
def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .csv or .csv.gz file.", exists=True, dir_okay=False)],
    format: Annotated[Format, typer.Option(help="Its columns; see above.")],
    place: WritingPlace,
    limit: Annotated[int | None, typer.Option(metavar="N", min=0, help="Only the first N rows.")] = None,
    rules: Annotated[
        Path | None,
        typer.Option(
            metavar="TOML",
            help=f"Fraud rules to set ahead of the rows, such as {PAYSIM_RULES}; paysim only.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Count bad rows instead of stopping.")] = False,
) -> None:
    """Run the payments of a file through the engine, in its order, into the ledger.

    csv: key,debit,credit,amount_minor,currency[,kind], where kind is transfer, top_up, payment or withdrawal and an
    empty wallet is the outside world. paysim: the columns of the PaySim data set. Wallets are opened at first sight.

    With --rules the report says how many rows that the file labels as fraud were stopped, by a refusal or for an
    operator's review, and how many honest ones. The rules judge rows that were not decided before: compare rules on
    an empty data directory each. All rows run now, so limits of a day or an hour see the whole file at once.

    A bad row stops the run before anything of it happens, with its line, field and reason; the rows before it are
    applied. Running a file again is safe: it changes nothing, and every row is reported as replayed.
    Exits with 0 only if the ledger reconciles without a difference.

    \b
    Example: hotledger replay payments.csv --format csv
    Example: hotledger replay paysim.csv.gz --format paysim --limit 10000 --data ./money --json
    Example: hotledger replay paysim.csv.gz --format paysim --rules rules.toml
    """
    if rules is not None and format is not Format.PAYSIM:
        raise InvalidRequest("--rules", "absent unless --format is paysim, which has labels", str(rules))
    fraud_rules = read_rules(rules) if rules else None
    tally, planner = Tally(stopped=Stopped() if rules else None), Planner(skip_bad=skip_bad, rules=fraud_rules)
    with open_source(file) as source, open_session(place.settings) as session:
        began_at = time.monotonic()
        chunks = planner.chunks(read_rows(source.text, format, limit, labelled=rules is not None))
        try:
            run(_send(session, place, source, chunks, tally))
        except BadRow:
            note(f"{tally.rows} rows before it were applied; run again after mending it, they will be replays.")
            raise
        seconds = time.monotonic() - began_at
        session.wait_until_drained()
        drained_s = time.monotonic() - began_at - seconds
        report = reconcile(session.servers.redis_url, session.servers.postgres_url)
        figures = _figures(tally, planner, seconds) | _ledger_figures(session) | {"drift": report.total}
    if tally.openings_declined:
        note(f"warning: opening balances or tiers refused: {dict(tally.openings_declined)}")
    if place.as_json:
        print_json(figures)
    else:
        _tell(figures, tally.stopped, drained_s, report)
    if not report.ok:
        raise typer.Exit(Exit.REFUSED)


async def _send(session: Session, place: WritingPlace, source: Source, chunks: Iterator[Chunk], tally: Tally) -> None:
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

        async with session.engine(**place.engine_settings) as engine:
            await send_all(engine, chunks, tally, wait, show)


def _figures(tally: Tally, planner: Planner, seconds: float) -> dict[str, Any]:
    rules = {"rules": tally.stopped.as_json()} if tally.stopped else {}
    return rules | {
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


def _tell(figures: dict[str, Any], stopped: Stopped | None, drained_s: float, report: Report) -> None:
    plain = {name: value for name, value in figures.items() if name not in ("by_status", "rules")}
    table(
        "Replay",
        ("figure", "value"),
        [(name, f"{value:,}" if isinstance(value, int) else value) for name, value in plain.items()],
    )
    table("Rows by status", ("status", "rows"), sorted(figures["by_status"].items()))
    if stopped:
        _tell_stopped(stopped)
    say(f"All of it was in the ledger {drained_s:.2f} s after the last answer.")
    print_report(report)


def _tell_stopped(stopped: Stopped) -> None:
    """Shares of rows and of money, by the file's own labels."""
    columns = ("rows labelled", "rows", "stopped", "share", "declined", "reviewed", "share of their money", "by rule")
    table("What the fraud rules stopped", columns, [_row("fraud", stopped.fraud), _row("honest", stopped.honest)])


def _row(label: str, group: Group) -> tuple[object, ...]:
    figures = group.as_json()
    shares = (
        "" if figures[name] is None else f"{figures[name]:.2%}" for name in ("stopped_share", "stopped_minor_share")
    )
    of_rows, of_money = shares
    rules = ", ".join(f"{rule} {count:,}" for rule, count in figures["by_rule"].items())
    return (label, group.rows, group.stopped, of_rows, group.declined, group.reviewed, of_money, rules)
