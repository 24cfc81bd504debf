"""What programs ask the ledger about holds; as queries.py."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from engine.domain.transfer import HoldState, Kind, Review
from persister.queries import bounded
from persister.sql import sql


class OpenHold(NamedTuple):
    """A hold that has something left. since: when it was made; open_for_s: how long ago that is.

    purpose: the kind of the movement that it is for. review, rule: whether a fraud rule (engine.Rule, 0 for none)
    stopped it until an operator decides. expires_at: None for never. reference, metadata: of the request that made it.
    """

    id: UUID
    debit: int
    credit: int
    currency: str
    purpose: Kind
    remaining_minor: int
    captured_minor: int
    review: Review
    rule: int
    since: datetime
    open_for_s: float
    expires_at: datetime | None
    reference: str | None
    metadata: dict[str, Any] | None


class LedgerHold(NamedTuple):
    """A hold as the ledger has it. amount_minor: what was reserved at first."""

    id: UUID
    sequence: int
    at: datetime
    debit: int
    credit: int
    purpose: Kind
    amount_minor: int
    state: HoldState
    remaining_minor: int
    captured_minor: int
    review: Review
    rule: int
    expires_at: datetime | None
    reference: str | None
    metadata: dict[str, Any] | None


class HoldEvent(NamedTuple):
    """What one request did to a hold. id: the request's. amount_minor: reserved, captured or released by it."""

    sequence: int
    at: datetime
    kind: Kind
    id: UUID
    amount_minor: int
    released_minor: int
    state: HoldState
    remaining_minor: int
    captured_minor: int
    review: Review
    reference: str | None
    metadata: dict[str, Any] | None


def open_holds(connection: psycopg.Connection, wallet_id: int | None = None, limit: int = 50) -> list[OpenHold]:
    """Open holds from or to a wallet, or all of them, the oldest first. limit: at most MAX_LIST_LINES."""
    return _list(connection, "open_holds", limit, wallet=wallet_id)


def pending(connection: psycopg.Connection, limit: int = 50) -> list[OpenHold]:
    """Top-ups and withdrawals that wait for their confirmation, the oldest first. limit: at most MAX_LIST_LINES."""
    return _list(connection, "pending_holds", limit)


def reviews(connection: psycopg.Connection, limit: int = 50) -> list[OpenHold]:
    """What fraud rules stopped and no operator has decided, the oldest first. limit: at most MAX_LIST_LINES."""
    return _list(connection, "reviews", limit)


def hold(connection: psycopg.Connection, hold_id: UUID) -> LedgerHold | None:
    """None if the ledger has no such hold (yet); the last one, if the id was used again after Redis forgot it."""
    row = connection.execute(sql("hold_by_id"), {"id": hold_id}).fetchone()
    if row is None:
        return None
    return LedgerHold._make((*row[:5], Kind(row[5]), row[6], HoldState(row[7]), *row[8:10], Review(row[10]), *row[11:]))


def hold_history(connection: psycopg.Connection, hold_id: UUID, limit: int = 50) -> list[HoldEvent]:
    """What happened to the hold, from its beginning; [] for an unknown one. limit: at most MAX_LIST_LINES."""
    rows = connection.execute(sql("hold_history"), {"id": hold_id, "limit": bounded(limit)})
    return [
        HoldEvent._make((*row[:2], Kind(row[2]), *row[3:6], HoldState(row[6]), *row[7:9], Review(row[9]), *row[10:]))
        for row in rows
    ]


def _list(connection: psycopg.Connection, query: str, limit: int, **values: Any) -> list[OpenHold]:
    rows = connection.execute(sql(query), {"limit": bounded(limit), **values})
    return [OpenHold._make((*row[:4], Kind(row[4]), *row[5:7], Review(row[7]), *row[8:])) for row in rows]
