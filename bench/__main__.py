"""`python -m bench`: the figures of README, measured on this machine. One subcommand per part of the product."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench import durability as durability_bench
from bench import engine as engine_bench
from bench import http as http_bench
from bench import ledger as ledger_bench
from bench import prototype
from bench import reconcile as reconcile_bench
from bench import recovery as recovery_bench
from bench.report import report
from bench.scene import progress
from gateway.logs import configure_logs

app = typer.Typer(
    name="bench",
    help="Measure hotledger on servers of its own, in a temporary directory. Progress goes to stderr.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="One JSON object per case, one a line, and nothing else.")]
Quick = Annotated[bool, typer.Option("--quick", help="Tiny sizes: shows that it works, measures nothing.")]
Directory = Annotated[
    Path | None, typer.Option(help="Where the temporary data goes; its disk is part of what is measured.")
]


@app.command()
def engine(
    as_json: Json = False,
    seconds: Annotated[float, typer.Option(min=0.05, help="About how long one run of a case lasts.")] = 1.0,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each case; the median counts.")] = 5,
    quick: Quick = False,
    prototype_directory: Annotated[
        Path | None, typer.Option("--prototype", help="The prototype to compare with, if it is there.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="COMMIT", help="An earlier commit of this checkout to compare with.")
    ] = None,
    directory: Directory = None,
) -> None:
    """How fast payments are decided: the ceiling of `post` for several loads, single calls, bulk calls, memory."""
    try:
        beside = prototype.find(prototype_directory)
    except prototype.PrototypeError as error:
        raise typer.BadParameter(str(error)) from error
    if beside is None:
        progress("no prototype beside the checkout and none given: ratio_to_prototype is null")
    cases = engine_bench.cases(
        seconds=min(seconds, 0.1) if quick else seconds,
        rounds=1 if quick else rounds,
        memory_items=2_000 if quick else engine_bench.MEMORY_ITEMS,
        prototype_directory=beside,
        earlier_commit=against,
        directory=directory,
    )
    report("Engine", cases, as_json=as_json)


@app.command()
def ledger(
    as_json: Json = False,
    seconds: Annotated[float, typer.Option(min=1, help="How long engine and persister run together.")] = 60.0,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of the persister alone; the median counts.")] = 1,
    transfers: Annotated[int, typer.Option(min=1024, help="In the stream that the persister drains.")] = 400_000,
    quick: Quick = False,
    directory: Directory = None,
) -> None:
    """How fast payments reach the ledger: the persister alone, under load, and on an idle system."""
    sizes = ledger_bench.QUICK if quick else ledger_bench.Sizes(seconds, rounds, transfers)
    report("Ledger", ledger_bench.cases(sizes, directory), as_json=as_json)


@app.command()
def recovery(
    as_json: Json = False,
    wallets: Annotated[int, typer.Option(min=4000, help="In the ledger that is loaded.")] = 1_000_000,
    outcomes: Annotated[int, typer.Option(min=4000, help="In the idempotency window.")] = 1_000_000,
    quick: Quick = False,
    directory: Directory = None,
) -> None:
    """How long Redis takes to be made anew from the ledger, and to get what it lacks."""
    sizes = recovery_bench.QUICK if quick else recovery_bench.Sizes(wallets, outcomes)
    report("Recovery", recovery_bench.cases(sizes, directory), as_json=as_json)


@app.command()
def http(
    as_json: Json = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long one run of a case lasts.")] = 5.0,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each case; the median counts.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Processes that serve.")] = 1,
    quick: Quick = False,
    directory: Directory = None,
) -> None:
    """How fast the HTTP service takes payments, with servers, persister and load on this machine."""
    sizes = http_bench.QUICK if quick else http_bench.Sizes(seconds, rounds, workers)
    report("HTTP", http_bench.cases(sizes, directory), as_json=as_json)


@app.command()
def durability(
    as_json: Json = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each level is offered payments in a round.")] = 5.0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of all levels; the median counts.")] = 3,
    rate: Annotated[
        int, typer.Option(metavar="N", min=1, help="Payments offered a second.")
    ] = durability_bench.RATE_PER_S,
    quick: Quick = False,
    directory: Directory = None,
) -> None:
    """What a payment's answer takes when it shall be accepted, replicated, or persisted, at an even rate."""
    sizes = durability_bench.QUICK if quick else durability_bench.Sizes(seconds, rounds, rate)
    report("Durability", durability_bench.cases(sizes, directory), as_json=as_json)


@app.command()
def reconcile(
    as_json: Json = False,
    wallets: Annotated[int, typer.Option(min=1000, help="To compare.")] = 1_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="Of each comparison; the median counts.")] = 3,
    quick: Quick = False,
    directory: Directory = None,
) -> None:
    """How long it takes to compare every wallet of Redis with the ledger, idle and under load."""
    sizes = reconcile_bench.QUICK if quick else reconcile_bench.sizes(wallets, rounds)
    report("Reconcile", reconcile_bench.cases(sizes, directory), as_json=as_json)


def main() -> None:
    # As an exception, so that the servers are stopped and the temporary directories removed.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    configure_logs()
    app()


if __name__ == "__main__":
    main()
