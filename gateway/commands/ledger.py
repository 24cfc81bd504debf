"""What the ledger says: statement, reconcile, verify-chain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Annotated

import typer

from engine import InvalidRequest, Kind
from engine.domain.wallet import FLAG_CREDIT_FROZEN, FLAG_DEBIT_FROZEN
from gateway.commands.bundles import bundled
from gateway.commands.calls import ask_ledger
from gateway.commands.options import Place
from gateway.commands.servers import stop_on_signals
from gateway.exits import Exit
from gateway.logs import configure_logs
from gateway.output import (
    chain_json,
    in_words,
    note,
    print_chain,
    print_json,
    print_report,
    record_json,
    report_json,
    say,
    side,
    table,
)
from gateway.progress import meter
from gateway.session import SHARD, open_servers, open_session
from persister import queries
from persister.connection import connect
from persister.queries import MAX_STATEMENT_LINES, StatementLine
from persister.reconcile import reconcile as run_reconcile
from persister.verify import verify_ledger
from persister.watch import Intervals, Reconciled, Watcher


@bundled
def statement(
    wallet_id: Annotated[int, typer.Argument(metavar="WALLET", help="Wallet id.")],
    place: Place,
    limit: Annotated[int, typer.Option(min=1, max=MAX_STATEMENT_LINES, help="Most lines.")] = 20,
    before: Annotated[
        int | None, typer.Option(metavar="VERSION", min=1, help="Only lines before this version: the next page.")
    ] = None,
) -> None:
    """A wallet's history from the ledger, the newest line first.

    Everything that was decided before the command is in it.

    \b
    Example: hotledger statement 17 --limit 10
    Example: hotledger statement 17 --limit 10 --before 42
    """
    if wallet_id == 0:
        raise InvalidRequest("WALLET", "a wallet id", wallet_id)
    lines = ask_ledger(place, lambda ledger: queries.statement(ledger, wallet_id, before_version=before, limit=limit))
    if not lines and before is None:
        note(f"wallet {wallet_id} is not in the ledger")
        raise typer.Exit(Exit.REFUSED)
    following = lines[-1].version if lines and lines[-1].version > 1 else None
    if place.as_json:
        print_json({"wallet_id": wallet_id, "lines": [record_json(line) for line in lines], "next_before": following})
        return
    print_statement(f"Wallet {wallet_id}", lines)
    if following:
        say(f"More: hotledger statement {wallet_id} --before {following}")


@dataclass(frozen=True)
class Watching:
    """How a reconciler works that goes on."""

    watch: Annotated[bool, typer.Option("--watch", help="Go on until Ctrl-C or SIGTERM, beside the persister.")] = False
    every_s: Annotated[
        float, typer.Option(min=0.1, metavar="S", help="With --watch: seconds between looks at what is new.")
    ] = Intervals.every_s
    full_s: Annotated[float, typer.Option(min=1, metavar="S", help="With --watch: seconds between full passes.")] = (
        Intervals.full_s
    )
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="With --watch: serve /metrics here; 0 for any free port.")
    ] = None
    metrics_host: Annotated[str, typer.Option(metavar="ADDR", help="The address to serve it on.")] = "127.0.0.1"


@bundled
def reconcile(place: Place, watching: Watching) -> None:
    """Prove that the ledger adds up and that Redis agrees with it, while traffic runs.

    Exits with 0 only if there is no difference; each difference is listed. With --watch it goes on, notes what it finds
    in the table drift, in the log and in the metrics, and exits with 0 when it is stopped. Nothing is ever repaired.

    \b
    Example: hotledger reconcile --json
    Example: hotledger reconcile --watch --every-s 10 --full-s 3600 --metrics-port 9095
    """
    if watching.watch:
        _keep_reconciling(place, watching)
        return
    with open_session(place.settings) as session:
        report = run_reconcile(session.servers.redis_url, session.servers.postgres_url, note_it=True)
    if place.as_json:
        print_json(report_json(report))
    else:
        print_report(report)
    if not report.ok:
        raise typer.Exit(Exit.REFUSED)


def _keep_reconciling(place: Place, watching: Watching) -> None:
    from gateway.reconcile_metrics import ReconcileMetrics, served  # only here is it worth its time to import

    configure_logs("info")
    stop = stop_on_signals()
    metrics = ReconcileMetrics(SHARD)
    runs: Counter[str] = Counter()
    last_open = 0

    def told(run: Reconciled) -> None:
        nonlocal last_open
        runs[run.kind.value] += 1
        last_open = run.open_drift
        metrics.told(run)

    with ExitStack() as stack:
        if watching.metrics_port is not None:
            host = watching.metrics_host
            try:
                port = stack.enter_context(served(metrics, host, watching.metrics_port))
            except OSError as error:
                raise InvalidRequest("--metrics-port", f"free on {host} ({error})", watching.metrics_port) from None
            note(f"metrics: http://{host}:{port}/metrics")
        servers = stack.enter_context(open_session(place.settings)).servers
        intervals = Intervals(every_s=watching.every_s, full_s=watching.full_s)
        Watcher(servers.redis_url, servers.postgres_url, SHARD, intervals=intervals, told=told).run(stop)
    if place.as_json:
        print_json({"shard": SHARD, "runs": dict(runs), "open_drift": last_open})


@bundled
def verify_chain(
    place: Place,
    from_sequence: Annotated[
        int, typer.Option("--from", metavar="N", min=1, help="Begin with the journal entry that has sequence N.")
    ] = 1,
) -> None:
    """Prove that nobody edited the ledger: make its sha256 chain again from the tables alone.

    Says the first journal entry whose rows do not make its link: its sequences, its time. With --from, the link before
    it is believed. Exits with 0 only if the whole chain verifies. Keep the head that it prints elsewhere, as evidence.

    \b
    Example: hotledger verify-chain
    Example: hotledger verify-chain --from 1200000 --json
    """
    with (
        open_servers(place.settings, reachable=False) as servers,
        closing(connect(servers.postgres_url)) as connection,
        meter("Chain") as shown,
    ):

        def progress(done: int, total: int) -> None:
            shown.show(done / max(total, 1), f"sequence {done:,} of {total:,}")

        verified = verify_ledger(connection, SHARD, from_sequence, progress)
    if place.as_json:
        print_json(chain_json(verified))
    else:
        print_chain(verified)
    if not verified.ok:
        raise typer.Exit(Exit.REFUSED)


def print_statement(title: str, lines: Sequence[StatementLine]) -> None:
    """Amounts are minor units, negative where the wallet paid; reserved is what holds locked more, or less."""
    table(
        title,
        ("version", "at (UTC)", "kind", "with wallet", "amount", "reserved", "available", "locked", "reference"),
        [
            (
                str(line.version),
                f"{line.at:%m-%d %H:%M:%S}",
                _what(line),
                None if line.counterparty_id is None else side(line.counterparty_id),
                line.amount_minor,
                line.reserved_minor,
                line.available_after_minor,
                line.locked_after_minor,
                line.reference,
            )
            for line in lines
        ],
    )


_FLAGS = {FLAG_DEBIT_FROZEN: "debits", FLAG_CREDIT_FROZEN: "credits", FLAG_DEBIT_FROZEN | FLAG_CREDIT_FROZEN: "both"}


def _what(line: StatementLine) -> str:
    """The kind, and what a change of the wallet set."""
    words = in_words(line.kind)
    if line.value is None or line.kind is Kind.CLOSE_WALLET:
        return words
    set_to = _FLAGS.get(line.value) if line.kind in (Kind.FREEZE, Kind.UNFREEZE) else f"{line.value:,}"
    return f"{words.removeprefix('set ')}: {set_to}"
