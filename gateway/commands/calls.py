"""What commands do once they have servers: send one request and exit by its outcome, read, or ask the ledger."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import psycopg
import typer

from engine import Engine, Outcome, OutcomeUnknown, Status, run
from engine.domain.status import RETRYABLE
from gateway.commands.options import Place
from gateway.exits import Exit
from gateway.output import note, outcome_json, print_json, rule_name, say, utc
from gateway.session import Session, open_session

DRAIN_TIMEOUT_S = 60.0

T = TypeVar("T")
Ask = Callable[[Engine], Awaitable[T]]
Tell = Callable[[Outcome], str]
"""What is worth saying of an accepted request."""


def both_sides(outcome: Outcome) -> str:
    """Of a movement."""
    return (
        f"Moved {outcome.amount_minor:,}. Available after it: debit side {outcome.debit_available_minor:,}, "
        f"credit side {outcome.credit_available_minor:,} minor units."
    )


def debit_side(outcome: Outcome) -> str:
    """Of what changes one wallet."""
    return f"Available in the wallet after it: {outcome.debit_available_minor:,} minor units."


def any_request(outcome: Outcome) -> str:
    return (
        f"Amount: {outcome.amount_minor:,}. Available after it: debit side {outcome.debit_available_minor:,}, "
        f"credit side {outcome.credit_available_minor:,} minor units; 0 for a side that it did not touch."
    )


def nothing_more(_: Outcome) -> str:
    return ""


def send(place: Place, ask: Ask[Outcome], named: Mapping[str, Any], *, tell: Tell, about: str | None = None) -> None:
    """Send one request, print its outcome, and exit by it.

    named: its key and id; empty for a request that may be repeated as it is. about: what it is, if it has no name.
    Raises what Engine's calls raise.
    """
    with open_session(place.settings) as session:
        try:
            outcome = run(_with_engine(session, place, ask))
        except OutcomeUnknown as error:
            note(_how_to_wait_on(named) if error.accepted else f"The outcome is unknown. {_how_to_learn(named)}")
            raise
    if place.as_json:
        print_json(outcome_json(outcome, named.get("key")))
    else:
        _print(outcome, about or named.get("key") or str(outcome.transfer_id), tell)
    exit_by(outcome.status)


def exit_by(status: Status) -> None:
    """Raises typer.Exit unless the status is POSTED."""
    if status in RETRYABLE:
        raise typer.Exit(Exit.UNAVAILABLE)
    if status is Status.UNDER_REVIEW:
        raise typer.Exit(Exit.UNDER_REVIEW)
    if status is not Status.POSTED:
        raise typer.Exit(Exit.REFUSED)


def ask_engine(place: Place, ask: Ask[T]) -> T:
    """What the engine answers. Raises what open_session and ask raise."""
    with open_session(place.settings) as session:
        return run(_with_engine(session, place, ask))


def ask_ledger(place: Place, query: Callable[[psycopg.Connection], T]) -> T:
    """What the ledger answers once everything decided before is in it. Raises as Session.wait_until_drained."""
    with open_session(place.settings) as session:
        session.wait_until_drained(DRAIN_TIMEOUT_S)
        with session.ledger() as ledger:
            return query(ledger)


async def _with_engine(session: Session, place: Place, ask: Ask[T]) -> T:
    async with session.engine(**place.engine_settings) as engine:
        return await ask(engine)


def _how_to_wait_on(named: Mapping[str, Any]) -> str:
    again = "again with the same key" if named else "again"
    return f"It was accepted, but is not known to be durable enough yet. To wait on: run this {again}."


def _how_to_learn(named: Mapping[str, Any]) -> str:
    if named.get("id"):
        return f"To learn it: hotledger lookup --id {named['id']}"
    if named.get("key"):
        return f"To learn it: hotledger lookup --key {named['key']}"
    return "Run this again: it is decided once."


def _print(outcome: Outcome, subject: str, tell: Tell) -> None:
    again = ", as decided before" if outcome.replayed else ""
    say(f"{outcome.status}{again}: {subject} (sequence {outcome.sequence}, id {outcome.transfer_id})")
    if outcome.status is Status.POSTED:
        if more := tell(outcome):
            say(more)
    elif outcome.status is Status.UNDER_REVIEW:
        say(
            f"Rule {rule_name(outcome.rule)} wants an operator's word; {outcome.amount_minor:,} are locked until then: "
            f"hotledger review approve {outcome.transfer_id}, or reject"
        )
    elif outcome.status is Status.LIMIT_EXCEEDED:
        say(f"Rule {rule_name(outcome.rule)}, of which {outcome.used:,} was used before; {_when(outcome.retry_at_ms)}.")


def _when(retry_at_ms: int) -> str:
    if not retry_at_ms:
        return "waiting does not help"
    return f"it may be tried again at {utc(retry_at_ms)} UTC"
