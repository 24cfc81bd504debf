"""Who may do what in the ledger: roles that nobody logs in as, and that are granted to users.

hotledger_owner   has the tables and functions, and migrates; only it may erase details
hotledger_app     what persisters and reconcilers do: add rows, and change only what is not append-only
hotledger_api     what the HTTP service does: read, keep the API's keys, note what administrators do
hotledger_reader  reads, all but the API's keys: enough for engines and reports

Roles belong to the whole server, their rights to one database. They are set up after each migration, and by
`hotledger migrate` each time, so that a table that came later is granted too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import psycopg
from psycopg import errors
from psycopg.sql import SQL, Composed, Identifier

OWNER, APP, API, READER = ROLES = "hotledger_owner", "hotledger_app", "hotledger_api", "hotledger_reader"

_ADD = "INSERT"
_KEEP_UP = "INSERT, UPDATE"
_ALL = "INSERT, UPDATE, DELETE"

APP_MAY = {
    "alembic_version": "",
    "declined_attempt": _ADD,
    "declined_read": _KEEP_UP,
    "deployment": _ADD,
    "drift": _ALL,
    "erasure": "",
    "hold": _ADD,
    "hold_change": _ADD,
    "hold_detail": _ADD,
    "journal_batch": _ADD,
    "journal_event": _ADD,
    "ledger_entry": _ADD,
    "open_hold": _ALL,
    "outcome": _ADD,
    "reconcile_run": _ALL,
    "refund": _ADD,
    "shard_state": _KEEP_UP,
    "tier_change": _ADD,
    "transfer": _ADD,
    "transfer_detail": _ADD,
    "transfer_duplicate": _ADD,
    "transfer_origin": _ADD,
    "wallet": _ADD,
    "wallet_balance": _KEEP_UP,
    "wallet_change": _ADD,
}
"""Every table, and what hotledger_app may do with it besides reading."""

API_MAY = {"admin_action": _ADD, "api_key": _KEEP_UP, "api_key_clock": "UPDATE"}
"""The tables of the HTTP service, and what hotledger_api may do with them besides reading."""

API_ALONE = {"api_key", "api_key_clock"}
"""What only it may read."""

VIEWS = ("currency", "debt", "open_hold_list", "tier")
FUNCTIONS = (
    "count_api_key_change",
    "erase_details",
    "refuse_change",
    "refuse_unnoted_erasing",
    "version_at",
    "wallet_state",
)


def set_up_roles(connection: psycopg.Connection) -> list[str]:
    """Make the roles, give the ledger to its owner, and grant, as far as this user may.

    connection: in a transaction, the schema up to date. Returns what could not be done, in words.
    """
    missing = _make_roles(connection)
    if missing:
        return [
            f"{', '.join(missing)}: not there, and this user may not make them. Let an administrator say "
            f"{'; '.join(f'CREATE ROLE {role} NOLOGIN' for role in missing)} and run `hotledger migrate` again"
        ]
    steps: tuple[tuple[str, Callable[[psycopg.Connection], None]], ...] = (
        ("this user is no member of hotledger_owner", _join_owner),
        ("hotledger_owner does not have the schema", _grant_schema),
        ("hotledger_owner does not own everything", _give_to_owner),
        ("tables are not granted", _grant_tables),
    )
    return [f"{what}: {problem}" for what, step in steps if (problem := _refusal(connection, step))]


def _refusal(connection: psycopg.Connection, step: Callable[[psycopg.Connection], None]) -> str | None:
    """Why the step may not be taken; None once it was."""
    try:
        with connection.transaction():
            step(connection)
    except errors.InsufficientPrivilege as error:
        return error.diag.message_primary
    return None


def _make_roles(connection: psycopg.Connection) -> list[str]:
    """Returns those that are not there and that this user may not make."""
    found = connection.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY (%s)", (list(ROLES),)).fetchall()
    missing = []
    for role in sorted(set(ROLES) - {name for (name,) in found}):
        try:
            with connection.transaction():
                connection.execute(SQL("CREATE ROLE {} NOLOGIN").format(Identifier(role)))
        except (errors.DuplicateObject, errors.UniqueViolation):
            continue  # made just now for another database of this server
        except errors.InsufficientPrivilege:
            missing.append(role)
    return missing


def _join_owner(connection: psycopg.Connection) -> None:
    """Whoever migrates hands the tables over, and changes them the next time."""
    row = connection.execute("SELECT pg_has_role(%s, 'USAGE')", (OWNER,)).fetchone()
    if not (row and row[0]):
        connection.execute(SQL("GRANT {} TO CURRENT_USER").format(Identifier(OWNER)))


def _grant_schema(connection: psycopg.Connection) -> None:
    row = connection.execute("SELECT current_schema()").fetchone()
    schema = Identifier(row[0] if row else "public")
    for statement in (
        SQL("REVOKE CREATE ON SCHEMA {} FROM PUBLIC").format(schema),
        SQL("GRANT USAGE, CREATE ON SCHEMA {} TO {}").format(schema, Identifier(OWNER)),
        SQL("GRANT USAGE ON SCHEMA {} TO {}").format(schema, _list((APP, API, READER))),
    ):
        connection.execute(statement)


_OWNED_BY_OTHERS = """
SELECT CASE relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, oid::regclass::text
FROM pg_class
WHERE relnamespace = current_schema()::regnamespace AND relname = ANY (%(relations)s)
    AND relkind IN ('r', 'v') AND relowner <> %(owner)s::regrole
UNION ALL
SELECT 'FUNCTION', oid::regprocedure::text
FROM pg_proc
WHERE pronamespace = current_schema()::regnamespace AND proname = ANY (%(functions)s)
    AND proowner <> %(owner)s::regrole
"""


def _give_to_owner(connection: psycopg.Connection) -> None:
    """Only what is not its own already, since each ALTER waits for whoever uses the table."""
    names = {"relations": [*APP_MAY, *API_MAY, *VIEWS], "functions": list(FUNCTIONS), "owner": OWNER}
    for what, name in connection.execute(_OWNED_BY_OTHERS, names).fetchall():
        connection.execute(SQL("ALTER {} {} OWNER TO {}").format(SQL(what), SQL(name), Identifier(OWNER)))


def _grant_tables(connection: psycopg.Connection) -> None:
    query = "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relname = ANY (%s)"
    existing = {name for (name,) in connection.execute(query, ([*APP_MAY, *API_MAY, *VIEWS],))}
    readers = _list((APP, API, READER))
    connection.execute(SQL("REVOKE ALL ON {} FROM PUBLIC, {}").format(_list(existing), readers))
    connection.execute(SQL("GRANT SELECT ON {} TO {}").format(_list(existing - API_ALONE), readers))
    for role, may in ((APP, APP_MAY), (API, API_MAY)):
        for rights in sorted(set(may.values()) - {""}):
            tables = [table for table in existing if may.get(table) == rights]
            if tables:
                connection.execute(SQL("GRANT {} ON {} TO {}").format(SQL(rights), _list(tables), Identifier(role)))
    if alone := existing & API_ALONE:
        connection.execute(SQL("GRANT SELECT ON {} TO {}").format(_list(alone), Identifier(API)))


def _list(names: Iterable[str]) -> Composed:
    return SQL(", ").join(map(Identifier, sorted(names)))
