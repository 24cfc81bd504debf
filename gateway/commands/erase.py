"""Erasing personal data from the ledger."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Annotated

import typer

from engine import InvalidRequest
from engine.wire import ENTRY_HEADER
from gateway.commands.bundles import bundled
from gateway.commands.options import Place, uuid_of
from gateway.exits import Exit
from gateway.output import note, print_json, say
from gateway.session import SHARD, Servers, open_servers
from persister.connection import connect
from persister.erasing import MAX_REASON_CHARS, About, details_of, remove_remains
from persister.erasing import erase as erase_details
from persister.redis_shard import LibraryMissing, RedisAway, RedisShard


@bundled
def erase(
    place: Place,
    reason: Annotated[str, typer.Option(help=f"Kept with the note of it; 1 to {MAX_REASON_CHARS} characters.")],
    wallet: Annotated[
        int | None, typer.Option(min=-(2**63), max=2**63 - 1, help="Of everything that this wallet took part in.")
    ] = None,
    owner: Annotated[
        int | None,
        typer.Option(min=-(2**63), max=2**63 - 1, help="Of everything that this owner's wallets took part in."),
    ] = None,
    id: Annotated[str | None, typer.Option(metavar="UUID", help="Of this transfer, or hold and its captures.")] = None,
    reference: Annotated[str | None, typer.Option(help="Of every request with this reference.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask: it cannot be undone.")] = False,
) -> None:
    """Erase references and metadata from the ledger, and note that it was done.

    Amounts, wallets and times stay, and so does a digest of what was erased: every check of the ledger goes on.
    Needs a Postgres user who may: a member of hotledger_owner, or whom it granted erase_details().

    \b
    Example: hotledger erase --owner 4711 --reason "request 2026-118" --yes
    """
    about = _about(wallet, owner, id, reference)
    if not 1 <= len(reason) <= MAX_REASON_CHARS:
        raise InvalidRequest("--reason", f"text of 1 to {MAX_REASON_CHARS} characters", reason)
    with open_servers(place.settings) as servers, closing(connect(servers.postgres_url)) as ledger:
        found = details_of(ledger, about)
        if found and not yes:
            _ask(len(found))
        erased = erase_details(ledger, found, reason)
        remove_remains(ledger)
        in_journal = _still_in_journal(servers, [sequence for shard, sequence in found if shard == SHARD])
    if place.as_json:
        print_json({"erased": erased, "in_journal": in_journal})
        return
    say(f"Erased the details of {erased:,} requests from the ledger.")
    if in_journal is None:
        note("Redis could not be asked whether its journal still has them.")
    elif in_journal:
        note(
            f"{in_journal:,} of them are still in the safety tail of Redis' journal, and all may be in its append-only "
            "file and in backups: RUNBOOK.md says how they leave."
        )


def _about(wallet: int | None, owner: int | None, id: str | None, reference: str | None) -> About:
    given = [value for value in (wallet, owner, id, reference) if value is not None]
    if len(given) != 1:
        raise InvalidRequest("--wallet, --owner, --id, --reference", "given, exactly one of them", len(given))
    return About(
        wallets=() if wallet is None else (wallet,),
        owners=() if owner is None else (owner,),
        ids=() if id is None else (uuid_of(id, "--id"),),
        references=() if reference is None else (reference,),
    )


def _ask(count: int) -> None:
    """Raises typer.Exit unless a person says yes."""
    if not sys.stdin.isatty():
        raise InvalidRequest("--yes", f"given where nobody can be asked: {count:,} details would be erased", None)
    if not typer.confirm(f"Erase the details of {count:,} requests for good?", err=True):
        raise typer.Exit(Exit.REFUSED)


def _still_in_journal(servers: Servers, sequences: list[int]) -> int | None:
    """How many of these requests Redis' journal still has; None if it cannot be asked."""
    try:
        with RedisShard(servers.redis_url, SHARD) as shard:
            entries = shard.read_one(0)
    except (RedisAway, LibraryMissing):
        return None
    first: float = ENTRY_HEADER.unpack(entries[0][1][b"h"])["first_sequence"] if entries else float("inf")
    return sum(sequence >= first for sequence in sequences)
