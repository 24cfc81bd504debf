"""Currencies: currency define, list."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.commands.bundles import bundled
from gateway.commands.calls import ask_ledger, nothing_more, send
from gateway.commands.options import Place, WritingPlace
from gateway.output import print_json, record_json, say, table
from persister import queries

currency = typer.Typer(help="Say what a currency is, once for ever.", no_args_is_help=True, rich_markup_mode=None)


@currency.command()
@bundled
def define(
    code: Annotated[str, typer.Argument(metavar="CODE", help="3 to 8 of A-Z and 0-9: of ISO 4217 or your own.")],
    exponent: Annotated[int, typer.Argument(metavar="DIGITS", help="Digits after the point, 0 to 8; 2 for cents.")],
    place: WritingPlace,
) -> None:
    """Define a currency before its first wallet; otherwise that gives it ISO 4217's digits, or none.

    \b
    Example: hotledger currency define POINTS 0
    """
    send(place, lambda engine: engine.define_currency(code, exponent), {}, tell=nothing_more, about=f"currency {code}")


@currency.command("list")
@bundled
def list_currencies(place: Place) -> None:
    """The ledger's currencies.

    \b
    Example: hotledger currency list
    """
    found = ask_ledger(place, queries.currencies)
    if place.as_json:
        print_json({"currencies": [record_json(one) for one in found]})
    elif found:
        table("Currencies", ("code", "digits after the point"), found)
    else:
        say("Currencies: none.")
