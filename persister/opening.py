"""Whether a shard may take payments: compares its history in Redis with the ledger's. Pure: no I/O.

This file owns the rule of the fence (invariant 10). A shard opens only at exactly the place where the ledger is;
what Redis has beyond it is drained first; anything else is another history, or one with a part missing, and stops.
"""

from __future__ import annotations

from enum import Enum, auto
from uuid import UUID

from engine.domain.ids import key_fingerprint
from engine.errors import HistoryMismatch
from engine.shard import ShardState
from engine.wire import ZERO_HASH
from persister.journal import Place
from persister.ledger import LedgerState

_LATER = "The recovery tools handle this; nothing was changed and no payment is taken."


class Step(Enum):
    """What brings the shard nearer to taking payments."""

    BEGIN_DEPLOYMENT = auto()  # both are empty: name the deployment in Postgres
    BEGIN_SHARD = auto()  # the ledger does not know the shard: give it its first place there
    INITIALISE = auto()  # the ledger is at the very beginning and Redis is empty: write the meta record
    DRAIN = auto()  # Redis is ahead: write what it has into the ledger
    OPEN = auto()  # equal: open
    SERVE = auto()  # open already: only this persister was away


def next_step(ledger: LedgerState | None, redis: ShardState, digest_key: bytes | None) -> Step:
    """Raises HistoryMismatch if the two do not belong together; its message says what each side has.

    ledger: None for one without a deployment. digest_key: None for the default, the deployment's id.
    """
    if ledger is None:
        if redis.meta is not None or redis.journal_sequence > 0:
            raise _mismatch("Postgres is empty and Redis is not", ledger, redis)
        return Step.BEGIN_DEPLOYMENT
    _check_key(ledger, digest_key)
    if ledger.place is None:
        _check_identity(ledger, redis, epoch=1)
        return Step.BEGIN_SHARD
    if redis.meta is None:
        if ledger.place.sequence > 0 or redis.journal_sequence > 0:
            raise _mismatch("Redis lost its data, the ledger has it", ledger, redis)
        return Step.INITIALISE
    _check_identity(ledger, redis, ledger.place.epoch)
    here = place_of(redis)
    if here.sequence < ledger.place.sequence:
        raise _mismatch("Redis lost the end of its history, the ledger is ahead", ledger, redis)
    if here.sequence > ledger.place.sequence:
        return Step.SERVE if redis.is_open else Step.DRAIN
    if here.hash != ledger.place.hash:
        raise _mismatch("the histories differ up to the same sequence", ledger, redis)
    return Step.SERVE if redis.is_open else Step.OPEN


def place_of(redis: ShardState) -> Place:
    """Where the shard is in Redis; it has a meta record."""
    meta = redis.meta or {"epoch": 1, "sequence": 0, "hash": ZERO_HASH}
    return Place(meta["epoch"], meta["sequence"], meta["hash"])


def _check_key(ledger: LedgerState, digest_key: bytes | None) -> None:
    key = ledger.deployment_id.bytes if digest_key is None else digest_key
    if key_fingerprint(key) != ledger.key_fingerprint:
        given = "no digest key was given" if digest_key is None else "another digest key was given"
        raise HistoryMismatch(
            f"deployment {ledger.deployment_id} derives transfer ids with a key of fingerprint "
            f"{ledger.key_fingerprint.hex()}, and {given}: the same text key would be paid twice"
        )


def _check_identity(ledger: LedgerState, redis: ShardState, epoch: int) -> None:
    if redis.meta is None:
        return
    if redis.meta["deployment"] != ledger.deployment_id.bytes:
        raise _mismatch("Redis and Postgres belong to different deployments", ledger, redis)
    if redis.meta["key_fingerprint"] != ledger.key_fingerprint:
        raise _mismatch("Redis has another digest key's fingerprint than Postgres", ledger, redis)
    if redis.meta["epoch"] != epoch:
        raise _mismatch("Redis is of another epoch than the ledger", ledger, redis)


def _mismatch(what: str, ledger: LedgerState | None, redis: ShardState) -> HistoryMismatch:
    return HistoryMismatch(f"{what}. Postgres: {_describe_ledger(ledger)}. Redis: {_describe_redis(redis)}. {_LATER}")


def _describe_ledger(ledger: LedgerState | None) -> str:
    if ledger is None:
        return "no deployment"
    return f"deployment {ledger.deployment_id}, {_describe_place(ledger.place)}"


def _describe_redis(redis: ShardState) -> str:
    journal = f"its journal ends at {redis.journal_sequence}"
    if redis.meta is None:
        return f"no meta record, {journal}"
    return f"deployment {UUID(bytes=redis.meta['deployment'])}, {_describe_place(place_of(redis))}, {journal}"


def _describe_place(place: Place | None) -> str:
    if place is None:
        return "without this shard"
    return f"epoch {place.epoch}, sequence {place.sequence}, hash {place.hash.decode(errors='replace')}"
