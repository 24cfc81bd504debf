"""Answers that cannot be told from the ledger's other rows, so that they survive a rebuild of Redis."""

from persister.migrate import execute_file

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    execute_file("0003_outcomes")
