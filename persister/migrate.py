"""Brings a database to the schema that this version of hotledger writes.

Alembic keeps the order and notes what was applied; the schema itself is SQL, in persister/sql/migrations.
All of it happens in one transaction under an advisory lock, so a failure leaves nothing behind and processes
that start together take turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import structlog
from alembic import command, op
from alembic.config import Config
from alembic.util import CommandError
from psycopg import errors
from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.pool import NullPool

from engine.errors import Fatal
from engine.urls import check_postgres_url
from persister.connection import check_postgres
from persister.roles import OWNER, set_up_roles
from persister.sql import sql

# Any constant that no other program takes a lock under; leadership uses the two-number form and cannot meet it.
_LOCK_ID = 0x686F746C65646772


def migrate(postgres_url: str) -> list[str]:
    """Apply what is missing. Returns the revisions applied now, oldest first; [] if there were none.

    postgres_url: whatever psycopg.connect takes, a URL or a conninfo string. A user who may only write the ledger
    will do where nothing is missing. What roles lack afterwards is logged; see grant_roles.
    Raises ServerRefused (Postgres is too old), Fatal (the schema is newer than this program, or older and this user
    may not change it), InvalidRequest for a URL that is none, or psycopg.Error; nothing was changed then.
    """
    applied: list[str] = []

    def note(*, step: Any, **_: Any) -> None:
        applied.append(step.up_revision_id)

    missing: list[str] = []
    with _locked(postgres_url) as connection:
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        config.attributes["on_version_apply"] = note
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise Fatal(f"the ledger's schema is newer than this program: upgrade hotledger ({error})") from error
        except ProgrammingError as error:
            if not isinstance(error.orig, errors.InsufficientPrivilege | errors.InvalidSchemaName):
                raise
            raise Fatal(
                f"the ledger's schema is older than this program, and this user may not change it ({error.orig}): "
                f"run `hotledger migrate` as a member of {OWNER}"
            ) from error
        if applied:
            missing = set_up_roles(_psycopg(connection))
    log = structlog.get_logger()
    for revision in applied:
        log.info("ledger.migrated", revision=revision)
    for what in missing:
        log.warning("ledger.roles", missing=what)
    return applied


def grant_roles(postgres_url: str) -> list[str]:
    """Set up the roles of persister/roles.py on an up-to-date schema. Returns what could not be done, in words."""
    with _locked(postgres_url) as connection:
        return set_up_roles(_psycopg(connection))


@contextmanager
def _locked(postgres_url: str) -> Iterator[Connection]:
    """A transaction that others of its kind wait for."""
    check_postgres_url(postgres_url)
    # A creator, because SQLAlchemy's URLs are not libpq's.
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(postgres_url), poolclass=NullPool)
    with engine.begin() as connection:
        check_postgres(_psycopg(connection).info.server_version)
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK_ID})")
        yield connection


def _psycopg(connection: Connection) -> psycopg.Connection:
    found = connection.connection.dbapi_connection
    assert isinstance(found, psycopg.Connection)
    return found


def execute_file(name: str) -> None:
    """For a revision: run `<name>.sql` of persister/sql/migrations, many statements, as it is."""
    # Without parameters psycopg sends the text whole and leaves % alone.
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(sql(f"migrations/{name}"))
