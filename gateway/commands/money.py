"""Wallets and single movements of money: wallet open, wallet show, transfer, pay, top-up, withdraw, lookup."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any
from uuid import UUID

import orjson
import typer

from engine import Balance, Engine, InvalidRequest, Outcome, OutcomeUnknown, Status, run
from gateway.commands.options import Data, Id, Json, Key, PostgresUrl, RedisUrl, name_of_request, uuid_of
from gateway.exits import Exit
from gateway.output import note, outcome_json, print_json, say, table
from gateway.session import Settings, open_session

Wallet = Annotated[int, typer.Argument(metavar="WALLET", help="Wallet id.")]
Amount = Annotated[int, typer.Argument(metavar="AMOUNT", help="Minor units: 500 is 5.00 of a currency with cents.")]
Currency = Annotated[str | None, typer.Option(help="Refuse unless the wallets have this currency.")]
Reference = Annotated[str | None, typer.Option(help="Up to 64 characters; kept in the ledger.")]
Metadata = Annotated[str | None, typer.Option(metavar="JSON", help="An object of up to 2 KiB; kept in the ledger.")]

wallet = typer.Typer(help="Open wallets and look at them.", no_args_is_help=True, rich_markup_mode=None)

Send = Callable[[Engine, dict[str, Any]], Awaitable[Outcome]]


@wallet.command("open")
def open_wallet(
    wallet_id: Wallet,
    currency: Annotated[str, typer.Option(help="3 to 8 of A-Z and 0-9.")],
    owner: Annotated[int, typer.Option(help="The owner's id.")] = 0,
    overdraft: Annotated[int, typer.Option(metavar="AMOUNT", help="Minor units that it may go below zero.")] = 0,
    data: Data = None,
    redis_url: RedisUrl = None,
    postgres_url: PostgresUrl = None,
    as_json: Json = False,
) -> None:
    """Open a wallet. Opening it again alike changes nothing.

    \b
    Example: hotledger wallet open 17 --currency USD --owner 4
    """

    async def send(engine: Engine, _: dict[str, Any]) -> Outcome:
        return await engine.open_wallet(wallet_id, owner, currency, overdraft_limit_minor=overdraft)

    _send(Settings(data, redis_url, postgres_url), send, {}, f"wallet {wallet_id}", as_json)


@wallet.command("show")
def show_wallet(
    wallet_ids: Annotated[list[int], typer.Argument(metavar="WALLET...", help="Wallet ids.")],
    data: Data = None,
    redis_url: RedisUrl = None,
    postgres_url: PostgresUrl = None,
    as_json: Json = False,
) -> None:
    """What wallets have now.

    \b
    Example: hotledger wallet show 17 18
    """

    async def read() -> list[Balance | None]:
        async with session.engine() as engine:
            return await engine.balances(wallet_ids)

    with open_session(Settings(data, redis_url, postgres_url)) as session:
        found = dict(zip(wallet_ids, run(read()), strict=True))
    balances = [balance for balance in found.values() if balance]
    missing = [wallet_id for wallet_id, balance in found.items() if not balance]
    if as_json:
        print_json({"wallets": [balance._asdict() for balance in balances], "not_found": missing})
    elif balances:
        rows = [(str(balance.wallet_id), *balance[1:]) for balance in balances]
        table("Wallets", ("wallet", "currency", "available", "locked", "version", "overdraft limit"), rows)
    if missing:
        note(f"not found: {', '.join(map(str, missing))}")
        raise typer.Exit(Exit.REFUSED)


def transfer(
    debit: Annotated[int, typer.Argument(metavar="FROM", help="The wallet that pays.")],
    credit: Annotated[int, typer.Argument(metavar="TO", help="The wallet that receives.")],
    amount_minor: Amount,
    key: Key = None,
    id: Id = None,
    currency: Currency = None,
    reference: Reference = None,
    metadata: Metadata = None,
    data: Data = None,
    redis_url: RedisUrl = None,
    postgres_url: PostgresUrl = None,
    as_json: Json = False,
) -> None:
    """Move money from one wallet to another.

    \b
    Example: hotledger transfer 17 18 500 --key lunch-3 --reference "lunch"
    """
    settings = Settings(data, redis_url, postgres_url)
    options = _options(key, id, currency, reference, metadata)
    _send(settings, lambda engine, given: engine.transfer(debit, credit, amount_minor, **given), options, None, as_json)


def pay(
    debit: Annotated[int, typer.Argument(metavar="FROM", help="The wallet that pays.")],
    merchant: Annotated[int, typer.Argument(metavar="MERCHANT", help="The merchant's wallet.")],
    amount_minor: Amount,
    key: Key = None,
    id: Id = None,
    currency: Currency = None,
    reference: Reference = None,
    metadata: Metadata = None,
    data: Data = None,
    redis_url: RedisUrl = None,
    postgres_url: PostgresUrl = None,
    as_json: Json = False,
) -> None:
    """Pay a merchant.

    \b
    Example: hotledger pay 17 900 1250 --key cart-4711
    """
    settings = Settings(data, redis_url, postgres_url)
    options = _options(key, id, currency, reference, metadata)
    _send(settings, lambda engine, given: engine.pay(debit, merchant, amount_minor, **given), options, None, as_json)


def top_up(
    wallet_id: Wallet,
    amount_minor: Amount,
    key: Key = None,
    id: Id = None,
    currency: Currency = None,
    reference: Reference = None,
    metadata: Metadata = None,
    data: Data = None,
    redis_url: RedisUrl = None,
    postgres_url: PostgresUrl = None,
    as_json: Json = False,
) -> None:
    """Bring money in from outside.

    \b
    Example: hotledger top-up 17 10000 --key salary-2026-05
    """
    settings = Settings(data, redis_url, postgres_url)
    options = _options(key, id, currency, reference, metadata)
    _send(settings, lambda engine, given: engine.top_up(wallet_id, amount_minor, **given), options, None, as_json)


def withdraw(
    wallet_id: Wallet,
    amount_minor: Amount,
    key: Key = None,
    id: Id = None,
    currency: Currency = None,
    reference: Reference = None,
    metadata: Metadata = None,
    data: Data = None,
    redis_url: RedisUrl = None,
    postgres_url: PostgresUrl = None,
    as_json: Json = False,
) -> None:
    """Take money out.

    \b
    Example: hotledger withdraw 17 2000 --key atm-99
    """
    settings = Settings(data, redis_url, postgres_url)
    options = _options(key, id, currency, reference, metadata)
    _send(settings, lambda engine, given: engine.withdraw(wallet_id, amount_minor, **given), options, None, as_json)


def lookup(
    key: Annotated[str | None, typer.Option("--key", metavar="TEXT", help="The request's key.")] = None,
    id: Annotated[str | None, typer.Option("--id", metavar="UUID", help="The request's id.")] = None,
    data: Data = None,
    redis_url: RedisUrl = None,
    postgres_url: PostgresUrl = None,
    as_json: Json = False,
) -> None:
    """What became of a request: its outcome, or NOT_APPLIED, which is final.

    \b
    Example: hotledger lookup --key lunch-3
    """
    if (key is None) == (id is None):
        raise typer.BadParameter("needs --key or --id")
    transfer_id = uuid_of(id) if id is not None else None

    async def send(engine: Engine, _: dict[str, Any]) -> Outcome:
        return await engine.lookup(key=key, id=transfer_id)

    _send(Settings(data, redis_url, postgres_url), send, {"key": key, "id": transfer_id}, None, as_json)


def _options(
    key: str | None, id: str | None, currency: str | None, reference: str | None, metadata: str | None
) -> dict[str, Any]:
    """What every movement takes besides wallets and amount. Raises InvalidRequest."""
    try:
        attached = None if metadata is None else orjson.loads(metadata)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest("metadata", f"a JSON object ({error})", metadata) from None
    named, transfer_id = name_of_request(key, id)
    return {"key": named, "id": transfer_id, "currency": currency, "reference": reference, "metadata": attached}


def _send(settings: Settings, send: Send, options: dict[str, Any], subject: str | None, as_json: bool) -> None:
    """Send one request, print its outcome, and exit by it. subject: what it is about, if it has no key or id."""

    async def ask() -> Outcome:
        async with session.engine() as engine:
            return await send(engine, options)

    with open_session(settings) as session:
        try:
            outcome = run(ask())
        except OutcomeUnknown:
            note(f"The outcome is unknown. To learn it: hotledger lookup {_as_option(options)}")
            raise
    if as_json:
        print_json(outcome_json(outcome, options.get("key")))
    else:
        _tell(outcome, subject or options.get("key") or str(outcome.transfer_id))
    if outcome.status is not Status.POSTED:
        raise typer.Exit(Exit.REFUSED)


def _as_option(options: dict[str, Any]) -> str:
    id: UUID | None = options.get("id")
    return f"--id {id}" if id else f"--key {options.get('key')}"


def _tell(outcome: Outcome, subject: str) -> None:
    again = ", as decided before" if outcome.replayed else ""
    say(f"{outcome.status}{again}: {subject} (sequence {outcome.sequence}, id {outcome.transfer_id})")
    if outcome.status is Status.POSTED:
        say(
            f"Available after it: debit side {outcome.debit_available_minor:,}, "
            f"credit side {outcome.credit_available_minor:,} minor units."
        )
