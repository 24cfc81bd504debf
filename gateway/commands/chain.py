"""chain: linked requests, all of which happen or none."""

from __future__ import annotations

from typing import Annotated, BinaryIO

import typer

from engine import InvalidRequest, Outcome, OutcomeUnknown, Status
from engine.wire import MAX_BATCH
from gateway.chain_file import MAX_BYTES, forms_help, has_nameless, read_chain, requests_of
from gateway.commands.bundles import bundled
from gateway.commands.calls import ask_engine, exit_by
from gateway.commands.options import Naming, WritingPlace
from gateway.output import note, outcome_json, print_json, say, table

HELP = f"""Post requests as one chain: all of them happen, or none does.

FILE has one JSON object a line, or one array of them, at most {MAX_BATCH:,}; - is the standard input. The request that
stops the chain keeps its status, the others get LINKED_FAILED. A request without "key" and "id" gets the key KEY/1,
KEY/2 and so on, by its place. An object has "kind" and the names below, those in brackets if you like:

\b
{forms_help()}

\b
Example: hotledger chain payment-with-fee.jsonl --key cart-4712
"""


@bundled
def chain(
    file: Annotated[typer.FileBinaryRead, typer.Argument(metavar="FILE", help="See above.")],
    place: WritingPlace,
    key: Annotated[
        str | None, typer.Option("--key", metavar="KEY", help="For requests without a key of their own.")
    ] = None,
) -> None:
    objects = read_chain(_text(file))
    if key is None and has_nameless(objects):
        key = Naming().chosen()["key"]
    requests = requests_of(objects, key)
    try:
        outcomes = ask_engine(place, lambda engine: engine.post(requests, linked=True))
    except OutcomeUnknown:
        note("The outcome is unknown. Run this again with the same keys: the chain is decided once.")
        raise
    status = _status(outcomes)
    if place.as_json:
        keys = [getattr(request, "key", None) for request in requests]
        print_json({"status": status, "outcomes": [outcome_json(*pair) for pair in zip(outcomes, keys, strict=True)]})
    else:
        _tell(outcomes, [one["kind"] for one in objects], status)
    exit_by(status)


def _text(file: BinaryIO) -> str:
    packed = file.read(MAX_BYTES + 1)
    if len(packed) > MAX_BYTES:
        raise InvalidRequest("FILE", f"at most {MAX_BYTES} bytes", f"{len(packed)} bytes or more")
    try:
        return packed.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest("FILE", "text in UTF-8", str(error)) from None


def _status(outcomes: list[Outcome]) -> Status:
    """POSTED, or why the chain did not happen."""
    refused = [outcome.status for outcome in outcomes if outcome.status is not Status.POSTED]
    return next(
        (status for status in refused if status is not Status.LINKED_FAILED), refused[0] if refused else Status.POSTED
    )


def _tell(outcomes: list[Outcome], kinds: list[str], status: Status) -> None:
    table(
        "Chain",
        ("request", "kind", "status", "amount", "sequence", "id"),
        [
            (str(number), kind, outcome.status, outcome.amount_minor, outcome.sequence, outcome.transfer_id)
            for number, (outcome, kind) in enumerate(zip(outcomes, kinds, strict=True), 1)
        ],
    )
    say("All of it happened." if status is Status.POSTED else f"Nothing of it happened: {status}.")
