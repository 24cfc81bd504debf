"""Erasing what callers attached. The roles that may do what are persister/roles.py's."""

from persister.migrate import execute_file

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    execute_file("0005_erasing")
