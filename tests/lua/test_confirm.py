"""hotledger_confirm: whether a server has exactly what a caller was answered."""

from __future__ import annotations

import pytest
import redis

from engine.shard import Confirmed, unpack_confirmed
from engine.wire import ANSWER, CONFIRMATION, MAX_BATCH
from tests.fixtures.shard import DEPLOYMENT, ShardDriver, changed, hold_record, request_record


def item(shard: ShardDriver, number: int) -> bytes:
    """The CONFIRMATION of what the shard has under a number's id."""
    kept = shard.lookup(number)[1]
    assert kept
    return number.to_bytes(16, "big") + kept[: ANSWER.size]


def confirm(shard: ShardDriver, *items: bytes, write: bool = False) -> Confirmed:
    return unpack_confirmed(shard.call("hotledger_confirm", DEPLOYMENT, b"".join(items), int(write)))


def test_only_the_very_answer_counts(funded: ShardDriver) -> None:
    assert funded.statuses([request_record(1), hold_record(2), request_record(3, amount=10**6)]) == [
        "POSTED", "POSTED", "INSUFFICIENT_FUNDS",
    ]  # fmt: skip
    posted, held, refused = (item(funded, number) for number in (1, 2, 3))
    assert confirm(funded, posted, held, refused) == (0, [True] * 3)
    others = [
        changed(CONFIRMATION, posted, id=(9).to_bytes(16, "big")),
        changed(CONFIRMATION, posted, id=(2).to_bytes(16, "big")),
        *(changed(CONFIRMATION, posted, **{name: 77}) for name, _ in ANSWER.fields if name != "replayed"),
    ]
    assert confirm(funded, *others, held) == (0, [False] * len(others) + [True])
    assert confirm(funded, changed(CONFIRMATION, posted, replayed=1)).held == [True]


def test_it_tells_how_far_the_ledger_is(funded: ShardDriver) -> None:
    funded.call("hotledger_advance", 1, 5, 0)
    assert confirm(funded, item(funded, 9007)).persisted == 5


def test_both_generations_are_looked_at(funded: ShardDriver) -> None:
    asked = item(funded, 9007)
    for held in (True, True, False):
        assert confirm(funded, asked).held == [held]
        funded.end_generation()


def test_it_writes_only_where_asked_to(funded: ShardDriver) -> None:
    asked, before = item(funded, 9007), funded.image()
    confirm(funded, asked)
    assert funded.image() == before
    confirm(funded, asked, write=True)
    assert set(funded.image()) - set(before) == {funded.keys.touch}


def test_a_full_memory_does_not_stop_it(funded: ShardDriver) -> None:
    asked = item(funded, 9007)
    funded.redis.config_set("maxmemory", 1)
    try:
        assert confirm(funded, asked, write=True).held == [True]
    finally:
        funded.redis.config_set("maxmemory", 0)


def test_a_closed_shard_confirms_nothing(funded: ShardDriver) -> None:
    asked = item(funded, 9007)
    funded.call("hotledger_close")
    with pytest.raises(redis.ResponseError, match="^CLOSED"):
        confirm(funded, asked)
    funded.open()
    assert confirm(funded, asked).held == [True]


def test_nonsense_is_refused(funded: ShardDriver) -> None:
    asked, before = item(funded, 9007), funded.image()
    for items in (b"", asked[:-1], asked + b"x", asked * (MAX_BATCH + 1)):
        with pytest.raises(redis.ResponseError, match="^INVALID items"):
            confirm(funded, items, write=True)
    assert confirm(funded, asked * MAX_BATCH).held == [True] * MAX_BATCH
    with pytest.raises(redis.ResponseError, match="^FOREIGN"):
        funded.call("hotledger_confirm", b"another's ledger", asked, 1)
    assert funded.image() == before


def test_advancing_is_published(funded: ShardDriver) -> None:
    """Only where it moved: an engine that hears it asks at once."""
    with funded.redis.pubsub() as heard:
        heard.subscribe(funded.keys.persisted_channel)
        assert heard.get_message(timeout=5)["type"] == "subscribe"
        for persisted in (3, 3, 2, 8):
            funded.call("hotledger_advance", 1, persisted, 0)
        assert [heard.get_message(timeout=5)["data"] for _ in range(2)] == [b"3", b"8"]
        assert heard.get_message(timeout=0.05) is None
