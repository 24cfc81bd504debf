"""Brings a shard to take payments, step by step as opening.py decides: drains, feeds, rebuilds, opens.

Every step may be cut short at any instant and is found again by the next look. A rebuild names its epoch in the
ledger first: from then on whoever works for the old one can write neither there (ledger.py guards on the epoch) nor
into what is loaded (lua/functions/load.lua wants the loader's token).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from uuid import uuid4

import structlog

from engine.domain.ids import key_fingerprint
from engine.errors import CorruptRecord, JournalGap
from engine.shard import ShardState
from persister.follower import Follower, Settings, header_of
from persister.journal import Place, RawEntry, decode
from persister.ledger import Ledger
from persister.opening import Seen, Step, next_step, place_of, tail_missing
from persister.rebuild import Loaded, Progress, load_shard
from persister.redis_shard import LibraryMissing, Moved, RedisAway, RedisShard

AGAIN_S = 0.02
PROGRESS_INTERVAL_S = 5.0


class Stopped(Exception):
    """Stop was set in the middle of a load, which the next one begins again."""


class Opener:
    """Opens one shard, over connections that the caller owns; the ledger's session has the leadership.

    Methods raise RedisAway or psycopg.OperationalError when a server is away, HistoryMismatch when a person has to
    decide, and other Fatals. deployment: the id that every call of post names, once open() was there.
    """

    def __init__(
        self,
        ledger: Ledger,
        redis: RedisShard,
        settings: Settings,
        follower: Follower,
        stop: threading.Event,
        progress: Progress | None = None,
    ) -> None:
        """progress: of loads; None logs it now and then."""
        self.deployment = b""
        self._ledger = ledger
        self._redis = redis
        self._settings = settings
        self._follower = follower
        self._stop = stop
        self._progress = progress or self._log_progress
        self._progress_at = 0.0
        self._log = structlog.get_logger().bind(shard=settings.shard)

    def open(self) -> bool:
        """Until the shard takes payments; False if stop was set first."""
        return self.repeat(self._next)

    def look(self) -> Seen:
        """Redis first: what the ledger has then, Redis had."""
        redis = self._redis.state()
        if not redis.replication_id:
            raise RedisAway("the server is a replica")
        ledger = self._ledger.state()
        there = self._ledger.place_at(place_of(redis).sequence) if ledger and ledger.place else None
        return Seen(redis, ledger, there)

    def rebuild(self, place: Place, found: ShardState | None) -> Loaded:
        """Fill Redis from the ledger, which is at place, in a new epoch. The caller knows that what Redis has may go.

        found: what Redis has; None for whatever it is. Raises Moved if either is not there (any more), Stopped.
        """
        epoch = max(place.epoch, place_of(found).epoch if found else 0) + 1
        if not self._ledger.begin_epoch(place, epoch):
            raise Moved("the ledger is not where it was")
        self._log.warning("shard.rebuilds", epoch=epoch, sequence=place.sequence)
        return self._load(found, None, place._replace(epoch=epoch))

    def repeat(self, step: Callable[[], bool]) -> bool:
        """Do steps until one says that it was the last; False if stop was set first."""
        while not self._stop.is_set():
            try:
                if step():
                    return True
            except LibraryMissing:
                self._redis.load_library()
            except Moved as found:
                self._log.info("shard.moved", reason=str(found))
                self._stop.wait(AGAIN_S)
            except Stopped:
                break
        return False

    def _next(self) -> bool:
        seen = self.look()
        return self.take(next_step(seen, self._settings.digest_key), seen)

    def take(self, step: Step, seen: Seen) -> bool:
        """Do one step; True if the shard takes payments now. Raises Moved if it is not as it was seen."""
        ledger = seen.ledger
        if step is Step.BEGIN_DEPLOYMENT or ledger is None:
            deployment_id, key = uuid4(), self._settings.digest_key
            self._ledger.begin_deployment(deployment_id, key_fingerprint(deployment_id.bytes if key is None else key))
            return False
        if step is Step.BEGIN_SHARD or ledger.place is None:
            self._ledger.begin_shard(ledger.deployment_id)
            return False
        self._follower.place = ledger.place
        self.deployment = ledger.deployment_id.bytes
        match step:
            case Step.INITIALISE:
                self._redis.initialise(ledger.deployment_id.bytes, ledger.key_fingerprint, ledger.place.epoch)
            case Step.ADOPT:
                self._adopt(seen, ledger.place)
            case Step.DRAIN:
                self._drain_tail(seen)
            case Step.FEED:
                self._feed(seen, ledger.place)
            case Step.REBUILD if seen.redis.is_open:
                self._redis.close_fence()  # no payment may come between the look that decides and the rebuild
            case Step.REBUILD:
                self.rebuild(ledger.place, seen.redis)
            case Step.OPEN:
                # A leader that died between its commit and its advance left this undone.
                self._follower.advance()
                self._open_fence(seen)
            case Step.SERVE:
                self._follower.advance()
        return step in (Step.OPEN, Step.SERVE)

    def _open_fence(self, seen: Seen) -> None:
        settings, place = self._settings, place_of(seen.redis)
        # A generation ends when it is full; while no leader is there to end it, it grows as the backlog may.
        max_outcomes = settings.max_idempotency_records + settings.max_backlog
        self._redis.open_fence(place, seen.redis.replication_id, settings.max_backlog, max_outcomes)
        self._log.info("shard.opened", epoch=place.epoch, sequence=place.sequence)

    def _adopt(self, seen: Seen, ledger: Place) -> None:
        """Take over Redis' epoch, if what Redis has continues exactly what the ledger has."""
        here = place_of(seen.redis)
        if here.sequence > ledger.sequence:
            raw = self._follower.read()
            try:
                decode(ledger._replace(epoch=here.epoch), _there(raw))
            except (JournalGap, CorruptRecord) as problem:
                raise tail_missing(seen, _first_sequence(raw), problem) from problem
        if not self._ledger.begin_epoch(ledger, here.epoch):
            raise Moved("the ledger is not where it was")
        self._log.warning("ledger.epoch_adopted", epoch=here.epoch, before=ledger.epoch, sequence=ledger.sequence)

    def _drain_tail(self, seen: Seen) -> None:
        """Bring some of what Redis is ahead into the ledger."""
        raw = self._follower.read()
        if seen.ledger_went_back:
            self._log.warning("ledger.went_back", **_how_far(seen))
        self._log.info("shard.drains_tail", after=self._follower.place.sequence)
        try:
            self._follower.persist(_there(raw))
        except JournalGap as gap:
            raise tail_missing(seen, _first_sequence(raw), gap) from gap

    def _feed(self, seen: Seen, ledger: Place) -> None:
        here = place_of(seen.redis)
        loaded = self._load(seen.redis, here, ledger)
        self._log.warning(
            "shard.fed", after=here.sequence, sequence=ledger.sequence, wallets=loaded.wallets, outcomes=loaded.outcomes
        )

    def _load(self, found: ShardState | None, after: Place | None, place: Place) -> Loaded:
        return load_shard(
            self._ledger.connection,
            self._redis,
            self._settings.shard,
            after=after,
            place=place,
            found=found,
            now_ms=self._redis.server_ms(),
            progress=self._report,
        )

    def _report(self, what: str, done: int, total: int) -> None:
        if self._stop.is_set():
            raise Stopped
        self._progress(what, done, total)

    def _log_progress(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._progress_at >= PROGRESS_INTERVAL_S:
            self._progress_at = now
            self._log.info("shard.loads", what=what, done=done, total=total)


def _there(raw: list[RawEntry]) -> list[RawEntry]:
    if not raw:
        raise JournalGap("the journal has no entry there")
    return raw


def _first_sequence(raw: list[RawEntry]) -> int | None:
    header = header_of(raw)
    return int(header["first_sequence"]) if header else None


def _how_far(seen: Seen) -> dict[str, int]:
    place, meta = seen.ledger and seen.ledger.place, seen.redis.meta
    assert place
    assert meta
    return {"sequence": place.sequence, "persisted_before": meta["persisted"], "journal_sequence": meta["sequence"]}
