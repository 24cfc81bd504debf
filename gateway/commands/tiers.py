"""Tiers, whose limits are the fraud rules: tier set, show, list."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from engine import Engine, Outcome, Rule, TierLimits
from gateway.commands.bundles import bundled
from gateway.commands.calls import ask_engine, ask_ledger, nothing_more, send
from gateway.commands.options import Place, WritingPlace
from gateway.exits import Exit
from gateway.limits_file import limits_json, limits_of, read_toml
from gateway.output import note, print_json, say, table
from persister import queries

tier = typer.Typer(help="Say what wallets of a tier may do.", no_args_is_help=True, rich_markup_mode=None)

Tier = Annotated[int, typer.Argument(metavar="TIER", help="1 to 65535. Tier 0 has no limits, always.")]


@dataclass(frozen=True)
class LimitOptions:
    """The fields of engine.TierLimits, all of them optional."""

    max_amount_minor: Annotated[
        int | None, typer.Option("--max-amount", metavar="AMOUNT", help="Of one movement, in minor units.")
    ] = None
    day_amount_minor: Annotated[
        int | None, typer.Option("--day-amount", metavar="AMOUNT", help="Of all movements of a UTC day.")
    ] = None
    day_count: Annotated[int | None, typer.Option(metavar="N", help="Movements in a UTC day.")] = None
    window_count: Annotated[int | None, typer.Option(metavar="N", help="Movements in the last --window-minutes.")] = (
        None
    )
    window_minutes: Annotated[int | None, typer.Option(metavar="MINUTES", help="Default: 60.")] = None
    hour_amount_minor: Annotated[
        int | None, typer.Option("--hour-amount", metavar="AMOUNT", help="Of all movements of a rolling hour.")
    ] = None
    device_attempts: Annotated[
        int | None,
        typer.Option(metavar="N", help="From one device in the last --attempts-window-minutes, refused ones too."),
    ] = None
    ip_attempts: Annotated[int | None, typer.Option(metavar="N", help="From one IP, likewise.")] = None
    attempts_window_minutes: Annotated[int | None, typer.Option(metavar="MINUTES", help="Default: 60.")] = None
    device_wallets: Annotated[
        int | None, typer.Option(metavar="N", help="Different wallets on one device in a UTC day, at most 16.")
    ] = None
    new_device_amount_minor: Annotated[
        int | None,
        typer.Option(
            "--new-device-amount", metavar="AMOUNT", help="Of one movement from a device that is new to the wallet."
        ),
    ] = None
    new_device_hours: Annotated[
        int | None, typer.Option(metavar="HOURS", help="How long it stays new after its first success; default: 24.")
    ] = None
    review: Annotated[
        list[str] | None,
        typer.Option(metavar="RULE", help=f"Review instead of declining; repeatable: {', '.join(Rule.__members__)}."),
    ] = None
    debt_first: Annotated[
        bool | None,
        typer.Option(
            "--debt-first/--debt-aside",
            help="Whether credits pay back a chargeback's debt before anything can be spent; default: they do.",
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value not in (None, [])}


@tier.command("set")
@bundled
def set_tier(
    number: Tier,
    limits: LimitOptions,
    place: WritingPlace,
    file: Annotated[
        Path | None, typer.Option(metavar="TOML", help="A file of them, named as `tier show --json` does.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the tier's other limits.")] = False,
) -> None:
    """Give a tier new limits, in force from the next request on. What is not given is no limit, unless --keep.

    \b
    Example: hotledger tier set 1 --max-amount 50000 --day-count 20 --review MAX_AMOUNT
    Example: hotledger tier set 1 --keep --new-device-amount 10000
    """
    given = (read_toml(file, "--file") if file else {}) | limits.given()
    limits_of(given, "")  # what is wrong with them is said before any server is asked

    async def ask(engine: Engine) -> Outcome:
        kept = await engine.tier_limits(number) if keep else None
        fields = limits_json(kept) if kept else {}
        return await engine.set_tier_limits(number, limits_of(fields | given, ""))

    send(place, ask, {}, tell=nothing_more, about=f"tier {number}")


@tier.command()
@bundled
def show(number: Tier, place: Place) -> None:
    """What wallets of a tier may do now.

    \b
    Example: hotledger tier show 1
    """
    limits = ask_engine(place, lambda engine: engine.tier_limits(number))
    if place.as_json:
        print_json({"tier": number, "limits": limits and limits_json(limits)})
    if limits is None:
        note(f"tier {number} has no limits")
        raise typer.Exit(Exit.REFUSED)
    if not place.as_json:
        table(f"Tier {number}", ("limit", "value"), _rows(limits))


@tier.command("list")
@bundled
def list_tiers(place: Place) -> None:
    """All tiers and their limits, from the ledger.

    \b
    Example: hotledger tier list
    """
    found = ask_ledger(place, queries.tiers)
    if place.as_json:
        print_json({"tiers": [{"tier": one.tier, "limits": limits_json(one.limits)} for one in found]})
    elif found:
        rows = [(str(one.tier), _in_words(one.limits)) for one in found]
        table("Tiers", ("tier", "limits"), rows)
    else:
        say("Tiers: none.")


def _in_words(limits: TierLimits) -> str:
    """Those that are not as they are where nothing is said."""
    plain = limits_json(TierLimits())
    return ", ".join(f"{name} {value}" for name, value in _rows(limits) if limits_json(limits)[name] != plain[name])


def _rows(limits: TierLimits) -> Iterator[tuple[str, str]]:
    for name, value in limits_json(limits).items():
        shown = ", ".join(value) if isinstance(value, list) else value
        yield name, "none" if shown is None else f"{shown:,}" if type(shown) is int else str(shown)
