"""Erasing what callers attached to their requests: references and metadata, the only text about people in a ledger.

They lie apart from the rows that are hashed, which keep their digest; so every check goes on proving everything else.
What was erased, when, by whom and why is noted for ever, in the table erasure. Rules: 0005_erasing.sql.
"""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from typing import NamedTuple
from uuid import UUID

import psycopg
from psycopg import errors

from engine.errors import Fatal
from persister.sql import sql

MAX_REASON_CHARS = 200
AT_ONCE = 5000

Place = tuple[int, int]
"""A shard and a sequence."""


class About(NamedTuple):
    """Whose details. ids: of transfers, and of holds with all that became of them."""

    wallets: tuple[int, ...] = ()
    owners: tuple[int, ...] = ()
    ids: tuple[UUID, ...] = ()
    references: tuple[str, ...] = ()


def details_of(connection: psycopg.Connection, about: About) -> list[Place]:
    """The requests that have details about them, in order. Takes some 100 bytes of memory for each."""
    values = {name: list(value) for name, value in about._asdict().items()}
    return connection.execute(sql("details_of"), values).fetchall()


def erase(connection: psycopg.Connection, places: list[Place], reason: str) -> int:
    """Erase the details of these requests, in several transactions; returns how many had any.

    connection: in autocommit mode. reason: 1 to MAX_REASON_CHARS characters, kept. Interrupted, it is done in part and
    may be done again. Raises Fatal if this user may not erase.
    """
    erased = 0
    for shard, of_shard in groupby(places, key=itemgetter(0)):
        sequences = [sequence for _, sequence in of_shard]
        for start in range(0, len(sequences), AT_ONCE):
            erased += _erase(connection, shard, sequences[start : start + AT_ONCE], reason)
    return erased


def remove_remains(connection: psycopg.Connection) -> None:
    """Have the server clear the space that the erased rows took, indexes included, as far as this user may.

    Rows that an older transaction may still see stay until a later VACUUM. connection: in autocommit mode.
    """
    connection.execute("VACUUM (INDEX_CLEANUP ON, TRUNCATE OFF) transfer_detail, hold_detail")


def _erase(connection: psycopg.Connection, shard: int, sequences: list[int], reason: str) -> int:
    query = "SELECT erase_details(%s::smallint, %s::bigint[], %s)"
    try:
        row = connection.execute(query, (shard, sequences, reason)).fetchone()
    except errors.InsufficientPrivilege as error:
        raise Fatal(
            f"this Postgres user may not erase ({error.diag.message_primary}): connect as a member of "
            "hotledger_owner, or let one say GRANT EXECUTE ON FUNCTION erase_details TO this user"
        ) from error
    return int(row[0]) if row else 0
