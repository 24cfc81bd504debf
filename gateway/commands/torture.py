"""hotledger torture: whether the guarantees hold while everything breaks."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import SystemRandom
from typing import Annotated

import typer

from engine import InvalidRequest
from gateway.exits import Exit
from gateway.output import note, print_json, say, table
from gateway.progress import meter
from gateway.torture.faults import FAULTS
from gateway.torture.run import Result
from gateway.torture.run import torture as run_torture

MAX_SEED = 2**31


def torture(
    seconds: Annotated[int, typer.Option(min=2, max=86_400, help="How long faults and payments go on.")] = 60,
    seed: Annotated[
        int | None, typer.Option(min=0, max=MAX_SEED, help="Decides the faults; the same seed gives the same ones.")
    ] = None,
    fault: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="Only faults of this kind; may be given several times.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Keep data, logs and records here; it must not exist yet."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, on the last line of stdout.")] = False,
) -> None:
    """Break everything under random payments, then prove that nothing was lost and nothing done twice.

    Starts a Valkey with a replica, a Postgres, two persisters and three clients of its own; no other server is touched.
    Exits with 0 only if nothing acknowledged is gone that should be there, nothing happened twice, and every invariant
    holds; else what was found is listed, and the directory with the logs is kept.

    \b
    Example: hotledger torture --seconds 60 --seed 7
    Example: hotledger torture --seconds 20 --fault kill_primary --fault cut_journal --json
    """
    chosen = SystemRandom().randrange(MAX_SEED) if seed is None else seed
    for kind in fault or ():
        if kind not in FAULTS:
            raise InvalidRequest("--fault", f"one of {', '.join(FAULTS)}", kind)
    faults = {kind: FAULTS[kind] for kind in FAULTS if kind in (fault or FAULTS)}
    note(f"seed {chosen}")
    with _directory(data) as directory, meter("torture") as shown:
        result = run_torture(
            chosen, seconds, directory, faults=faults, progress=lambda at_s, text: shown.show(at_s / seconds, text)
        )
        if data is None and result.ok:
            shutil.rmtree(directory, ignore_errors=True)
    if as_json:
        print_json(result.as_json())
    else:
        _print(result)
    if not result.ok:
        note(f"logs and records: {directory}")
        raise typer.Exit(Exit.REFUSED)


@contextmanager
def _directory(given: Path | None) -> Iterator[Path]:
    """An empty directory; if the torture breaks off, it is told where. Raises InvalidRequest if it cannot be made."""
    try:
        directory = Path(tempfile.mkdtemp(prefix="hotledger-torture-")) if given is None else given.absolute()
        directory.mkdir(mode=0o700, parents=True, exist_ok=given is None)
    except OSError as error:
        raise InvalidRequest("--data", f"a directory that can be made ({error.strerror})", str(given)) from None
    try:
        yield directory
    except BaseException:
        note(f"logs and records: {directory}")
        raise


def _print(result: Result) -> None:
    found = result.findings
    table("Faults", ("kind", "made"), sorted(result.faults.items()))
    for kind, reason in result.skipped.items():
        say(f"not made: {kind}: {reason}")
    levels = ", ".join(f"{count:,} {level}" for level, count in found.by_level.items())
    say(f"acknowledged {found.acknowledged:,} of {found.asked:,} requests ({levels}); refused {found.refused:,}")
    say(f"unknown to their callers: {found.unknown_applied:,} done, {found.unknown_not_applied:,} not done")
    say(f"gone by faults that may lose them: {found.lost_rightly:,}")
    say(f"lost {found.lost:,}, duplicated {found.duplicated:,}, invariants violated {result.invariant_violations:,}")
    for line in result.details:
        say(line)
    say("Nothing acknowledged is lost." if result.ok else "NOT as guaranteed.")
