"""Keys of the HTTP API: key create, list, rotate, revoke. Each is noted in the ledger's admin_action."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated

import psycopg
import typer
from psycopg import errors

from engine import InvalidRequest
from gateway.commands.bundles import bundled
from gateway.commands.options import Place, duration_ms
from gateway.http import keyring
from gateway.http.keyring import ApiKey
from gateway.output import note, print_json, say, table, utc
from gateway.session import open_servers
from persister.connection import connect
from persister.migrate import migrate

key = typer.Typer(help="Keys of the HTTP API.", no_args_is_help=True, rich_markup_mode=None)

Prefix = Annotated[str, typer.Argument(metavar="PREFIX", help="The key's prefix, as `key list` shows it.")]
_LONGEST_MS = 36_600 * 86_400_000


@contextmanager
def _ledger(place: Place) -> Iterator[psycopg.Connection]:
    """The ledger with its tables, which a new data directory does not have yet."""
    with open_servers(place.settings) as servers, closing(connect(servers.postgres_url)) as connection:
        try:
            connection.execute("SELECT FROM api_key LIMIT 0")
        except errors.UndefinedTable:
            migrate(servers.postgres_url)
        yield connection


@key.command("create")
@bundled
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is or what for, up to 64 characters.")],
    place: Place,
    scopes: Annotated[list[str] | None, typer.Option("--scope", help="read, write, admin; may be repeated.")] = None,
    owner: Annotated[int | None, typer.Option(min=0, help="Bind it to the wallets of this owner.")] = None,
    expires_in: Annotated[str | None, typer.Option(metavar="TIME", help="Such as 90d; default: never.")] = None,
    rate: Annotated[
        int, typer.Option(min=1, max=keyring.MAX_RATE_PER_S, help="Requests per second and worker process.")
    ] = keyring.DEFAULT_RATE_PER_S,
) -> None:
    """Make a key. It is shown once: only its digest is kept.

    \b
    Example: hotledger key create "web shop" --scope read --scope write
    Example: hotledger key create "owner 7" --scope read --scope write --owner 7 --expires-in 90d
    """
    lasts = None if expires_in is None else _time(expires_in, "--expires-in")
    with _ledger(place) as ledger:
        made = keyring.create_key(ledger, name, scopes or ["read"], owner_id=owner, expires_in=lasts, rate_per_s=rate)
    _show(made, place)


@key.command("list")
@bundled
def list_keys(place: Place) -> None:
    """All keys, those that are over too. Secrets are kept nowhere.

    \b
    Example: hotledger key list
    """
    with _ledger(place) as ledger:
        found = keyring.list_keys(ledger)
    if place.as_json:
        print_json({"keys": [_json(one) for one in found]})
        return
    table(
        "Keys",
        ("prefix", "name", "scopes", "owner", "rate", "created (UTC)", "expires (UTC)", "state"),
        [
            (
                one.prefix,
                one.name,
                " ".join(sorted(one.scopes)),
                "all" if one.owner_id is None else str(one.owner_id),
                one.rate_per_s,
                utc(one.created_at),
                utc(one.expires_at),
                _state(one),
            )
            for one in found
        ],
    )


@key.command("rotate")
@bundled
def rotate(
    prefix: Prefix,
    place: Place,
    overlap: Annotated[str, typer.Option(metavar="TIME", help="How long the old key stays good.")] = "24h",
) -> None:
    """Make a new key like an old one, which ends after the overlap. Ids of requests do not change with the key.

    \b
    Example: hotledger key rotate 0123456789abcdef --overlap 1h
    """
    ends_in = _time(overlap, "--overlap")
    with _ledger(place) as ledger:
        made = keyring.rotate_key(ledger, prefix, ends_in)
    _show(made, place)


@key.command("revoke")
@bundled
def revoke(prefix: Prefix, place: Place) -> None:
    """End a key, within a second, on all workers.

    \b
    Example: hotledger key revoke 0123456789abcdef
    """
    with _ledger(place) as ledger:
        keyring.revoke_key(ledger, prefix)
    if place.as_json:
        print_json({"prefix": prefix, "revoked": True})
    else:
        say(f"Revoked {prefix}.")


def _show(made: keyring.NewKey, place: Place) -> None:
    if place.as_json:
        print_json({"key": made.text, "prefix": made.prefix})
        return
    note("The key is shown this once:")
    say(made.text)


def _json(one: ApiKey) -> dict[str, object]:
    shown = one._asdict() | {"scopes": sorted(one.scopes), "state": _state(one)}
    return {name: value for name, value in shown.items() if name not in ("secret_hash", "change")}


def _state(one: ApiKey) -> str:
    if one.revoked_at is not None:
        return "revoked"
    return "expired" if one.expires_at is not None and one.expires_at <= datetime.now(UTC) else "good"


def _time(text: str, name: str) -> timedelta:
    given = duration_ms(text, name)
    if given > _LONGEST_MS:
        raise InvalidRequest(name, f"at most {_LONGEST_MS // 86_400_000}d", text)
    return timedelta(milliseconds=given)
