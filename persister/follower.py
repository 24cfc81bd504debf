"""Follows a shard's journal: what it has after the ledger's place goes into the ledger, and Redis is told.

This file owns the rule that the ledger never has what Redis could still forget: what was read is made durable on the
server that it was read from, over the same connection, before it is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import structlog

from engine.servers import RedisServer
from engine.wire import ENTRY_HEADER, JOURNAL_HEADER_FIELD, MAX_BATCH
from persister.journal import RawEntry, decode
from persister.ledger import Ledger
from persister.opening import BEGINNING
from persister.redis_shard import RedisShard


@dataclass(frozen=True, kw_only=True)
class Settings:
    """max_backlog: journal records that the ledger may lack before post refuses with LEDGER_BACKLOG.
    safety_tail: records kept in the journal behind the ledger. batch_records: most records per transaction, at
    least one full entry. idempotency_window_s, max_idempotency_records: a generation of outcomes in Redis ends at
    this age or size, and the one before it is kept too; a record takes about 130 bytes. digest_key: what engines
    derive ids from text keys with; None for the deployment's id.
    """

    shard: int = 0
    max_backlog: int = 1_000_000
    safety_tail: int = 100_000
    batch_records: int = 8192
    idempotency_window_s: float = 86_400
    max_idempotency_records: int = 10_000_000
    digest_key: bytes | None = None


class Follower:
    """place: where the ledger is; whoever finds out sets it."""

    def __init__(self, ledger: Ledger, redis: RedisShard, settings: Settings) -> None:
        self.place = BEGINNING
        self._ledger = ledger
        self._redis = redis
        self._settings = settings
        self._server: RedisServer | None = None
        self._log = structlog.get_logger().bind(shard=settings.shard)

    def check_server(self) -> None:
        """Judge the server and its settings; before anything else. Raises ServerRefused."""
        self._server = self._redis.check_server()
        if not self._server.append_only:
            self._log.warning("redis.memory_only", accepted_survives=self._server.accepted_survives)

    def read(self, wait_ms: int | None = None) -> list[RawEntry]:
        """What comes next in the journal, some entries; [] if nothing came within wait_ms (None: at once)."""
        after, limit = self.place.sequence, max(self._settings.batch_records, MAX_BATCH)
        return self._redis.read(after, limit) or self._redis.read_one(after, wait_ms)

    def persist(self, raw: list[RawEntry]) -> None:
        """Write what was read; not yet, if Redis' disk is slow: then place stays, and it is to be read again.

        Raises JournalGap, LedgerImbalance or CorruptRecord if it does not continue the ledger, which stays as it was.
        """
        batch = decode(self.place, raw)
        if not self._is_durable():
            return
        self._ledger.write(batch)
        self.place = batch.after
        self.advance()

    def advance(self) -> None:
        """Tell Redis how far the ledger is, and trim its journal. Raises Moved."""
        place = self.place
        self._redis.advance(place.epoch, place.sequence, place.sequence - self._settings.safety_tail)

    def _is_durable(self) -> bool:
        assert self._server is not None  # check_server() comes first
        if self._server.synced or not self._server.append_only:
            return True
        durable = self._redis.wait_until_durable()
        if not durable:
            self._log.warning("redis.slow_disk")
        return durable


def header_of(raw: list[RawEntry]) -> dict[str, Any] | None:
    """What the first of some entries says of itself, unchecked: the fields of ENTRY_HEADER; None if it says nothing."""
    header = raw[0][1].get(JOURNAL_HEADER_FIELD, b"") if raw else b""
    return ENTRY_HEADER.unpack(header) if len(header) == ENTRY_HEADER.size else None
