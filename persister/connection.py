"""How the persister connects to Postgres, and which servers it accepts."""

from __future__ import annotations

import psycopg

from engine.errors import ServerRefused
from engine.urls import check_postgres_url

MIN_POSTGRES_VERSION = 150000

# A connection whose other end vanished must fail within seconds: it may hold the leadership.
_KEEPALIVE = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
_SERVER_OPTIONS = (
    ("tcp_keepalives_idle", "5"),
    ("tcp_keepalives_interval", "2"),
    ("tcp_keepalives_count", "3"),
    ("idle_in_transaction_session_timeout", "30s"),
)

# Exactly-once stands on COMMIT meaning "on disk"; a role's or database's default must not weaken it. Stronger
# settings (remote_apply) are left alone.
_SYNCHRONOUS = """
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'
"""


def connect(postgres_url: str, *, application_name: str = "hotledger") -> psycopg.Connection:
    """A connection in autocommit mode: transactions are opened explicitly.

    Raises psycopg.OperationalError if the server is away, ServerRefused if it is too old, InvalidRequest for a URL that
    is none.
    """
    connection = psycopg.connect(
        check_postgres_url(postgres_url),
        autocommit=True,
        application_name=application_name,
        **_KEEPALIVE,  # type: ignore[arg-type]  # libpq's options, all integers
    )
    try:
        check_postgres(connection.info.server_version)
        for name, value in _SERVER_OPTIONS:
            connection.execute("SELECT set_config(%s, %s, false)", (name, value))
        connection.execute(_SYNCHRONOUS)
    except BaseException:
        connection.close()
        raise
    return connection


def check_postgres(server_version: int) -> None:
    """server_version: as libpq reports it, e.g. 150004. Raises ServerRefused."""
    if server_version < MIN_POSTGRES_VERSION:
        found = f"{server_version // 10000}.{server_version % 10000}"
        raise ServerRefused(f"Postgres {found} is too old: hotledger needs {MIN_POSTGRES_VERSION // 10000} or newer")
