"""Top-ups and withdrawals that a card or bank answers later: pending top-up, withdraw, confirm, fail, list."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.commands.bundles import bundled
from gateway.commands.calls import ask_ledger, both_sides, debit_side, nothing_more, send
from gateway.commands.open_holds import report_open
from gateway.commands.options import (
    Amount,
    Currency,
    Details,
    From,
    Limit,
    Naming,
    Place,
    Wallet,
    WritingPlace,
    expiry_ms,
    uuid_of,
)
from persister import hold_queries

pending = typer.Typer(
    help="Top-ups and withdrawals that a provider answers later.", no_args_is_help=True, rich_markup_mode=None
)

PendingId = Annotated[str, typer.Argument(metavar="PENDING", help="The id in the outcome that began it.")]
ExpiresIn = Annotated[
    str, typer.Option(metavar="TIME", help="When it ends unanswered: 90s, 15m, 24h, 7d (at most 366d), or never.")
]


@pending.command("top-up")
@bundled
def top_up(
    wallet_id: Wallet,
    amount_minor: Amount,
    naming: Naming,
    details: Details,
    place: WritingPlace,
    expires_in: ExpiresIn = "7d",
    currency: Currency = None,
) -> None:
    """Begin a top-up: nothing can be spent until `pending confirm`.

    \b
    Example: hotledger pending top-up 17 5000 --key card-81
    """
    asked = details.read() | {"currency": currency, "expires_in_ms": expiry_ms(expires_in)}
    named = naming.chosen()
    send(place, lambda engine: engine.start_top_up(wallet_id, amount_minor, **named, **asked), named, tell=nothing_more)


@pending.command()
@bundled
def withdraw(
    wallet_id: Wallet,
    amount_minor: Amount,
    naming: Naming,
    origin: From,
    details: Details,
    place: WritingPlace,
    expires_in: ExpiresIn = "7d",
    currency: Currency = None,
) -> None:
    """Begin a withdrawal: the money is locked until `pending confirm` takes it out or `pending fail` gives it back.

    Let it end later than the provider's own time limit: a payout after that would be a loss.

    \b
    Example: hotledger pending withdraw 17 2000 --key payout-82 --expires-in 24h
    """
    asked = details.read() | origin.given() | {"currency": currency, "expires_in_ms": expiry_ms(expires_in)}
    named = naming.chosen()
    send(
        place, lambda engine: engine.start_withdrawal(wallet_id, amount_minor, **named, **asked), named, tell=debit_side
    )


@pending.command()
@bundled
def confirm(
    pending_id: PendingId,
    psp_reference: Annotated[
        str, typer.Argument(metavar="REFERENCE", help="The provider's reference, up to 64 characters.")
    ],
    place: WritingPlace,
) -> None:
    """The provider says that it happened. Saying so again changes nothing.

    \b
    Example: hotledger pending confirm 0197b2a1-5c3e-7f00-8a11-000000000021 PSP-7781
    """
    begun = uuid_of(pending_id, "PENDING")
    send(place, lambda engine: engine.confirm(begun, psp_reference), {}, tell=both_sides, about=f"pending {begun}")


@pending.command()
@bundled
def fail(
    pending_id: PendingId,
    place: WritingPlace,
    reason: Annotated[str | None, typer.Option(help="Kept in the ledger.")] = None,
) -> None:
    """The provider says that it did not happen. Saying so again changes nothing.

    \b
    Example: hotledger pending fail 0197b2a1-5c3e-7f00-8a11-000000000022 --reason "card declined"
    """
    begun = uuid_of(pending_id, "PENDING")
    send(place, lambda engine: engine.fail(begun, reason), {}, tell=debit_side, about=f"pending {begun}")


@pending.command("list")
@bundled
def list_pending(place: Place, limit: Limit = 50) -> None:
    """What waits for its provider, the oldest first, and for how long.

    \b
    Example: hotledger pending list
    """
    report_open("Pending", place, ask_ledger(place, lambda ledger: hold_queries.pending(ledger, limit)))
