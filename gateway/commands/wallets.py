"""Wallets: open, show, freeze, unfreeze, close, overdraft, tier; every change is in force from the next request on."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from engine import Balance, Outcome
from gateway.commands.bundles import bundled
from gateway.commands.calls import Ask, ask_engine, ask_ledger, nothing_more, send
from gateway.commands.options import Amount, Limit, Place, Wallet, WritingPlace
from gateway.exits import Exit
from gateway.output import note, print_json, record_json, say, table
from persister import queries

wallet = typer.Typer(
    help="Open wallets, look at them, and say what they may do.", no_args_is_help=True, rich_markup_mode=None
)


class Side(StrEnum):
    BOTH = "both"
    DEBITS = "debits"
    CREDITS = "credits"

    @property
    def debits(self) -> bool:
        return self is not Side.CREDITS

    @property
    def credits(self) -> bool:
        return self is not Side.DEBITS


@wallet.command("open")
@bundled
def open_wallet(
    wallet_id: Wallet,
    currency: Annotated[str, typer.Option(help="3 to 8 of A-Z and 0-9.")],
    place: WritingPlace,
    owner: Annotated[int, typer.Option(help="The owner's id.")] = 0,
    overdraft: Annotated[int, typer.Option(metavar="AMOUNT", help="Minor units that it may go below zero.")] = 0,
) -> None:
    """Open a wallet. Opening it again alike changes nothing.

    \b
    Example: hotledger wallet open 17 --currency USD --owner 4
    """
    _change(
        place, wallet_id, lambda engine: engine.open_wallet(wallet_id, owner, currency, overdraft_limit_minor=overdraft)
    )


@wallet.command("show")
@bundled
def show_wallet(
    wallet_ids: Annotated[list[int], typer.Argument(metavar="WALLET...", help="Wallet ids.")], place: Place
) -> None:
    """What wallets have now, and how they are.

    \b
    Example: hotledger wallet show 17 18
    """
    found = dict(zip(wallet_ids, ask_engine(place, lambda engine: engine.balances(wallet_ids)), strict=True))
    balances = [balance for balance in found.values() if balance]
    missing = [wallet_id for wallet_id, balance in found.items() if not balance]
    if place.as_json:
        print_json({"wallets": [_as_json(balance) for balance in balances], "not_found": missing})
    elif balances:
        columns = ("wallet", "currency", "available", "locked", "version", "overdraft limit", "tier", "state")
        table("Wallets", columns, map(_as_row, balances))
    if missing:
        note(f"not found: {', '.join(map(str, missing))}")
        raise typer.Exit(Exit.REFUSED)


@wallet.command()
@bundled
def freeze(
    wallet_id: Wallet,
    place: WritingPlace,
    side: Annotated[
        Side, typer.Option(help="What to stop: debits (money leaving), credits (arriving), both.")
    ] = Side.BOTH,
) -> None:
    """Let no money leave a wallet, arrive in it, or both. Its holds stay, and cannot be captured meanwhile.

    \b
    Example: hotledger wallet freeze 19 --side debits
    """
    _change(place, wallet_id, lambda engine: engine.freeze(wallet_id, debits=side.debits, credits=side.credits))


@wallet.command()
@bundled
def unfreeze(
    wallet_id: Wallet,
    place: WritingPlace,
    side: Annotated[Side, typer.Option(help="What to let go on: debits, credits, both.")] = Side.BOTH,
) -> None:
    """Undo `wallet freeze`.

    \b
    Example: hotledger wallet unfreeze 19
    """
    _change(place, wallet_id, lambda engine: engine.unfreeze(wallet_id, debits=side.debits, credits=side.credits))


@wallet.command()
@bundled
def close(wallet_id: Wallet, place: WritingPlace) -> None:
    """Close a wallet for good. It must have nothing, owe nothing, and have no open hold.

    \b
    Example: hotledger wallet close 20
    """
    _change(place, wallet_id, lambda engine: engine.close_wallet(wallet_id))


@wallet.command()
@bundled
def overdraft(wallet_id: Wallet, amount_minor: Amount, place: WritingPlace) -> None:
    """Say how far below zero a wallet may go. Below a lowered limit it can only be credited.

    \b
    Example: hotledger wallet overdraft 17 5000
    """
    _change(place, wallet_id, lambda engine: engine.set_overdraft_limit(wallet_id, amount_minor))


@wallet.command()
@bundled
def tier(
    wallet_id: Wallet,
    number: Annotated[
        int, typer.Argument(metavar="TIER", help="1 to 65535 as `tier set` made it, or 0 for no limits.")
    ],
    place: WritingPlace,
) -> None:
    """Put a wallet under the limits of a tier.

    \b
    Example: hotledger wallet tier 19 1
    """
    _change(place, wallet_id, lambda engine: engine.set_tier(wallet_id, number))


@wallet.command()
@bundled
def debts(place: Place, limit: Limit = 50) -> None:
    """Wallets below their overdraft limit, after a chargeback or because the limit was lowered; the deepest first.

    \b
    Example: hotledger wallet debts
    """
    found = ask_ledger(place, lambda ledger: queries.debts(ledger, limit))
    if place.as_json:
        print_json({"debts": [record_json(debt) for debt in found]})
    elif found:
        columns = ("wallet", "owner", "currency", "available", "overdraft limit", "owes")
        table("Debts", columns, [(str(debt.wallet_id), str(debt.owner_id), *debt[2:]) for debt in found])
    else:
        say("Debts: none.")


def _change(place: Place, wallet_id: int, ask: Ask[Outcome]) -> None:
    """Send what may be repeated as it is."""
    send(place, ask, {}, tell=nothing_more, about=f"wallet {wallet_id}")


def _as_json(balance: Balance) -> dict[str, Any]:
    states = {"debit_frozen": balance.debit_frozen, "credit_frozen": balance.credit_frozen, "closed": balance.closed}
    return balance._asdict() | states


def _as_row(balance: Balance) -> tuple[object, ...]:
    states = {"debits frozen": balance.debit_frozen, "credits frozen": balance.credit_frozen, "closed": balance.closed}
    named = ", ".join(name for name, holds in states.items() if holds) or None
    return (str(balance.wallet_id), *balance[1:6], balance.tier, named)
