"""Arguments and options that commands share; what belongs together is a bundle (see bundles.py)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID, uuid4

import orjson
import typer

from engine import Durability, InvalidRequest
from engine.domain.durability import MAX_REPLICAS
from gateway.output import note
from gateway.session import Settings
from persister.queries import MAX_LIST_LINES

Wallet = Annotated[int, typer.Argument(metavar="WALLET", help="Wallet id.")]
Amount = Annotated[int, typer.Argument(metavar="AMOUNT", help="Minor units: 500 is 5.00 of a currency with cents.")]
Currency = Annotated[str | None, typer.Option(help="Refuse unless the wallets have this currency.")]
Limit = Annotated[int, typer.Option(min=1, max=MAX_LIST_LINES, help="Most lines.")]
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

_DURATION = re.compile(r"([0-9]{1,12})(ms|s|m|h|d)\Z")
_UNIT_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


@dataclass(frozen=True)
class Place:
    """The servers that a command works on, and how it reports."""

    data: Data = None
    redis_url: RedisUrl = None
    postgres_url: PostgresUrl = None
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, on the last line of stdout.")] = False

    @property
    def settings(self) -> Settings:
        """Raises InvalidRequest."""
        return Settings(self.data, self.redis_url, self.postgres_url)

    @property
    def engine_settings(self) -> dict[str, Any]:
        """What Engine.connect is told besides."""
        return {}


@dataclass(frozen=True)
class WritingPlace(Place):
    """As Place, of a command that writes."""

    durability: Annotated[
        Durability,
        typer.Option(
            help="What an accepted request has to be before the command ends; `hotledger guarantee` says what each "
            "survives. If that is not known in time the command ends with 4, and running it again waits on."
        ),
    ] = Durability.ACCEPTED
    replicas: Annotated[
        int, typer.Option(metavar="N", min=0, max=MAX_REPLICAS, help="How many replicas a replicated request is on.")
    ] = 1

    @property
    def engine_settings(self) -> dict[str, Any]:
        return {"durability": self.durability, "replicas": self.replicas}


@dataclass(frozen=True)
class Naming:
    """The idempotency key of a request that may be sent once only."""

    key: Annotated[
        str | None,
        typer.Option(
            "--key", metavar="TEXT", help="Idempotency key, 1 to 255 characters; without one a random one is made."
        ),
    ] = None
    id: Annotated[
        str | None, typer.Option("--id", metavar="UUID", help="Idempotency key as a UUID, instead of --key.")
    ] = None

    def chosen(self) -> dict[str, Any]:
        """The arguments key and id of Engine's calls; a made-up key is printed before anything is sent.

        Raises InvalidRequest.
        """
        if self.id is not None:
            if self.key is not None:
                raise InvalidRequest("--id", "absent where --key is given", self.id)
            return {"key": None, "id": uuid_of(self.id, "--id")}
        key = self.key
        if key is None:
            key = str(uuid4())
            note(f"key: {key} (to retry safely, run this again with --key {key})")
        return {"key": key, "id": None}


@dataclass(frozen=True)
class Details:
    """What the ledger keeps with a request."""

    reference: Annotated[str | None, typer.Option(help="Up to 64 characters; kept in the ledger.")] = None
    metadata: Annotated[
        str | None, typer.Option(metavar="JSON", help="An object of up to 2 KiB; kept in the ledger.")
    ] = None

    def read(self) -> dict[str, Any]:
        """The arguments reference and metadata of Engine's calls. Raises InvalidRequest."""
        try:
            metadata = None if self.metadata is None else orjson.loads(self.metadata)
        except orjson.JSONDecodeError as error:
            raise InvalidRequest("metadata", f"a JSON object ({error})", self.metadata) from None
        return {"reference": self.reference, "metadata": metadata}


@dataclass(frozen=True)
class From:
    """Where a request came from, for the fraud rules."""

    device: Annotated[str | None, typer.Option(help="Any name of the device; only a keyed digest is kept.")] = None
    ip: Annotated[str | None, typer.Option(help="Its address, likewise.")] = None

    def given(self) -> dict[str, Any]:
        return _without_absent(device=self.device, ip=self.ip)


@dataclass(frozen=True)
class Terms(From):
    """What a movement demands besides."""

    balancing: Annotated[bool, typer.Option("--balancing", help="Move at most AMOUNT, up to what is available.")] = (
        False
    )
    expect_version: Annotated[
        int | None, typer.Option(metavar="N", help="Refuse unless the paying wallet has this version.")
    ] = None
    min_available_after: Annotated[
        int | None, typer.Option(metavar="AMOUNT", help="Refuse unless the paying wallet keeps this much available.")
    ] = None

    def given(self) -> dict[str, Any]:
        return super().given() | _without_absent(
            balancing=self.balancing or None,
            expect_version=self.expect_version,
            min_available_after_minor=self.min_available_after,
        )


def _without_absent(**options: Any) -> dict[str, Any]:
    """So that a request that asks for nothing special takes the engine's short way."""
    return {name: value for name, value in options.items() if value is not None}


def uuid_of(text: str, name: str) -> UUID:
    """Raises InvalidRequest."""
    try:
        return UUID(text)
    except ValueError:
        raise InvalidRequest(name, "a UUID", text) from None


def duration_ms(text: str, name: str) -> int:
    """A time such as 90s, 15m, 24h or 7d in milliseconds. Raises InvalidRequest."""
    found = _DURATION.match(text)
    if not found:
        raise InvalidRequest(name, "a number and ms, s, m, h or d, such as 15m", text)
    return int(found[1]) * _UNIT_MS[found[2]]


def expiry_ms(text: str) -> int | None:
    """As duration_ms, and None for "never"."""
    return None if text == "never" else duration_ms(text, "--expires-in")
