"""Brings a database to the schema that this version of hotledger writes.

Alembic keeps the order and notes what was applied; the schema itself is SQL, in persister/sql/migrations.
All of it happens in one transaction under an advisory lock, so a failure leaves nothing behind and processes
that start together take turns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import structlog
from alembic import command, op
from alembic.config import Config
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from persister.connection import check_postgres
from persister.sql import sql

# Any constant that no other program takes a lock under; leadership uses the two-number form and cannot meet it.
_LOCK_ID = 0x686F746C65646772


def migrate(postgres_url: str) -> list[str]:
    """Apply what is missing. Returns the revisions applied now, oldest first; [] if there were none.

    postgres_url: whatever psycopg.connect takes, a URL or a conninfo string.
    Raises ServerRefused (Postgres is too old) or psycopg.Error; nothing was changed then.
    """
    applied: list[str] = []

    def note(*, step: Any, **_: Any) -> None:
        applied.append(step.up_revision_id)

    # A creator, because SQLAlchemy's URLs are not libpq's.
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(postgres_url), poolclass=NullPool)
    with engine.begin() as connection:
        check_postgres(connection.connection.dbapi_connection.info.server_version)  # type: ignore[union-attr]
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK_ID})")
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        config.attributes["on_version_apply"] = note
        command.upgrade(config, "head")
    for revision in applied:
        structlog.get_logger().info("ledger.migrated", revision=revision)
    return applied


def execute_file(name: str) -> None:
    """For a revision: run `<name>.sql` of persister/sql/migrations, many statements, as it is."""
    # Without parameters psycopg sends the text whole and leaves % alone.
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(sql(f"migrations/{name}"))
