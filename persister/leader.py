"""What the leader of a shard does: open it, drain its journal, and keep watch over its fence.

Two leaders at once, when one lost its lock without knowing yet, are safe at every instant: each write is guarded
on the place it continues (ledger.py), opening a shard is a compare-and-set, and the rest only ever moves forward
(lua/functions/lifecycle.lua).
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from uuid import uuid4

import psycopg
import structlog

from engine.domain.ids import key_fingerprint
from engine.errors import CorruptRecord, Fatal, HistoryMismatch, JournalGap, LedgerImbalance
from engine.servers import RedisServer
from engine.shard import ShardState
from engine.wire import DECLINED, MAX_BATCH
from persister import declined
from persister.journal import Place, RawEntry, decode
from persister.ledger import Ledger, LedgerState
from persister.opening import Step, next_step, place_of
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

AGAIN_S = 0.02
NEVER = float("-inf")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """max_backlog: journal records that the ledger may lack before post refuses with LEDGER_BACKLOG.
    safety_tail: records kept in the journal behind the ledger. batch_records: most records per transaction, at
    least one full entry. idempotency_window_s, max_idempotency_records: a generation of outcomes in Redis ends at
    this age or size, and the one before it is kept too; a record takes about 130 bytes. digest_key: what engines
    derive ids from text keys with; None for the deployment's id.
    """

    shard: int
    max_backlog: int
    safety_tail: int
    batch_records: int
    idempotency_window_s: float
    max_idempotency_records: int
    digest_key: bytes | None


class Leader:
    """One session of leadership, over connections that the caller owns.

    Raises RedisAway or psycopg.OperationalError when a server is away: the session is over, nothing is lost.
    """

    def __init__(self, ledger: Ledger, redis: RedisShard, settings: Settings, stop: threading.Event) -> None:
        self._ledger = ledger
        self._redis = redis
        self._settings = settings
        self._stop = stop
        self._place = Place(0, 0, b"")
        self._promised = 0
        self._sweeper = Sweeper(redis)
        self._watched_at = self._generation_at = self._swept_at = self._declined_at = NEVER
        self._log = structlog.get_logger().bind(shard=settings.shard)

    def serve(self, *, until_drained: bool) -> None:
        """Open and drain until stop is set, or until the ledger has everything. Raises Fatal besides."""
        self._server = self._check_server()
        while not self._stop.is_set():
            try:
                self._watch()
                raw = self._read() or self._redis.read_one(
                    self._place.sequence, None if until_drained else IDLE_WAIT_MS
                )
                if raw:
                    self._persist(raw)
                elif self._promised > self._place.sequence:
                    raise JournalGap(
                        f"the shard is at sequence {self._promised}, "
                        f"and its journal has nothing after {self._place.sequence}"
                    )
                elif until_drained and self._has_everything():
                    self._collect_all_declined()
                    return
            except (LibraryMissing, Moved) as found:
                self._log.warning("shard.to_be_opened_again", reason=str(found))
                self._watched_at = NEVER

    def _watch(self) -> None:
        """What is due now: a look at the fence, at the idempotency generation, at holds, at refused movements."""
        now = time.monotonic()
        if now - self._watched_at >= FENCE_INTERVAL_S:
            state = None if self._watched_at == NEVER else self._redis.state()
            if state is None or state.meta is None or not state.is_open:
                self._open()
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
        return meta is not None and meta["sequence"] == self._place.sequence

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

    def _check_server(self) -> RedisServer:
        server = self._redis.check_server()
        if not server.append_only:
            self._log.warning("redis.memory_only", accepted_survives=server.accepted_survives)
        return server

    def _is_ours(self) -> bool:
        """Whether this Redis is of the ledger's deployment; another's is not ours to close."""
        meta, ledger = self._redis.state().meta, self._ledger.state()
        return bool(meta and ledger and meta["deployment"] == ledger.deployment_id.bytes)

    # Opening

    def _open(self) -> None:
        """Bring the shard to take payments; see opening.py. Returns early when stop is set."""
        while not self._stop.is_set():
            try:
                redis, ledger = self._redis.state(), self._ledger.state()
                step = next_step(ledger, redis, self._settings.digest_key)
                if self._take(step, ledger, redis):
                    return
            except LibraryMissing:
                self._redis.load_library()
            except Moved as found:
                self._log.info("shard.moved", reason=str(found))
                self._stop.wait(AGAIN_S)

    def _take(self, step: Step, ledger: LedgerState | None, redis: ShardState) -> bool:
        """Do one step; True if the shard takes payments now."""
        if step is Step.BEGIN_DEPLOYMENT or ledger is None:
            deployment_id = uuid4()
            key = self._settings.digest_key
            self._ledger.begin_deployment(deployment_id, key_fingerprint(deployment_id.bytes if key is None else key))
            return False
        if step is Step.BEGIN_SHARD or ledger.place is None:
            self._ledger.begin_shard(ledger.deployment_id)
            return False
        self._place = ledger.place
        self._sweeper.deployment = ledger.deployment_id.bytes
        match step:
            case Step.INITIALISE:
                self._redis.initialise(ledger.deployment_id.bytes, ledger.key_fingerprint, ledger.place.epoch)
            case Step.DRAIN:
                self._drain_tail()
            case Step.OPEN:
                # A leader that died between its commit and its advance left this undone.
                self._advance()
                self._open_fence(redis)
                self._log.info("shard.opened", epoch=self._place.epoch, sequence=self._place.sequence)
            case Step.SERVE:
                self._advance()
        return step in (Step.OPEN, Step.SERVE)

    def _open_fence(self, redis: ShardState) -> None:
        settings = self._settings
        # A generation ends when it is full; while no leader is there to end it, it grows as the backlog may.
        max_outcomes = settings.max_idempotency_records + settings.max_backlog
        self._redis.open_fence(place_of(redis), redis.replication_id, settings.max_backlog, max_outcomes)

    def _drain_tail(self) -> None:
        raw = self._read() or self._redis.read_one(self._place.sequence)
        self._log.info("shard.drains_tail", after=self._place.sequence)
        try:
            if not raw:
                raise JournalGap("the journal has no entry there")
            self._persist(raw)
        except JournalGap as gap:
            raise HistoryMismatch(
                f"Redis is ahead of the ledger, which is at sequence {self._place.sequence}, "
                f"and its journal does not lead there: {gap}"
            ) from gap

    # Draining

    def _read(self) -> list[RawEntry]:
        return self._redis.read(self._place.sequence, max(self._settings.batch_records, MAX_BATCH))

    def _persist(self, raw: list[RawEntry]) -> None:
        batch = decode(self._place, raw)
        if not self._is_durable():
            return
        self._ledger.write(batch)
        self._place = batch.after
        self._advance()

    def _is_durable(self) -> bool:
        """Whether what was read is on Redis' own disk: the ledger must not have what Redis could still forget."""
        if self._server.synced or not self._server.append_only:
            return True
        durable = self._redis.wait_until_durable()
        if not durable:
            self._log.warning("redis.slow_disk")
        return durable

    def _advance(self) -> None:
        place = self._place
        self._redis.advance(place.epoch, place.sequence, place.sequence - self._settings.safety_tail)

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
