"""Movements of money: transfer, pay, top-up, withdraw, refund, chargeback; and lookup, what became of a request."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer

from engine import InvalidRequest
from gateway.commands.bundles import bundled
from gateway.commands.calls import any_request, both_sides, send
from gateway.commands.options import Amount, Currency, Details, Naming, Place, Terms, Wallet, WritingPlace, uuid_of

TransferId = Annotated[str, typer.Argument(metavar="TRANSFER", help="The transfer's id, as its outcome said.")]
Part = Annotated[
    int | None, typer.Option(metavar="AMOUNT", help="Minor units; without it all that is not refunded yet.")
]


@bundled
def transfer(
    debit: Annotated[int, typer.Argument(metavar="FROM", help="The wallet that pays.")],
    credit: Annotated[int, typer.Argument(metavar="TO", help="The wallet that receives.")],
    amount_minor: Amount,
    naming: Naming,
    terms: Terms,
    details: Details,
    place: WritingPlace,
    currency: Currency = None,
) -> None:
    """Move money from one wallet to another.

    \b
    Example: hotledger transfer 17 18 500 --key lunch-3 --reference "lunch"
    Example: hotledger transfer 18 17 999999999 --balancing --key sweep-3
    """
    asked = details.read() | terms.given() | {"currency": currency}
    named = naming.chosen()
    send(place, lambda engine: engine.transfer(debit, credit, amount_minor, **named, **asked), named, tell=both_sides)


@bundled
def pay(
    debit: Annotated[int, typer.Argument(metavar="FROM", help="The wallet that pays.")],
    merchant: Annotated[int, typer.Argument(metavar="MERCHANT", help="The merchant's wallet.")],
    amount_minor: Amount,
    naming: Naming,
    terms: Terms,
    details: Details,
    place: WritingPlace,
    currency: Currency = None,
) -> None:
    """Pay a merchant.

    \b
    Example: hotledger pay 17 900 1250 --key cart-4711 --device phone-17 --ip 203.0.113.9
    """
    asked = details.read() | terms.given() | {"currency": currency}
    named = naming.chosen()
    send(place, lambda engine: engine.pay(debit, merchant, amount_minor, **named, **asked), named, tell=both_sides)


@bundled
def top_up(
    wallet_id: Wallet,
    amount_minor: Amount,
    naming: Naming,
    details: Details,
    place: WritingPlace,
    currency: Currency = None,
) -> None:
    """Bring money in from outside, at once; `pending top-up` is for a card or bank that answers later.

    \b
    Example: hotledger top-up 17 10000 --key salary-2026-05
    """
    asked = details.read() | {"currency": currency}
    named = naming.chosen()
    send(place, lambda engine: engine.top_up(wallet_id, amount_minor, **named, **asked), named, tell=both_sides)


@bundled
def withdraw(
    wallet_id: Wallet,
    amount_minor: Amount,
    naming: Naming,
    terms: Terms,
    details: Details,
    place: WritingPlace,
    currency: Currency = None,
) -> None:
    """Take money out, at once; `pending withdraw` is for a payout that is confirmed later.

    \b
    Example: hotledger withdraw 17 2000 --key atm-99
    """
    asked = details.read() | terms.given() | {"currency": currency}
    named = naming.chosen()
    send(place, lambda engine: engine.withdraw(wallet_id, amount_minor, **named, **asked), named, tell=both_sides)


@bundled
def refund(transfer_id: TransferId, naming: Naming, details: Details, place: WritingPlace, amount: Part = None) -> None:
    """Move a transfer's money back, all of it or a part; never more than the transfer moved, in all.

    Of a captured hold it is the capture that is refunded. A refund of a top-up or withdrawal is a reversal: give the
    provider's reference.

    \b
    Example: hotledger refund 0197b2a1-5c3e-7f00-8a11-000000000001 --amount 200 --key return-4711
    """
    original, asked = uuid_of(transfer_id, "TRANSFER"), details.read()
    named = naming.chosen()
    send(place, lambda engine: engine.refund(original, amount, **named, **asked), named, tell=both_sides)


@bundled
def chargeback(
    transfer_id: TransferId,
    naming: Naming,
    details: Details,
    place: WritingPlace,
    amount: Part = None,
    permitted: Annotated[
        bool,
        typer.Option("--i-have-permission", help="You may take a wallet below its limit; without it nothing runs."),
    ] = False,
) -> None:
    """Reverse a top-up by force, as its bank did: even if the money is spent or the wallet frozen.

    Needs --i-have-permission, because the wallet may fall below its limit. `wallet debts` lists what is owed then.

    \b
    Example: hotledger chargeback 0197b2a1-5c3e-7f00-8a11-000000000002 --i-have-permission --key bank-77 --reference C77
    """
    if not permitted:
        raise InvalidRequest("--i-have-permission", "given: a chargeback may take a wallet below its limit", permitted)
    original, asked = uuid_of(transfer_id, "TRANSFER"), details.read()
    named = naming.chosen()
    send(place, lambda engine: engine.chargeback(original, amount, **named, **asked), named, tell=both_sides)


@bundled
def lookup(
    place: Place,
    key: Annotated[str | None, typer.Option("--key", metavar="TEXT", help="The request's key.")] = None,
    id: Annotated[str | None, typer.Option("--id", metavar="UUID", help="The request's id.")] = None,
) -> None:
    """What became of a request: its outcome, or NOT_APPLIED, which is final.

    \b
    Example: hotledger lookup --key lunch-3
    """
    if (key is None) == (id is None):
        raise typer.BadParameter("needs --key or --id")
    request_id: UUID | None = uuid_of(id, "--id") if id is not None else None
    named = {"key": key, "id": request_id}
    send(place, lambda engine: engine.lookup(key=key, id=request_id), named, tell=any_request)
