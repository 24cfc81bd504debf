"""Holds, refunds, the states of wallets, tiers and their limits, where requests came from, and what was declined."""

from persister.migrate import execute_file

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    execute_file("0002_holds_and_rules")
