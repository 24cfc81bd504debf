"""What programs ask the ledger about money and wallets; each function runs one query of persister/sql on the caller's
connection. Holds are asked for in hold_queries.py, refused movements in declined_queries.py.

All raise psycopg.Error as it comes. Amounts are minor units.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from engine.domain.limits import TierLimits
from engine.domain.transfer import Kind
from engine.requests import unpack_limits
from engine.wire import LAYOUT_VERSION, TIER_LIMITS
from persister.sql import sql

MAX_STATEMENT_LINES = 1000
MAX_LIST_LINES = 1000
_ROWS_AT_ONCE = 10_000


class StatementLine(NamedTuple):
    """One version of a wallet. counterparty_id: of a transfer or a hold; None for what concerns this wallet alone.

    amount_minor: what the wallet owns more, 0 where no money moved. reserved_minor: what of it holds locked more, or
    less if it is negative. hold_id: of the hold that this made or changed. value: what a change of the wallet's state
    set: flags, an overdraft limit or a tier, as the kind says.
    """

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
    reserved_minor: int = 0
    hold_id: UUID | None = None
    value: int | None = None


class LedgerTransfer(NamedTuple):
    """A transfer as the ledger has it, with what both sides had available after it, and what was refunded of it."""

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
    refunded_minor: int = 0


class Currency(NamedTuple):
    """exponent: digits after the point, 2 for cents."""

    code: str
    exponent: int


class Debt(NamedTuple):
    """A wallet below its overdraft limit, by debt_minor: after a chargeback, or because the limit was lowered."""

    wallet_id: int
    owner_id: int
    currency: str
    available_minor: int
    overdraft_limit_minor: int
    debt_minor: int


class Tier(NamedTuple):
    """The limits of a tier that are in force since a sequence of the shard."""

    shard: int
    tier: int
    sequence: int
    limits: TierLimits


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


def currencies(connection: psycopg.Connection) -> list[Currency]:
    """Every currency that some shard has an external wallet of, by code."""
    return [Currency(*row) for row in connection.execute("SELECT code, exponent FROM currency ORDER BY code")]


def debts(connection: psycopg.Connection, limit: int = 50) -> list[Debt]:
    """The wallets below their overdraft limit, the deepest first. limit: at most MAX_LIST_LINES."""
    return [Debt(*row) for row in connection.execute(sql("debts"), {"limit": bounded(limit)})]


def tiers(connection: psycopg.Connection) -> list[Tier]:
    """Every tier that has limits, by shard and number."""
    return [
        Tier._make((*row[:3], unpack_limits(TIER_LIMITS.struct.pack(LAYOUT_VERSION, *row[3:]))))
        for row in connection.execute(sql("tiers"))
    ]


def bounded(limit: int) -> int:
    """How many lines to ask for."""
    return max(0, min(limit, MAX_LIST_LINES))


def deployment_id(connection: psycopg.Connection) -> UUID | None:
    """None for a ledger that no persister has opened yet."""
    row = connection.execute("SELECT id FROM deployment").fetchone()
    return row[0] if row else None
