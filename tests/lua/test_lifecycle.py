"""Opening, advancing and the idempotency generations, function by function."""

from __future__ import annotations

import pytest
import redis

from engine.library import library_code
from engine.wire import ZERO_HASH
from tests.fixtures.shard import DEPLOYMENT, FINGERPRINT, ShardDriver, request_record


def test_open_is_compare_and_set(funded: ShardDriver) -> None:
    meta = funded.meta()
    right = [meta["epoch"], meta["sequence"], meta["hash"], funded.state().replication_id, 1000]
    for position, wrong in ((0, 2), (1, meta["sequence"] - 1), (2, ZERO_HASH), (3, "0" * 40)):
        arguments = list(right)
        arguments[position] = wrong
        funded.call("hotledger_close")
        with pytest.raises(redis.ResponseError, match="^CHANGED"):
            funded.call("hotledger_open", *arguments)
        assert funded.statuses([request_record(1)]) == ["SHARD_NOT_OPEN"]
    funded.call("hotledger_open", *right)
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
    end = lambda generation: funded.call("hotledger_end_generation", 1, generation)  # noqa: E731
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
    assert [len(entry[b"r"]) for _, entry in funded.redis.xrevrange(funded.keys.journal, count=1)] == [108]


def test_nothing_ends_a_generation_on_a_closed_shard(funded: ShardDriver) -> None:
    funded.call("hotledger_close")
    before = funded.image()
    assert funded.call("hotledger_end_generation", 1, 1) == 0
    assert funded.image() == before
