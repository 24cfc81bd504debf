"""Options that commands share, and the settings made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from uuid import UUID, uuid4

import typer

from engine import InvalidRequest
from gateway.output import note

Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Data directory of the embedded servers; default: one per user."),
]
RedisUrl = Annotated[
    str | None,
    typer.Option("--redis-url", metavar="URL", envvar="HOTLEDGER_REDIS_URL", help="Use this Redis or Valkey."),
]
PostgresUrl = Annotated[
    str | None,
    typer.Option("--postgres-url", metavar="URL", envvar="HOTLEDGER_POSTGRES_URL", help="Use this Postgres."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, on the last line of stdout.")]
Key = Annotated[
    str | None,
    typer.Option(
        "--key", metavar="TEXT", help="Idempotency key, 1 to 255 characters; without one a random one is made."
    ),
]
Id = Annotated[str | None, typer.Option("--id", metavar="UUID", help="Idempotency key as a UUID, instead of --key.")]


def name_of_request(key: str | None, id: str | None) -> tuple[str | None, UUID | None]:
    """The request's key or id, exactly one of them; a made-up key is printed before anything is sent.

    Raises InvalidRequest.
    """
    if id is not None:
        if key is not None:
            raise InvalidRequest("--id", "absent where --key is given", id)
        return None, uuid_of(id)
    if key is None:
        key = str(uuid4())
        note(f"key: {key} (to retry safely, run this again with --key {key})")
    return key, None


def uuid_of(text: str) -> UUID:
    """Raises InvalidRequest."""
    try:
        return UUID(text)
    except ValueError:
        raise InvalidRequest("--id", "a UUID", text) from None
