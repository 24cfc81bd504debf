"""The ledger: wallets, transfers, entries, balances, and the journal they came from."""

from persister.migrate import execute_file

revision = "0001"
down_revision = None


def upgrade() -> None:
    execute_file("0001_ledger")
