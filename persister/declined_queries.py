"""What programs ask the ledger about refused movements; as queries.py. It has what declined.py could get hold of."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

import psycopg

from engine.domain.status import STATUS_OF, Status
from engine.domain.transfer import Kind
from persister.queries import bounded
from persister.sql import sql


class Declined(NamedTuple):
    """A refused movement. rule: of LIMIT_EXCEEDED, which fraud rule (engine.Rule); 0 else. debit, credit: 0 where it is
    not known. device, ip: keyed digests of 8 bytes, None for none."""

    at: datetime
    transfer_id: UUID
    kind: Kind
    status: Status
    rule: int
    debit: int
    credit: int
    amount_minor: int
    device: bytes | None
    ip: bytes | None


class OffenderBy(StrEnum):
    DEVICE = "device"
    IP = "ip"
    WALLET = "wallet"


class Reason(NamedTuple):
    """Why some movements were refused: their status and, of LIMIT_EXCEEDED, the fraud rule."""

    status: Status
    rule: int
    attempts: int
    amount_minor: int


class Offender(NamedTuple):
    """subject: a device's or IP's digest in hexadecimal, or a wallet's id. reasons: the most frequent first."""

    subject: str
    attempts: int
    amount_minor: int
    last_at: datetime
    reasons: list[Reason]


def declined_attempts(
    connection: psycopg.Connection,
    *,
    since: datetime | None = None,
    wallet_id: int | None = None,
    device: bytes | None = None,
    ip: bytes | None = None,
    limit: int = 50,
) -> list[Declined]:
    """Refused movements, the newest first: of one debit wallet, device or IP, or all. limit: at most MAX_LIST_LINES."""
    values = {"since": since, "wallet": wallet_id, "device": device, "ip": ip, "limit": bounded(limit)}
    return [
        Declined._make((*row[:2], Kind(row[2]), STATUS_OF[row[3]], *row[4:]))
        for row in connection.execute(sql("declined_attempts"), values)
    ]


def top_offenders(connection: psycopg.Connection, by: OffenderBy, since: datetime, limit: int = 20) -> list[Offender]:
    """Who was refused most since a time. limit: at most MAX_LIST_LINES."""
    rows = connection.execute(sql("top_offenders"), {"by": str(by), "since": since, "limit": bounded(limit)})
    return [
        Offender(
            subject,
            attempts,
            int(amount),
            last_at,
            [Reason(STATUS_OF[status], rule, count, int(total)) for status, rule, count, total in reasons],
        )
        for subject, attempts, amount, last_at, reasons in rows
    ]
