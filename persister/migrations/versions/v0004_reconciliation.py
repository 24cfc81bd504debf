"""Runs of the reconciler, drift, and indexes by sequence."""

from persister.migrate import execute_file

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    execute_file("0004_reconciliation")
