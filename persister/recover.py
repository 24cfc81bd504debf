"""`hotledger recover`: a person has the shard drained, and rebuilt in Redis from the ledger, whatever state it is in.

Nothing that only Redis has is dropped unless the person says so. It may be cut short at any instant and run again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from engine.errors import CorruptRecord, HistoryMismatch, Unavailable
from persister.connection import connect
from persister.follower import Follower, Settings, header_of
from persister.journal import Place
from persister.ledger import Ledger, LedgerState
from persister.opener import Opener
from persister.opening import Seen, Step, check_belongs, next_step, place_of
from persister.rebuild import Loaded, Progress
from persister.redis_shard import RedisAway, RedisShard

LEAD_INTERVAL_S = 0.2


class Recovered(NamedTuple):
    """What was done. drained: records that only Redis had and the ledger has now. discarded: records that only Redis
    had, None if they cannot be counted."""

    epoch: int
    sequence: int
    drained: int
    discarded: int | None
    loaded: Loaded


def recover(
    redis_url: str,
    postgres_url: str,
    settings: Settings,
    *,
    progress: Progress,
    discard: bool = False,
    wait_s: float = 0.0,
    waiting: Callable[[], None] = lambda: None,
) -> Recovered:
    """Drain what can be drained, rebuild the shard in Redis under a new epoch, verify it, open it.

    discard: drop what only Redis has, where it cannot be drained. wait_s: how long to wait for the leadership;
    waiting: called once if it has to be waited for. Raises Unavailable if somebody else leads all the time or a
    server is away, HistoryMismatch if Redis has what would be lost or belongs to another ledger, and other Fatals.
    """
    try:
        with connect(postgres_url, application_name="hotledger recover") as connection:
            ledger = Ledger(connection, settings.shard)
            _lead(ledger, settings.shard, wait_s, waiting)
            with RedisShard(redis_url, settings.shard) as redis:
                return _Recovery(ledger, redis, settings, progress, discard).run()
    except RedisAway as error:
        raise Unavailable(f"Redis is away: {error}; run it again") from error


def only_in_redis(ledger: Ledger, redis: RedisShard, seen: Seen) -> int | None:
    """How many records Redis has behind the last place that it has in common with the ledger.

    None if its journal does not reach back that far. Two histories that are one at some place are one at each before
    it, so that place is found in a few steps, however long the journal is.
    """
    here = place_of(seen.redis)
    if seen.redis.meta and seen.there and seen.there.hash == here.hash:
        return 0
    end = here.sequence if seen.redis.meta else seen.redis.journal_sequence
    common: int | None = None
    low, high = 0, end
    while low < high:
        middle = (low + high) // 2
        said = header_of(redis.read_one(middle))
        if said is None:
            break
        if _has(ledger, said["last_sequence"], said["hash"]):
            common = low = said["last_sequence"]
        elif _has(ledger, said["first_sequence"] - 1, said["previous_hash"]):
            common = said["first_sequence"] - 1
            break
        else:
            high = middle
    return None if common is None else end - common


def _has(ledger: Ledger, sequence: int, journal_hash: bytes) -> bool:
    place = ledger.place_at(sequence)
    return place is not None and place.hash == journal_hash


def _lead(ledger: Ledger, shard: int, wait_s: float, waiting: Callable[[], None]) -> None:
    deadline = time.monotonic() + wait_s
    told = False
    while not ledger.try_to_lead():
        if time.monotonic() >= deadline:
            raise Unavailable(
                f"a persister leads shard {shard}: stop it and those that stand by "
                "(`hotledger persist`, `hotledger up`), then run this again"
            )
        if not told:
            waiting()
        told = True
        time.sleep(LEAD_INTERVAL_S)


class _Recovery:
    def __init__(
        self, ledger: Ledger, redis: RedisShard, settings: Settings, progress: Progress, discard: bool
    ) -> None:
        self._ledger = ledger
        self._redis = redis
        self._settings = settings
        self._discard = discard
        self._follower = Follower(ledger, redis, settings)
        self._opener = Opener(ledger, redis, settings, self._follower, threading.Event(), progress)
        self._drained = 0
        self._discarded: int | None = 0
        self._loaded: Loaded | None = None

    def run(self) -> Recovered:
        self._follower.check_server()
        self._opener.repeat(self._step)
        self._opener.open()
        assert self._loaded is not None
        place = self._follower.place
        return Recovered(place.epoch, place.sequence, self._drained, self._discarded, self._loaded)

    def _step(self) -> bool:
        """True once it is rebuilt."""
        try:
            seen = self._opener.look()
        except CorruptRecord as damage:
            return self._rebuild_damaged(damage)
        place = _place(seen.ledger)
        check_belongs(seen, self._settings.digest_key)
        if seen.redis.is_open:
            self._redis.close_fence()
            return False
        try:
            step = next_step(seen, self._settings.digest_key)
            if step in (Step.ADOPT, Step.DRAIN):
                self._opener.take(step, seen)
                self._drained += self._follower.place.sequence - place.sequence
                return False
        except HistoryMismatch as mismatch:
            self._discarded = only_in_redis(self._ledger, self._redis, seen)
            if not self._discard:
                raise HistoryMismatch(f"{mismatch} {self._would_be_lost()}") from mismatch
        self._loaded = self._opener.rebuild(place, seen.redis)
        return True

    def _rebuild_damaged(self, damage: CorruptRecord) -> bool:
        """Of a Redis that cannot say who it is, and what it has."""
        if not self._discard:
            raise CorruptRecord(
                f"{damage}: what Redis has cannot be told. `hotledger recover --discard-redis` would drop all of it"
            ) from damage
        self._discarded = None
        self._loaded = self._opener.rebuild(_place(self._ledger.state()), None)
        return True

    def _would_be_lost(self) -> str:
        many = "an unknown number of" if self._discarded is None else f"{self._discarded:,}"
        return f"`hotledger recover --discard-redis` would drop {many} records that only Redis has."


def _place(ledger: LedgerState | None) -> Place:
    if ledger is None or ledger.place is None:
        raise HistoryMismatch("the ledger has no such shard: there is nothing to recover it from")
    return ledger.place
