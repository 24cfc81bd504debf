"""What each pair of histories leads to: one line a case. That each comes about for real is in the files beside this."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

import pytest

from engine.domain.ids import key_fingerprint
from engine.errors import HistoryMismatch
from engine.shard import ShardState
from engine.wire import ZERO_HASH
from persister.journal import Place
from persister.ledger import LedgerState
from persister.opening import BEGINNING, Seen, Step, next_step, place_of, tail_missing

DEPLOYMENT = UUID(int=5)
OTHER = UUID(int=6)
HASH, OTHER_HASH, EARLIER = b"a" * 40, b"b" * 40, b"c" * 40

EMPTY = ShardState(False, None, 0, "r", 0)
CUT_SHORT = EMPTY._replace(loading=True)


def ledger(
    sequence: int | None = 10, hash: bytes = HASH, *, epoch: int = 1, key: bytes = DEPLOYMENT.bytes
) -> LedgerState:
    place = None if sequence is None else Place(epoch, sequence, hash)
    blank = LedgerState(*[0] * len(LedgerState._fields))  # type: ignore[arg-type]
    return blank._replace(deployment_id=DEPLOYMENT, key_fingerprint=key_fingerprint(key), place=place, chain=b"")


def redis(
    sequence: int = 10,
    hash: bytes = HASH,
    *,
    is_open: bool = False,
    journal: int | None = None,
    loading: bool = False,
    **meta: Any,
) -> ShardState:
    fields = {
        "deployment": DEPLOYMENT.bytes, "key_fingerprint": key_fingerprint(DEPLOYMENT.bytes), "epoch": 1,
        "sequence": sequence, "hash": hash, "persisted": 0,
    }  # fmt: skip
    return ShardState(is_open, fields | meta, sequence if journal is None else journal, "r", 0, loading)


def seen(server: ShardState, postgres: LedgerState | None, there: bytes | None = None) -> Seen:
    """there: the ledger's hash at Redis' sequence."""
    sequence = place_of(server).sequence
    at_end = postgres and postgres.place and postgres.place.sequence == sequence and postgres.place.hash
    found = there or at_end or (ZERO_HASH if sequence == 0 else None)
    return Seen(server, postgres, Place(1, sequence, found) if found else None)


@pytest.mark.parametrize(
    ("postgres", "server", "there", "step"),
    [
        (None, EMPTY, None, Step.BEGIN_DEPLOYMENT),
        (ledger(None), EMPTY, None, Step.BEGIN_SHARD),
        (ledger(None), redis(5), None, Step.BEGIN_SHARD),
        (ledger(0, ZERO_HASH), EMPTY, None, Step.INITIALISE),
        (ledger(0, ZERO_HASH, epoch=4), EMPTY, None, Step.INITIALISE),
        (ledger(0, ZERO_HASH), redis(0, ZERO_HASH), None, Step.OPEN),
        (ledger(0, ZERO_HASH), redis(7), None, Step.DRAIN),
        # The same epoch
        (ledger(), redis(), None, Step.OPEN),
        (ledger(), redis(is_open=True), None, Step.SERVE),
        (ledger(), redis(11), None, Step.DRAIN),
        (ledger(), redis(11, OTHER_HASH, is_open=True), None, Step.SERVE),
        (ledger(), redis(11, OTHER_HASH, is_open=True, persisted=10), None, Step.SERVE),
        (ledger(), redis(9, EARLIER), EARLIER, Step.FEED),
        (ledger(), redis(9, EARLIER, is_open=True), EARLIER, Step.FEED),
        (ledger(), redis(0, ZERO_HASH), None, Step.FEED),
        # Postgres restored from an older backup
        (ledger(), redis(12, persisted=11), None, Step.DRAIN),
        (ledger(), redis(12, persisted=11, is_open=True), None, Step.DRAIN),
        # Redis has nothing, or a part of a load
        (ledger(), EMPTY, None, Step.REBUILD),
        (ledger(), ShardState(False, None, 10, "r", 0), None, Step.REBUILD),
        (ledger(), CUT_SHORT, None, Step.REBUILD),
        (ledger(0, ZERO_HASH), CUT_SHORT, None, Step.REBUILD),
        (ledger(), redis(loading=True), None, Step.REBUILD),
        (ledger(), redis(9, EARLIER, loading=True), EARLIER, Step.REBUILD),
        (ledger(), redis(11, loading=True), None, Step.DRAIN),
        # Redis of an older epoch
        (ledger(epoch=2), redis(), None, Step.REBUILD),
        (ledger(epoch=2), redis(is_open=True), None, Step.REBUILD),
        (ledger(epoch=3), redis(9, EARLIER, epoch=2), EARLIER, Step.REBUILD),
        (ledger(epoch=2), redis(0, ZERO_HASH), None, Step.REBUILD),
        # Redis of a newer epoch: Postgres is from before the rebuild
        (ledger(), redis(epoch=2), None, Step.ADOPT),
        (ledger(), redis(epoch=2, is_open=True), None, Step.ADOPT),
        (ledger(), redis(12, OTHER_HASH, epoch=2), None, Step.ADOPT),
    ],
)
def test_leads_to(postgres: LedgerState | None, server: ShardState, there: bytes | None, step: Step) -> None:
    assert next_step(seen(server, postgres, there), None) is step


@pytest.mark.parametrize(
    ("postgres", "server", "there", "message"),
    [
        (None, redis(0), None, "Postgres is empty and Redis is not"),
        (None, ShardState(False, None, 7, "r", 0), None, "its journal ends at 7"),
        (ledger(0, ZERO_HASH), ShardState(False, None, 7, "r", 0), None, "lost its meta record, .* more than"),
        (ledger(), ShardState(False, None, 11, "r", 0, True), None, "lost its meta record.*11, a load was cut short"),
        (ledger(), redis(9, EARLIER, journal=10), EARLIER, "journal does not end where its meta record says"),
        (ledger(), redis(9, EARLIER, journal=0, loading=True), EARLIER, "journal does not end where"),
        (ledger(epoch=2), redis(9, EARLIER, journal=11), EARLIER, "journal does not end where"),
        (ledger(), redis(hash=OTHER_HASH), None, "the histories differ up to the same sequence"),
        (ledger(), redis(hash=OTHER_HASH, is_open=True), None, "the histories differ"),
        (ledger(), redis(hash=OTHER_HASH, loading=True), None, "the histories differ"),
        (ledger(), redis(9), None, "the ledger is ahead of Redis, in a history that Redis is not part of"),
        (ledger(), redis(9), EARLIER, "at sequence 9 it had the hash cccc.*Redis.*sequence 9, hash aaaa"),
        (ledger(), redis(9, loading=True), EARLIER, "not part of"),
        (ledger(epoch=2), redis(11), None, "older epoch than the ledger and has payments that the ledger lacks"),
        (ledger(epoch=2), redis(11, is_open=True), None, "older epoch"),
        (ledger(epoch=2), redis(hash=OTHER_HASH), None, "not part of"),
        (ledger(epoch=2), redis(9), EARLIER, "not part of"),
        (ledger(), redis(9, EARLIER, epoch=2), EARLIER, "newer epoch than the ledger and behind"),
        (ledger(), redis(hash=OTHER_HASH, epoch=2), None, "newer epoch than the ledger, and their histories differ"),
        (ledger(), redis(deployment=OTHER.bytes), None, f"different deployments.*{DEPLOYMENT}.*{OTHER}"),
        (ledger(), redis(9, EARLIER, deployment=OTHER.bytes), EARLIER, "different deployments"),
        (ledger(epoch=2), redis(deployment=OTHER.bytes), None, "different deployments"),
        (ledger(None), redis(deployment=OTHER.bytes), None, "different deployments"),
        (ledger(), redis(key_fingerprint=b"12345678"), None, "another digest key"),
        (ledger(key=b"k"), redis(), None, "no digest key was given"),
        (ledger(key=b"k"), EMPTY, None, "no digest key was given"),
    ],
)
def test_stops(postgres: LedgerState | None, server: ShardState, there: bytes | None, message: str) -> None:
    with pytest.raises(HistoryMismatch, match=message) as stopped:
        next_step(seen(server, postgres, there), None)
    if "digest key was given" not in message:
        assert "`hotledger doctor`" in str(stopped.value)


@pytest.mark.parametrize(
    ("server", "first", "message"),
    [
        (redis(20), 15, "Redis is ahead of the ledger, and sequences 11 to 14 are no longer in the journal"),
        (redis(20), None, "sequences 11 to 20 are no longer"),
        (redis(20), 11, "its journal does not lead there: because"),
        (redis(20), 9, "its journal does not lead there: because"),
        (redis(20, persisted=17), 15, "Postgres lost the end.*11 to 14.*it was told that the ledger has 17"),
        (redis(20, persisted=10), 15, "Redis is ahead"),
    ],
)
def test_says_what_is_missing(server: ShardState, first: int | None, message: str) -> None:
    assert re.search(message, str(tail_missing(seen(server, ledger()), first, "because")))


def test_a_shard_without_meta_is_at_the_beginning() -> None:
    assert place_of(EMPTY) == BEGINNING == Place(1, 0, ZERO_HASH)
