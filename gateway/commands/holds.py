"""Holds, which reserve money: hold place, capture, void, raise, show, list."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from engine import Kind
from gateway.commands.bundles import bundled
from gateway.commands.calls import ask_ledger, both_sides, debit_side, send
from gateway.commands.open_holds import report_open
from gateway.commands.options import (
    Amount,
    Currency,
    Details,
    From,
    Limit,
    Naming,
    Place,
    WritingPlace,
    expiry_ms,
    uuid_of,
)
from gateway.exits import Exit
from gateway.output import in_words, note, print_json, record_json, table, utc
from persister import hold_queries
from persister.queries import MAX_LIST_LINES

hold = typer.Typer(
    help="Reserve money now and move it later, or give it back.", no_args_is_help=True, rich_markup_mode=None
)

HoldId = Annotated[str, typer.Argument(metavar="HOLD", help="The hold's id, as its outcome said.")]


class Purpose(StrEnum):
    PAYMENT = "payment"
    TRANSFER = "transfer"

    @property
    def kind(self) -> Kind:
        return Kind[self.name]


@hold.command("place")
@bundled
def place_hold(
    debit: Annotated[int, typer.Argument(metavar="FROM", help="The wallet whose money is reserved.")],
    credit: Annotated[int, typer.Argument(metavar="TO", help="The wallet that it is for.")],
    amount_minor: Amount,
    naming: Naming,
    origin: From,
    details: Details,
    place: WritingPlace,
    expires_in: Annotated[
        str, typer.Option(metavar="TIME", help="Such as 90s, 15m, 24h, 7d (at most 366d), or never.")
    ] = "never",
    purpose: Annotated[Purpose, typer.Option(help="What a capture is in the ledger.")] = Purpose.PAYMENT,
    currency: Currency = None,
) -> None:
    """Reserve money of one wallet for another: it is locked until the hold is captured, voided or over.

    The id in the outcome is the hold's.

    \b
    Example: hotledger hold place 17 900 3000 --expires-in 7d --key room-12
    """
    asked = details.read() | origin.given() | {"currency": currency, "purpose": purpose.kind}
    asked["expires_in_ms"] = expiry_ms(expires_in)
    named = naming.chosen()
    send(place, lambda engine: engine.hold(debit, credit, amount_minor, **named, **asked), named, tell=debit_side)


@hold.command()
@bundled
def capture(
    hold_id: HoldId,
    naming: Naming,
    details: Details,
    place: WritingPlace,
    amount: Annotated[
        int | None, typer.Option(metavar="AMOUNT", help="Minor units; without it all that is left.")
    ] = None,
    more_to_come: Annotated[
        bool, typer.Option("--more-to-come", help="Keep the rest reserved for another capture.")
    ] = False,
) -> None:
    """Move reserved money, all of it or a part; the rest becomes available again unless --more-to-come.

    The id in the outcome is what can be refunded. Without a key, a last capture is known by its hold.

    \b
    Example: hotledger hold capture 0197b2a1-5c3e-7f00-8a11-000000000011 --amount 300
    Example: hotledger hold capture 0197b2a1-5c3e-7f00-8a11-000000000012 --amount 300 --more-to-come --key room-12-bar
    """
    held, asked = uuid_of(hold_id, "HOLD"), details.read() | {"final": not more_to_come}
    unnamed = not more_to_come and naming == Naming()
    named: dict[str, Any] = {} if unnamed else naming.chosen()
    send(place, lambda engine: engine.capture(held, amount, **named, **asked), named, tell=both_sides)


@hold.command()
@bundled
def void(hold_id: HoldId, details: Details, place: WritingPlace) -> None:
    """Give back what a hold has left.

    \b
    Example: hotledger hold void 0197b2a1-5c3e-7f00-8a11-000000000013
    """
    held, asked = uuid_of(hold_id, "HOLD"), details.read()
    send(place, lambda engine: engine.void(held, **asked), {}, tell=debit_side, about=f"hold {held}")


@hold.command("raise")
@bundled
def raise_hold(hold_id: HoldId, amount_minor: Amount, naming: Naming, place: WritingPlace) -> None:
    """Reserve AMOUNT more under the same hold.

    \b
    Example: hotledger hold raise 0197b2a1-5c3e-7f00-8a11-000000000014 500 --key room-12-minibar
    """
    held, named = uuid_of(hold_id, "HOLD"), naming.chosen()
    send(place, lambda engine: engine.raise_hold(held, amount_minor, **named), named, tell=debit_side)


@hold.command()
@bundled
def show(hold_id: HoldId, place: Place) -> None:
    """A hold and what happened to it, from the ledger; everything decided before the command is in it.

    \b
    Example: hotledger hold show 0197b2a1-5c3e-7f00-8a11-000000000015
    """
    asked = uuid_of(hold_id, "HOLD")
    found, history = ask_ledger(
        place,
        lambda ledger: (hold_queries.hold(ledger, asked), hold_queries.hold_history(ledger, asked, MAX_LIST_LINES)),
    )
    if place.as_json:
        print_json({"hold": found and record_json(found), "history": [record_json(event) for event in history]})
    if found is None:
        note(f"hold {asked} is not in the ledger")
        raise typer.Exit(Exit.REFUSED)
    if place.as_json:
        return
    shown = record_json(found)
    table("Hold", ("", ""), [(name, None if value is None else str(value)) for name, value in shown.items()])
    table(
        "What happened to it",
        ("sequence", "at (UTC)", "what", "amount", "released", "locked", "captured"),
        [
            (
                event.sequence,
                utc(event.at),
                in_words(event.kind),
                event.amount_minor,
                event.released_minor,
                event.remaining_minor,
                event.captured_minor,
            )
            for event in history
        ],
    )


@hold.command("list")
@bundled
def list_holds(
    place: Place,
    wallet_id: Annotated[
        int | None, typer.Option("--wallet", metavar="WALLET", help="Only holds from or to this wallet.")
    ] = None,
    limit: Limit = 50,
) -> None:
    """The open holds, the oldest first: two-step top-ups and withdrawals and reviews are among them.

    \b
    Example: hotledger hold list --wallet 17
    """
    report_open(
        "Open holds", place, ask_ledger(place, lambda ledger: hold_queries.open_holds(ledger, wallet_id, limit))
    )
