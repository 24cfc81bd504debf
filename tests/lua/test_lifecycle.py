"""Opening, advancing and the idempotency generations, function by function."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from engine.domain.transfer import Kind
from engine.library import library_code
from engine.wire import JOURNAL_RECORD, ZERO_HASH
from tests.fixtures.cli import wait_for
from tests.fixtures.shard import (
    DEPLOYMENT,
    FINGERPRINT,
    OUTSIDE,
    ShardDriver,
    capture_record,
    hold_record,
    reference_record,
    request_record,
)
from tests.lua.books import assert_sound


def test_open_is_compare_and_set(funded: ShardDriver) -> None:
    meta = funded.meta()
    right = [meta["epoch"], meta["sequence"], meta["hash"], funded.state().replication_id, 1000, 1000]
    for position, wrong in ((0, 2), (1, meta["sequence"] - 1), (2, ZERO_HASH), (3, "0" * 40)):
        arguments = list(right)
        arguments[position] = wrong
        funded.call("hotledger_close")
        with pytest.raises(redis.ResponseError, match="^CHANGED"):
            funded.call("hotledger_open", *arguments)
        assert funded.statuses([request_record(1)]) == ["SHARD_NOT_OPEN"]
    funded.call("hotledger_open", *right)
    assert funded.statuses([request_record(1)]) == ["POSTED"]


@pytest.mark.parametrize("value", ["", "x", -1, 0.5, "nan", "inf", 2**53])
@pytest.mark.parametrize("which", ["max_backlog", "max_outcomes"])
def test_open_with_a_bound_that_is_none(funded: ShardDriver, which: str, value: Any) -> None:
    funded.call("hotledger_close")
    with pytest.raises(redis.ResponseError, match=f"^INVALID {which}"):
        funded.open(**{which: value})
    assert not funded.state().is_open


def test_a_server_that_was_a_replica_since_is_closed(funded: ShardDriver) -> None:
    """Its process and its data are the same; only its replication id tells that it may have missed a history."""
    before = funded.image()
    try:
        funded.redis.execute_command("REPLICAOF", "127.0.0.1", "1")
        assert not funded.state().is_open
        assert funded.state().replication_id == ""
    finally:
        funded.redis.execute_command("REPLICAOF", "NO", "ONE")
    assert funded.statuses([request_record(1)]) == ["SHARD_NOT_OPEN"]
    assert not funded.state().is_open
    assert funded.image() == before
    funded.open()
    assert funded.statuses([request_record(1)]) == ["POSTED"]


def test_a_reloaded_library_is_closed(funded: ShardDriver) -> None:
    funded.redis.execute_command("FUNCTION", "LOAD", "REPLACE", library_code())
    assert not funded.state().is_open
    assert funded.statuses([request_record(1)]) == ["SHARD_NOT_OPEN"]


def test_initialise_only_an_empty_shard(funded: ShardDriver) -> None:
    before = funded.image()
    with pytest.raises(redis.ResponseError, match="^EXISTS"):
        funded.call("hotledger_initialise", DEPLOYMENT, FINGERPRINT, 1)
    funded.redis.delete(funded.keys.meta)
    with pytest.raises(redis.ResponseError, match="^EXISTS"):
        funded.call("hotledger_initialise", DEPLOYMENT, FINGERPRINT, 1)
    assert set(before) - set(funded.image()) == {funded.keys.meta}


def test_advance_never_goes_back_or_beyond_and_keeps_the_last_entry(funded: ShardDriver) -> None:
    for number in range(1, 6):
        funded.post([request_record(number)])
    sequence = funded.meta()["sequence"]
    with pytest.raises(redis.ResponseError, match="^CHANGED"):
        funded.call("hotledger_advance", 1, sequence + 1, 0)
    with pytest.raises(redis.ResponseError, match="^CHANGED"):
        funded.call("hotledger_advance", 2, sequence, 0)
    funded.call("hotledger_advance", 1, sequence, sequence + 100)
    funded.call("hotledger_advance", 1, sequence - 3, 0)
    assert funded.meta()["persisted"] == sequence
    assert [entry_id for entry_id, _ in funded.redis.xrange(funded.keys.journal)] == [b"%d-0" % sequence]
    assert funded.statuses([request_record(6)]) == ["POSTED"]


def test_generations(funded: ShardDriver) -> None:
    funded.post([request_record(1)])

    def end(generation: int) -> int:
        return int(funded.call("hotledger_end_generation", 1, generation))

    assert end(2) == 0, "only the current one"
    assert end(1) == 1
    assert end(1) == 0, "once"
    [again] = funded.post([request_record(1)])
    assert again.replayed, "the previous generation still answers"
    assert end(2) == 0, "the new generation's first record is not in the ledger yet"
    funded.call("hotledger_advance", 1, funded.meta()["sequence"], 0)
    assert end(2) == 1
    assert funded.redis.exists(funded.keys.idempotency(1)) == 0
    assert funded.meta()["generation"] == 3
    assert [len(entry[b"r"]) for _, entry in funded.redis.xrevrange(funded.keys.journal, count=1)] == [
        JOURNAL_RECORD.size
    ]


def test_a_generation_takes_its_ended_holds_and_refunds_along(funded: ShardDriver) -> None:
    """Those of the generation before the current one are still known; open holds stay."""
    asked = [hold_record(1), hold_record(2), capture_record(3, 1), reference_record(4, Kind.REFUND, 9007, 5)]
    assert set(funded.statuses(asked)) == {"POSTED"}
    kept = [funded.keys.idempotency(1), funded.keys.resolved_holds(1), funded.keys.refunded(1)]
    funded.end_generation()
    assert funded.redis.exists(*kept) == 3
    funded.end_generation()
    assert funded.redis.exists(*kept) == 0
    assert funded.hold(1) is None
    hold = funded.hold(2)
    assert hold
    assert hold["remaining"] == 100
    assert_sound(funded)


def test_the_previous_generation_is_read_beside_the_current_one(funded: ShardDriver) -> None:
    [first] = funded.post([request_record(1)])
    assert funded.statuses([request_record(2, amount=10**6)]) == ["INSUFFICIENT_FUNDS"]
    kept = funded.lookup(1, 2)[1:]
    assert all(kept)
    assert funded.call("hotledger_end_generation", 1, 1) == 1
    new, paid, other, refused = funded.post(
        [request_record(3), request_record(1), request_record(1, amount=1), request_record(2, amount=10**6)]
    )
    assert (new.status, new.replayed) == ("POSTED", False)
    assert paid.replayed
    assert paid[:2] == first[:2]
    assert other.status == "EXISTS_WITH_DIFFERENT_AMOUNT"
    assert (refused.status, refused.replayed) == ("INSUFFICIENT_FUNDS", True)
    both = funded.post([request_record(1), request_record(3)])
    assert [outcome.replayed for outcome in both] == [True, True], "a hit in one generation does not hide the other"
    assert funded.wallet(1)["available"] == 800
    assert funded.lookup(1, 2)[1:] == kept
    assert funded.lookup(4, 3)[1] == b""
    assert funded.lookup(4, 3)[2] != b""


def test_a_generation_before_the_previous_one_is_forgotten(funded: ShardDriver) -> None:
    funded.post([request_record(1)])
    for generation in (1, 2):
        assert funded.call("hotledger_end_generation", 1, generation) == 1
        funded.call("hotledger_advance", 1, funded.meta()["sequence"], 0)
    [again] = funded.post([request_record(1)])
    assert (again.status, again.replayed) == ("POSTED", False)


END_GENERATION, ADVANCE = ("hotledger_end_generation", 1, 1), ("hotledger_advance", 1, 4, 2)


@pytest.mark.parametrize(
    ("call", "damage"),
    [
        *((END_GENERATION, damage) for damage in ("deleted", "a set", "behind", "ahead")),
        # What the journal holds is not for advance to judge: the persister finds it, and says what is wrong with it.
        (ADVANCE, "a set"),
    ],
)
def test_a_damaged_journal_is_noticed_before_anything_is_written(
    funded: ShardDriver, call: tuple[Any, ...], damage: str
) -> None:
    journal, sequence = funded.keys.journal, funded.meta()["sequence"]
    if damage != "ahead":
        funded.redis.delete(journal)
    if damage == "a set":
        funded.redis.sadd(journal, "x")
    elif damage != "deleted":
        funded.redis.xadd(journal, {"a": "b"}, id=f"{sequence + (1 if damage == 'ahead' else -1)}-0")
    before = funded.image()
    with pytest.raises(redis.ResponseError, match=r"^(CORRUPT|WRONGTYPE)"):
        funded.call(*call)
    assert funded.image() == before


def test_an_ended_generation_leaves_the_shard_open(funded: ShardDriver) -> None:
    """The fence goes along with meta's sequence and hash."""
    assert funded.call("hotledger_end_generation", 1, 1) == 1
    assert funded.state().is_open
    assert funded.statuses([request_record(1)]) == ["POSTED"]


def test_nothing_ends_a_generation_on_a_closed_shard(funded: ShardDriver) -> None:
    funded.call("hotledger_close")
    before = funded.image()
    assert funded.call("hotledger_end_generation", 1, 1) == 0
    assert funded.image() == before


def test_short_memory_refuses_payments_and_loses_none(funded: ShardDriver) -> None:
    """Before the server itself refuses every write: so replays are answered, the persister goes on, and so do payments
    once there is memory again."""
    redis_, numbers, posted = funded.redis, iter(range(10_000, 10_000_000)), 0
    redis_.setrange("filler", 60_000_000, b"x")
    used = redis_.info("memory")["used_memory"]
    redis_.config_set("maxmemory", int((used + 2_000_000) / 0.9))
    try:
        refused: list[bytes] = []
        while not refused:
            batch = [request_record(next(numbers), Kind.TOP_UP, OUTSIDE, 1, 1) for _ in range(1024)]
            statuses = funded.statuses(batch)
            posted += statuses.count("POSTED")
            refused = [record for record, status in zip(batch, statuses, strict=True) if status == "LEDGER_BACKLOG"]
            assert len(refused) + statuses.count("POSTED") == len(batch)
        assert posted, "there was room at first"
        assert funded.one(request_record(10_000, Kind.TOP_UP, OUTSIDE, 1, 1)).replayed
        assert funded.balance(1) == (1000 + posted, 0)
        sequence = funded.meta()["sequence"]
        funded.call("hotledger_advance", 1, sequence, 0)
        redis_.config_set("maxmemory", 2 * used)
        wait_for(lambda: set(funded.statuses(refused)) == {"POSTED"})
        assert funded.balance(1) == (1000 + posted + len(refused), 0)
    finally:
        redis_.config_set("maxmemory", 0)
        redis_.delete("filler")
    assert_sound(funded)


def test_a_full_server_refuses_payments_but_lets_the_journal_be_trimmed(funded: ShardDriver) -> None:
    """Else it would stay full: trimming is what frees memory."""
    for number in range(1, 4):
        funded.post([request_record(number)])
    funded.redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis.ResponseError):
            funded.post([request_record(9)])
        sequence = funded.meta()["sequence"]
        funded.call("hotledger_advance", 1, sequence, sequence)
        assert funded.meta()["persisted"] == sequence
        assert funded.redis.xlen(funded.keys.journal) == 1
    finally:
        funded.redis.config_set("maxmemory", 0)
    assert funded.statuses([request_record(9)]) == ["POSTED"]
