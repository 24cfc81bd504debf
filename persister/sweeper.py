"""The sweeper: ends the holds whose time is over, so that their money is available again.

Redis itself lets nobody capture an expired hold, however late the sweeper is; this only gives back what is locked.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

import structlog

from engine.domain.ids import ID_BYTES
from engine.domain.status import Status
from engine.domain.transfer import Kind
from engine.errors import CorruptRecord
from engine.wire import CONTENT, MAX_BATCH
from persister.redis_shard import Moved, RedisShard

_NO_ATTACHMENT = b"\0"
_HEAD = CONTENT.struct.pack(Kind.EXPIRE_HOLD, 0, 0, 0, 0, 0, b"", b"", b"")[:4]
_TAIL = CONTENT.struct.pack(Kind.EXPIRE_HOLD, 0, 0, 0, 0, 0, b"", b"", b"")[4 + ID_BYTES :]


class Sweeper:
    """Sweeps one shard. deployment: the 16-byte id that it must have, to be set before the first sweep.

    Damage in Redis is logged, once, and left: it must keep neither the shard nor the other holds.
    """

    def __init__(self, redis: RedisShard, deployment: bytes = b"") -> None:
        self._redis = redis
        self.deployment = deployment
        self._reported: set[str] = set()
        self._log = structlog.get_logger()

    def sweep(self) -> bool:
        """Expire the holds that are due, at most MAX_BATCH. True if there may be more of them.

        Raises Moved if the shard is not open, and what else RedisShard raises but CorruptRecord.
        """
        try:
            due = self._redis.due_holds(MAX_BATCH)
        except CorruptRecord as error:
            self._report("the list of what is due", error)
            return False
        expired = self._expire(due)
        if expired:
            self._log.info("holds.expired", count=expired)
        return expired > 0 and len(due) == MAX_BATCH

    def _expire(self, hold_ids: Sequence[bytes]) -> int:
        """How many of the holds were ended now. The others were ended by somebody else, or are not due any more."""
        if not hold_ids:
            return 0
        try:
            statuses = self._redis.post(self.deployment, [expiry_request(hold_id) for hold_id in hold_ids])
        except CorruptRecord as error:
            if len(hold_ids) == 1:
                self._report(f"hold {hold_ids[0].hex()}", error)
                return 0
            # One damaged hold keeps the others of its batch from ending: ask again in halves.
            half = len(hold_ids) // 2
            return self._expire(hold_ids[:half]) + self._expire(hold_ids[half:])
        if Status.SHARD_NOT_OPEN in statuses:
            raise Moved("the shard is not open")
        return statuses.count(Status.POSTED)

    def _report(self, what: str, error: CorruptRecord) -> None:
        if what not in self._reported:
            self._reported.add(what)
            self._log.error("sweeper.damage", what=what, error=str(error))


def expiry_request(hold_id: bytes) -> bytes:
    """A packed REQUEST under a new id: nobody can take it beforehand, and a hold ends once under whatever id."""
    return uuid4().bytes + _NO_ATTACHMENT + _HEAD + hold_id + _TAIL
