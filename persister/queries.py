"""What programs ask the ledger; each function runs one query of persister/sql on the caller's connection.

All raise psycopg.Error as it comes. Amounts are minor units.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from engine.domain.transfer import Kind
from persister.sql import sql

MAX_STATEMENT_LINES = 1000
_ROWS_AT_ONCE = 10_000


class StatementLine(NamedTuple):
    """One version of a wallet. counterparty_id: None for an opening, whose id is the request's."""

    version: int
    sequence: int
    at: datetime
    kind: Kind
    id: UUID
    counterparty_id: int | None
    amount_minor: int
    available_after_minor: int
    locked_after_minor: int
    reference: str | None
    metadata: dict[str, Any] | None


class LedgerTransfer(NamedTuple):
    """A transfer as the ledger has it, with what both sides had available after it."""

    id: UUID
    sequence: int
    kind: Kind
    at: datetime
    debit: int
    credit: int
    amount_minor: int
    debit_available_minor: int
    credit_available_minor: int
    reference: str | None
    metadata: dict[str, Any] | None


class CurrencyTotal(NamedTuple):
    """total_minor: of all wallets, 0 unless the ledger is broken; in_wallets_minor: of all but the external ones."""

    currency: str
    wallets: int
    total_minor: int
    in_wallets_minor: int


class ShardProgress(NamedTuple):
    """How far the ledger of a shard is. chain: the head of its sha256 chain, to be kept elsewhere as evidence."""

    shard: int
    epoch: int
    sequence: int
    chain: str
    generation: int
    persisted_at: datetime
    idle_s: float


def statement(
    connection: psycopg.Connection, wallet_id: int, *, before_version: int | None = None, limit: int = 50
) -> list[StatementLine]:
    """A page of a wallet's history, the newest first; [] for an unknown wallet.

    before_version: the last version of the page before. limit: at most MAX_STATEMENT_LINES.
    """
    values = {"wallet": wallet_id, "before": before_version, "limit": max(0, min(limit, MAX_STATEMENT_LINES))}
    rows = connection.execute(sql("statement"), values)
    return [StatementLine._make((*row[:3], Kind(row[3]), *row[4:])) for row in rows]


def transfer(connection: psycopg.Connection, transfer_id: UUID) -> LedgerTransfer | None:
    """None if the ledger has no such transfer (yet)."""
    row = connection.execute(sql("transfer_by_id"), {"id": transfer_id}).fetchone()
    return LedgerTransfer._make((*row[:2], Kind(row[2]), *row[3:])) if row else None


def balances(connection: psycopg.Connection) -> Iterator[tuple[int, int]]:
    """(wallet id, available + locked) of every wallet but the external ones, by ascending id, in one snapshot."""
    with connection.transaction(), connection.cursor(name="balances") as cursor:
        cursor.itersize = _ROWS_AT_ONCE
        yield from cursor.execute(sql("balances"))


def currency_totals(connection: psycopg.Connection) -> list[CurrencyTotal]:
    """Invariant 1 at a glance: each total_minor is 0."""
    rows = connection.execute(sql("currency_totals"))
    return [CurrencyTotal(currency, wallets, int(total), int(held)) for currency, wallets, total, held in rows]


def shards(connection: psycopg.Connection) -> list[ShardProgress]:
    """Every shard of the ledger. Its lag is the journal's sequence in Redis minus this one."""
    return [ShardProgress(*row) for row in connection.execute(sql("shards"))]


def deployment_id(connection: psycopg.Connection) -> UUID | None:
    """None for a ledger that no persister has opened yet."""
    row = connection.execute("SELECT id FROM deployment").fetchone()
    return row[0] if row else None
