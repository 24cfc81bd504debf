"""`python -m bench`: the figures of README, measured on this machine. One subcommand per part of the product."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench import engine as engine_bench
from bench import ledger as ledger_bench
from bench import prototype
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


def main() -> None:
    # As an exception, so that the servers are stopped and the temporary directories removed.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    configure_logs()
    app()


if __name__ == "__main__":
    main()
