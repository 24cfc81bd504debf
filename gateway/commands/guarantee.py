"""What an accepted, a replicated and a persisted request survives on the servers at hand."""

from __future__ import annotations

from typing import Any

from engine import Durability, Engine, Guarantee
from gateway.commands.bundles import bundled
from gateway.commands.calls import ask_engine
from gateway.commands.options import WritingPlace
from gateway.output import note, print_json, say, table


@bundled
def guarantee(place: WritingPlace) -> None:
    """What each durability level survives here, from what the servers really do, and what makes it less.

    \b
    Example: hotledger guarantee
    Example: hotledger guarantee --durability replicated --replicas 2 --json
    """
    found = ask_engine(place, _read)
    if place.as_json:
        print_json(_as_json(found))
        return
    levels = [(str(level), getattr(found, level)) for level in Durability]
    table("Guarantee", ("level", "what it survives"), levels)
    table("Settings", ("server", "setting", "value"), _settings(found))
    for warning in found.warnings:
        note(f"warning: {warning}")
    if not found.warnings:
        say("Nothing makes a level less than it says.")


async def _read(engine: Engine) -> Guarantee:
    return engine.guarantee


def _as_json(found: Guarantee) -> dict[str, Any]:
    postgres = found.postgres and found.postgres._asdict()
    return found._asdict() | {"redis": found.redis._asdict(), "postgres": postgres}


def _settings(found: Guarantee) -> list[tuple[str, str, str]]:
    """As text, and "unknown" for what may not be read."""
    read = [("redis", found.redis._asdict())]
    if found.postgres is not None:
        read.append(("postgres", found.postgres._asdict()))
    return [
        (server, name.replace("_", " "), "unknown" if value is None else _words(value))
        for server, fields in read
        for name, value in fields.items()
    ]


def _words(value: object) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)
