"""What the ledger says: statement, reconcile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from engine.errors import InvalidRequest
from gateway.commands.options import Data, Json, PostgresUrl, RedisUrl
from gateway.exits import Exit
from gateway.output import note, print_json, print_report, report_json, say, table
from gateway.session import Settings, open_session
from persister import queries
from persister.queries import MAX_STATEMENT_LINES, StatementLine
from persister.reconcile import reconcile as run_reconcile

DRAIN_TIMEOUT_S = 60.0


def statement(
    wallet_id: Annotated[int, typer.Argument(metavar="WALLET", help="Wallet id.")],
    limit: Annotated[int, typer.Option(min=1, max=MAX_STATEMENT_LINES, help="Most lines.")] = 20,
    before: Annotated[
        int | None, typer.Option(metavar="VERSION", min=1, help="Only lines before this version: the next page.")
    ] = None,
    data: Data = None,
    redis_url: RedisUrl = None,
    postgres_url: PostgresUrl = None,
    as_json: Json = False,
) -> None:
    """A wallet's history from the ledger, the newest line first.

    Everything that was decided before the command is in it.

    \b
    Example: hotledger statement 17 --limit 10
    Example: hotledger statement 17 --limit 10 --before 42
    """
    if wallet_id == 0:
        raise InvalidRequest("WALLET", "a wallet id", wallet_id)
    with open_session(Settings(data, redis_url, postgres_url)) as session:
        session.wait_until_drained(DRAIN_TIMEOUT_S)
        with session.ledger() as ledger:
            lines = queries.statement(ledger, wallet_id, before_version=before, limit=limit)
    if not lines and before is None:
        note(f"wallet {wallet_id} is not in the ledger")
        raise typer.Exit(Exit.REFUSED)
    following = lines[-1].version if lines and lines[-1].version > 1 else None
    if as_json:
        print_json({"wallet_id": wallet_id, "lines": [line_json(line) for line in lines], "next_before": following})
        return
    print_statement(f"Wallet {wallet_id}", lines)
    if following:
        say(f"More: hotledger statement {wallet_id} --before {following}")


def reconcile(
    data: Data = None, redis_url: RedisUrl = None, postgres_url: PostgresUrl = None, as_json: Json = False
) -> None:
    """Prove that the ledger adds up and that Redis agrees with it, while traffic runs.

    Exits with 0 only if there is no difference; each difference is listed.

    \b
    Example: hotledger reconcile --json
    """
    with open_session(Settings(data, redis_url, postgres_url)) as session:
        report = run_reconcile(session.servers.redis_url, session.servers.postgres_url)
    if as_json:
        print_json(report_json(report))
    else:
        print_report(report)
    if not report.ok:
        raise typer.Exit(Exit.REFUSED)


def line_json(line: StatementLine) -> dict[str, Any]:
    return line._asdict() | {"kind": line.kind.name}


def print_statement(title: str, lines: Sequence[StatementLine]) -> None:
    """Amounts are minor units, negative where the wallet paid."""
    table(
        title,
        ("version", "at (UTC)", "kind", "with wallet", "amount", "available", "locked", "reference"),
        [
            (
                str(line.version),
                f"{line.at:%m-%d %H:%M:%S}",
                line.kind.name.lower().replace("_", " "),
                None if line.counterparty_id is None else str(line.counterparty_id),
                line.amount_minor,
                line.available_after_minor,
                line.locked_after_minor,
                line.reference,
            )
            for line in lines
        ],
    )
