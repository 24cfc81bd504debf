"""`hotledger`: the commands in one place. What they do is in gateway/commands, by subject."""

from __future__ import annotations

import signal
import sys
import threading

import typer

from gateway.commands import (
    access,
    chain,
    currencies,
    demo,
    doctor,
    erase,
    guarantee,
    holds,
    keys,
    ledger,
    money,
    pending,
    recover,
    replay,
    reviews,
    serve,
    servers,
    tiers,
    torture,
    wallets,
)
from gateway.exits import MEANINGS, Exit, cause_of, exit_of, message_of
from gateway.logs import configure_logs

HELP = f"""A wallet balance engine: decided in Redis, proved in Postgres.

Without servers given by URL, commands use embedded ones on a data directory; where `hotledger up` runs them, the
other commands attach to it. Amounts are integers in the currency's minor unit.

\b
Examples:
  hotledger demo
  hotledger wallet open 17 --currency USD
  hotledger top-up 17 10000 --key salary-2026-05
  hotledger replay payments.csv --format csv

\b
Exit status:
{MEANINGS}

\b
Environment:
HOTLEDGER_REDIS_URL, HOTLEDGER_POSTGRES_URL  servers to use; both or neither
HOTLEDGER_DIGEST_KEY                         secret of 16 to 64 bytes that ids are derived from keys with
HOTLEDGER_ACL_PASSWORD                       for `acl`: the password that the printed rules have the hash of
HOTLEDGER_LOG_LEVEL, HOTLEDGER_LOG_FORMAT    debug, info, warning, error; console, json
"""

app = typer.Typer(
    name="hotledger",
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # they hold URLs with their passwords
)
app.command()(demo.demo)
app.command()(replay.replay)
app.command()(ledger.reconcile)
app.command("verify-chain")(ledger.verify_chain)
app.command()(doctor.doctor)
app.command()(servers.up)
app.command()(servers.persist)
app.command()(serve.serve)
app.add_typer(keys.key, name="key")
app.add_typer(wallets.wallet, name="wallet")
app.command()(money.transfer)
app.command()(money.pay)
app.command("top-up")(money.top_up)
app.command()(money.withdraw)
app.command()(money.refund)
app.command()(money.chargeback)
app.command(help=chain.HELP)(chain.chain)
app.add_typer(holds.hold, name="hold")
app.add_typer(pending.pending, name="pending")
app.add_typer(tiers.tier, name="tier")
app.add_typer(currencies.currency, name="currency")
app.add_typer(reviews.review, name="review")
app.add_typer(reviews.declined, name="declined")
app.command()(ledger.statement)
app.command()(servers.migrate)
app.command()(guarantee.guarantee)
app.command()(recover.recover)
app.command()(erase.erase)
app.command()(access.acl)
app.command()(torture.torture)
app.command()(money.lookup)


def main() -> None:
    """The entry point. Expected errors end as one line on stderr and the status of gateway/exits.py."""
    terminated = _treat_sigterm_as_ctrl_c()
    try:
        configure_logs()
        app()
    except KeyboardInterrupt:
        sys.exit(Exit.TERMINATED if terminated.is_set() else Exit.INTERRUPTED)
    except SystemExit as end:
        if end.code == Exit.INTERRUPTED and terminated.is_set():
            sys.exit(Exit.TERMINATED)
        raise
    except Exception as error:
        status = exit_of(error)
        if status is None:
            raise
        print(f"hotledger: {type(cause_of(error)).__name__}: {message_of(error)}", file=sys.stderr)
        sys.exit(status)


def _treat_sigterm_as_ctrl_c() -> threading.Event:
    """So that servers started here are stopped and temporary files removed. Returns what tells the two apart.

    An exception raised by the handler itself would get lost in an event loop's callbacks, which catch everything;
    SIGINT has asyncio's own handler there, which cancels the main task; but only if it is not ignored, as it is in a
    job that a script started in the background.
    """
    terminated = threading.Event()

    def handler(*_: object) -> None:
        terminated.set()
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, handler)
    return terminated


if __name__ == "__main__":
    main()
