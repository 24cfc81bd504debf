"""What the ledger says: statement, reconcile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from engine import InvalidRequest, Kind
from engine.domain.wallet import FLAG_CREDIT_FROZEN, FLAG_DEBIT_FROZEN
from gateway.commands.bundles import bundled
from gateway.commands.calls import ask_ledger
from gateway.commands.options import Place
from gateway.exits import Exit
from gateway.output import in_words, note, print_json, print_report, record_json, report_json, say, side, table
from gateway.session import open_session
from persister import queries
from persister.queries import MAX_STATEMENT_LINES, StatementLine
from persister.reconcile import reconcile as run_reconcile


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


@bundled
def reconcile(place: Place) -> None:
    """Prove that the ledger adds up and that Redis agrees with it, while traffic runs.

    Exits with 0 only if there is no difference; each difference is listed.

    \b
    Example: hotledger reconcile --json
    """
    with open_session(place.settings) as session:
        report = run_reconcile(session.servers.redis_url, session.servers.postgres_url)
    if place.as_json:
        print_json(report_json(report))
    else:
        print_report(report)
    if not report.ok:
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
