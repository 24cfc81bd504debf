"""Whether a shard may take payments: compares its history in Redis with the ledger's. Pure: no I/O.

This file owns the rule of the fence (invariant 10). A shard opens only at exactly the place where the ledger is, in
the ledger's epoch. What Redis has beyond it is drained first, what it lacks is fed forward, an empty one is rebuilt
under a new epoch. Whatever would drop payments that only Redis has, or mix two histories, stops for a person.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple
from uuid import UUID

from engine.domain.ids import key_fingerprint
from engine.errors import HistoryMismatch
from engine.shard import ShardState
from engine.wire import ZERO_HASH
from persister.journal import Place
from persister.ledger import LedgerState

BEGINNING = Place(1, 0, ZERO_HASH)
"""Where every history begins."""

_WHAT_NOW = "Nothing was changed and no payment is taken: `hotledger doctor` explains the choices."


class Step(Enum):
    """What brings the shard nearer to taking payments."""

    BEGIN_DEPLOYMENT = auto()  # both are empty: name the deployment in Postgres
    BEGIN_SHARD = auto()  # the ledger does not know the shard: give it its first place there
    INITIALISE = auto()  # the ledger is at the very beginning and Redis is empty: write the meta record
    ADOPT = auto()  # the ledger is a copy from before the last rebuild: take over its epoch where the histories meet
    DRAIN = auto()  # Redis is ahead: write what it has into the ledger
    FEED = auto()  # Redis is behind in the same history: give it what it lacks
    REBUILD = auto()  # Redis has nothing that the ledger lacks, and no whole history either: fill it, in a new epoch
    OPEN = auto()  # equal: open
    SERVE = auto()  # open already: only this persister was away


class Seen(NamedTuple):
    """Both sides as they were found, Redis first, so that a ledger that is behind it really is.

    ledger: None for one without a deployment. there: the place that the ledger has at Redis' sequence, None if no
    entry of its history ends there.
    """

    redis: ShardState
    ledger: LedgerState | None
    there: Place | None

    @property
    def ledger_went_back(self) -> bool:
        """Whether Postgres lacks what it once had, as after a restore from an older backup."""
        place, meta = self.ledger and self.ledger.place, self.redis.meta
        return bool(place and meta and meta["persisted"] > place.sequence)


def next_step(seen: Seen, digest_key: bytes | None) -> Step:
    """Raises HistoryMismatch if the two do not belong together; its message says what each side has.

    digest_key: None for the default, the deployment's id.
    """
    redis, ledger, _ = seen
    if ledger is None:
        if redis.meta is not None or redis.journal_sequence > 0:
            raise _mismatch("Postgres is empty and Redis is not", seen)
        return Step.BEGIN_DEPLOYMENT
    check_belongs(seen, digest_key)
    if ledger.place is None:
        return Step.BEGIN_SHARD
    if redis.meta is None:
        return _without_meta(seen, ledger.place)
    here = place_of(redis)
    if here.epoch > ledger.place.epoch:
        return _newer_epoch(seen, here, ledger.place)
    if here.epoch < ledger.place.epoch:
        return _older_epoch(seen, here, ledger.place)
    return _same_epoch(seen, here, ledger.place)


def check_belongs(seen: Seen, digest_key: bytes | None) -> None:
    """Raises HistoryMismatch if Redis is of another deployment, or either is of another digest key."""
    redis, ledger, _ = seen
    assert ledger is not None
    key = ledger.deployment_id.bytes if digest_key is None else digest_key
    if key_fingerprint(key) != ledger.key_fingerprint:
        given = "no digest key was given" if digest_key is None else "another digest key was given"
        raise HistoryMismatch(
            f"deployment {ledger.deployment_id} derives transfer ids with a key of fingerprint "
            f"{ledger.key_fingerprint.hex()}, and {given}: the same text key would be paid twice"
        )
    if redis.meta is None:
        return
    if redis.meta["deployment"] != ledger.deployment_id.bytes:
        raise _mismatch("Redis and Postgres belong to different deployments", seen)
    if redis.meta["key_fingerprint"] != ledger.key_fingerprint:
        raise _mismatch("Redis has another digest key's fingerprint than Postgres", seen)


def place_of(redis: ShardState) -> Place:
    """Where the shard is in Redis; the beginning if it has no meta record."""
    meta = redis.meta
    return BEGINNING if meta is None else Place(meta["epoch"], meta["sequence"], meta["hash"])


def tail_missing(seen: Seen, first: int | None, reason: object) -> HistoryMismatch:
    """The error for a Redis that is ahead and whose journal does not lead there from the ledger's place.

    first: the first sequence that the journal has after it, None if it has none. reason: why it does not continue.
    """
    place = (seen.ledger and seen.ledger.place) or BEGINNING
    whose = "Postgres lost the end of its history" if seen.ledger_went_back else "Redis is ahead of the ledger"
    before = place_of(seen.redis).sequence if first is None else first - 1
    if before > place.sequence:
        return _mismatch(f"{whose}, and sequences {place.sequence + 1} to {before} are no longer in the journal", seen)
    return _mismatch(f"{whose}, and its journal does not lead there: {reason}", seen)


def _without_meta(seen: Seen, ledger: Place) -> Step:
    """Redis has no meta record: it is new, was wiped, or a rebuild was cut short."""
    if seen.redis.journal_sequence > ledger.sequence:
        raise _mismatch("Redis lost its meta record, and its journal has more than the ledger", seen)
    untouched = ledger.sequence == 0 and seen.redis.journal_sequence == 0 and not seen.redis.loading
    return Step.INITIALISE if untouched else Step.REBUILD


def _newer_epoch(seen: Seen, here: Place, ledger: Place) -> Step:
    if here.sequence < ledger.sequence:
        raise _mismatch("Redis is of a newer epoch than the ledger and behind it", seen)
    if here.sequence == ledger.sequence and here.hash != ledger.hash:
        raise _mismatch("Redis is of a newer epoch than the ledger, and their histories differ", seen)
    return Step.ADOPT


def _older_epoch(seen: Seen, here: Place, ledger: Place) -> Step:
    """A rebuild was interrupted before it reached this Redis, or was done in another one while this one was away."""
    if here.sequence > ledger.sequence:
        raise _mismatch("Redis is of an older epoch than the ledger and has payments that the ledger lacks", seen)
    _check_is_there(seen, here)
    return Step.REBUILD


def _same_epoch(seen: Seen, here: Place, ledger: Place) -> Step:
    if here.sequence > ledger.sequence:
        return Step.SERVE if seen.redis.is_open and not seen.ledger_went_back else Step.DRAIN
    if here.sequence < ledger.sequence:
        _check_is_there(seen, here)
        return Step.REBUILD if seen.redis.loading else Step.FEED
    if here.hash != ledger.hash:
        raise _mismatch("the histories differ up to the same sequence", seen)
    if seen.redis.loading:
        return Step.REBUILD
    return Step.SERVE if seen.redis.is_open else Step.OPEN


def _check_is_there(seen: Seen, here: Place) -> None:
    """That Redis has nothing that the ledger lacks. The hash alone tells: it is rolled over everything before it."""
    if seen.there is None or seen.there.hash != here.hash:
        raise _mismatch("the ledger is ahead of Redis, in a history that Redis is not part of", seen)
    if seen.redis.journal_sequence != here.sequence:
        raise _mismatch("Redis' journal does not end where its meta record says", seen)


def _mismatch(what: str, seen: Seen) -> HistoryMismatch:
    return HistoryMismatch(f"{what}. Postgres: {_describe_ledger(seen)}. Redis: {_describe_redis(seen)}. {_WHAT_NOW}")


def _describe_ledger(seen: Seen) -> str:
    if seen.ledger is None:
        return "no deployment"
    known = f"deployment {seen.ledger.deployment_id}, {_describe_place(seen.ledger.place)}"
    if seen.there is None or seen.ledger.place is None or seen.there.sequence == seen.ledger.place.sequence:
        return known
    return f"{known}, and at sequence {seen.there.sequence} it had the hash {_text(seen.there.hash)}"


def _describe_redis(seen: Seen) -> str:
    redis = seen.redis
    journal = f"its journal ends at {redis.journal_sequence}"
    if redis.loading:
        journal += ", a load was cut short"
    if redis.meta is None:
        return f"no meta record, {journal}"
    persisted = f"it was told that the ledger has {redis.meta['persisted']}, " if seen.ledger_went_back else ""
    deployment = f"deployment {UUID(bytes=redis.meta['deployment'])}"
    return f"{deployment}, {_describe_place(place_of(redis))}, {persisted}{journal}"


def _describe_place(place: Place | None) -> str:
    if place is None:
        return "without this shard"
    return f"epoch {place.epoch}, sequence {place.sequence}, hash {_text(place.hash)}"


def _text(digest: bytes) -> str:
    return digest.decode(errors="replace")
