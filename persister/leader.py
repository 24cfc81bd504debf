"""What the leader of a shard does: have it opened, drain its journal, and keep watch over its fence.

Two leaders at once, when one lost its lock without knowing yet, are safe at every instant: each write is guarded
on the place it continues (ledger.py), opening a shard is a compare-and-set, and the rest only ever moves forward
(lua/functions/lifecycle.lua).
"""

from __future__ import annotations

import threading
import time

import psycopg
import structlog

from engine.errors import CorruptRecord, Fatal, HistoryMismatch, JournalGap, LedgerImbalance
from engine.wire import DECLINED
from persister import declined
from persister.follower import Follower, Settings
from persister.journal import Place
from persister.ledger import Ledger
from persister.opener import Opener
from persister.redis_shard import LibraryMissing, Moved, RedisAway, RedisShard
from persister.sweeper import Sweeper

IDLE_WAIT_MS = 100
FENCE_INTERVAL_S = 0.1
GENERATION_INTERVAL_S = 3.0
SWEEP_INTERVAL_S = 0.25
DECLINED_INTERVAL_S = 1.0
DECLINED_ENTRIES, DECLINED_ROWS = 16, 10_000
"""Of the side stream of refused movements: entries asked for at once, rows after which it is left until the next
time. An entry has at most MAX_BATCH."""

MAX_DECLINED_ROUNDS = 100

NEVER = float("-inf")


class Leader:
    """One session of leadership, over connections that the caller owns.

    Raises RedisAway or psycopg.OperationalError when a server is away: the session is over, nothing is lost.
    """

    def __init__(self, ledger: Ledger, redis: RedisShard, settings: Settings, stop: threading.Event) -> None:
        self._ledger = ledger
        self._redis = redis
        self._settings = settings
        self._stop = stop
        self._follower = Follower(ledger, redis, settings)
        self._opener = Opener(ledger, redis, settings, self._follower, stop)
        self._promised = 0
        self._gap_at: Place | None = None
        self._sweeper = Sweeper(redis)
        self._watched_at = self._generation_at = self._swept_at = self._declined_at = NEVER
        self._log = structlog.get_logger().bind(shard=settings.shard)

    def serve(self, *, until_drained: bool) -> None:
        """Open and drain until stop is set, or until the ledger has everything. Raises Fatal besides."""
        self._follower.check_server()
        self._redis.load_library()  # engines may lack the right to
        while not self._stop.is_set():
            try:
                self._watch()
                raw = self._follower.read(None if until_drained else IDLE_WAIT_MS)
                if raw:
                    self._follower.persist(raw)
                elif self._promised > self._follower.place.sequence:
                    raise JournalGap(
                        f"the shard is at sequence {self._promised}, "
                        f"and its journal has nothing after {self._follower.place.sequence}"
                    )
                elif until_drained and self._has_everything():
                    self._collect_all_declined()
                    return
            except (LibraryMissing, Moved) as found:
                self._log.warning("shard.to_be_opened_again", reason=str(found))
                self._watched_at = NEVER
            except JournalGap as gap:
                self._look_again(gap)

    def _look_again(self, gap: JournalGap) -> None:
        """A server that was a replica in between goes on from elsewhere, over the same connection: compare it with the
        ledger once more. Raises the gap if it comes at the same place again."""
        if self._gap_at == self._follower.place:
            raise gap
        self._log.warning("shard.to_be_opened_again", reason=str(gap))
        self._gap_at = self._follower.place
        self._watched_at = NEVER

    def _watch(self) -> None:
        """What is due now: a look at the fence, at the idempotency generation, at holds, at refused movements."""
        now = time.monotonic()
        if now - self._watched_at >= FENCE_INTERVAL_S:
            state = None if self._watched_at == NEVER else self._redis.state()
            if state is None or state.meta is None or not state.is_open:
                if not self._opener.open():
                    return
                self._sweeper.deployment = self._opener.deployment
                self._promised = 0
            else:
                # Seen before the next read of the journal, which must therefore have it.
                self._promised = state.meta["sequence"]
            self._watched_at = now
        if now - self._generation_at >= GENERATION_INTERVAL_S:
            self._end_old_generation()
            self._generation_at = now
        if now - self._swept_at >= SWEEP_INTERVAL_S:
            # After hours of downtime there is more than one batch of them; the journal is drained in between.
            self._swept_at = NEVER if self._sweeper.sweep() else now
        if now - self._declined_at >= DECLINED_INTERVAL_S:
            self._collect_declined()
            self._declined_at = now

    def _has_everything(self) -> bool:
        meta = self._redis.state().meta
        return meta is not None and meta["sequence"] == self._follower.place.sequence

    def give_up(self, error: Fatal) -> None:
        """Say why, and close the shard where its own history is in question."""
        self._log.critical("persister.stopped", kind=type(error).__name__, error=str(error))
        try:
            in_question = isinstance(error, JournalGap | LedgerImbalance | CorruptRecord)
            if in_question or (isinstance(error, HistoryMismatch) and self._is_ours()):
                self._redis.close_fence()
                self._log.critical("shard.closed")
        except (RedisAway, LibraryMissing, Fatal) as problem:
            self._log.error("shard.not_closed", error=str(problem))

    def _is_ours(self) -> bool:
        """Whether this Redis is of the ledger's deployment; another's is not ours to close."""
        meta, ledger = self._redis.state().meta, self._ledger.state()
        return bool(meta and ledger and meta["deployment"] == ledger.deployment_id.bytes)

    def _end_old_generation(self) -> None:
        redis, ledger = self._redis.state(), self._ledger.state()
        if redis.meta is None or ledger is None or redis.meta["generation"] != ledger.generation:
            return  # its beginning is not in the ledger yet
        too_old = ledger.generation_age_s > self._settings.idempotency_window_s
        too_big = redis.idempotency_records > self._settings.max_idempotency_records
        if (too_old or too_big) and self._redis.end_generation(redis.meta["epoch"], ledger.generation):
            self._log.info("generation.ended", generation=ledger.generation, records=redis.idempotency_records)

    def _collect_all_declined(self) -> None:
        # Some bound, if ever more comes in.
        for _ in range(MAX_DECLINED_ROUNDS):
            if not self._collect_declined():
                return

    def _collect_declined(self) -> bool:
        """Bring refused movements into the ledger; True if there may be more. It fails quietly: a server that is away
        is found out by what comes next."""
        try:
            before = self._ledger.declined_read_to()
            found = self._read_declined(before)
            if found:
                attempts = declined.rows_of(self._settings.shard, [packed for _, packed in found])
                self._ledger.add_declined(attempts, before, after=found[-1][0])
            return bool(found)
        except (Fatal, psycopg.Error) as error:
            self._log.error("declined.not_collected", kind=type(error).__name__, error=str(error))
            return False

    def _read_declined(self, after: str) -> list[tuple[str, bytes]]:
        found: list[tuple[str, bytes]] = []
        while sum(len(packed) for _, packed in found) < DECLINED_ROWS * DECLINED.size:
            some = self._redis.declined(found[-1][0] if found else after, DECLINED_ENTRIES)
            found += some
            if len(some) < DECLINED_ENTRIES:
                break
        return found
