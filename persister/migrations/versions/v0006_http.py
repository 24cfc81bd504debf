"""The HTTP API: its keys, what administrators did through it, and what its searches need."""

from pathlib import Path

from persister.migrate import execute_file

revision = "0006"
down_revision = max(p.name[1:5] for p in Path(__file__).parent.glob("v*.py") if p.name[1:5] < revision)


def upgrade() -> None:
    execute_file("0006_http")
