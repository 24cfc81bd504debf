"""Filling a shard, function by function: who may write, where it goes, and that no half of it ever takes a payment."""

from __future__ import annotations

import struct
from typing import Any

import pytest
import redis

from engine.domain.limits import DAY_MS
from engine.domain.transfer import HoldState, Kind
from engine.wire import ATTEMPTS, HOLD, LAYOUT_VERSION, META
from tests.fixtures.shard import DEPLOYMENT, FINGERPRINT, ShardDriver, capture_record, hold_record, request_record

TOKEN, OTHER = b"t" * 16, b"o" * 16
NO_META = ("", "", "")


def begin(shard: ShardDriver, mode: str = "full", token: bytes = TOKEN, expected: Any = None) -> None:
    shard.call("hotledger_begin_load", token, mode, *(shard.place() if expected is None else expected))


def write(shard: ShardDriver, what: str, number: Any, name: bytes, value: bytes, token: bytes = TOKEN) -> None:
    shard.call("hotledger_load", token, what, number, len(name + value), name + value)


def end(shard: ShardDriver, token: bytes = TOKEN, **fields: Any) -> None:
    meta = {
        "layout": LAYOUT_VERSION, "deployment": DEPLOYMENT, "key_fingerprint": FINGERPRINT, "epoch": 2, "sequence": 7,
        "hash": b"a" * 40, "time_ms": 5, "persisted": 7, "generation": 3, "generation_sequence": 4,
    } | fields  # fmt: skip
    shard.call("hotledger_end_load", token, META.struct.pack(*meta.values()))


class TestBegin:
    def test_it_closes_the_shard_until_the_end(self, funded: ShardDriver) -> None:
        begin(funded, "feed")
        assert funded.statuses([request_record(1)]) == ["SHARD_NOT_OPEN"]
        assert funded.state().loading
        with pytest.raises(redis.ResponseError, match="^CHANGED a load has not ended"):
            funded.open()
        end(funded, sequence=20, persisted=20)
        assert not funded.state().loading
        assert funded.statuses([request_record(1)]) == ["SHARD_NOT_OPEN"]

    def test_full_leaves_nothing_that_looks_like_a_shard(self, funded: ShardDriver) -> None:
        begin(funded)
        assert not funded.redis.exists(funded.keys.meta, funded.keys.journal)
        with pytest.raises(redis.ResponseError, match="^EXISTS"):
            funded.call("hotledger_initialise", DEPLOYMENT, FINGERPRINT, 1)
        assert funded.state().meta is None
        assert funded.state().loading

    @pytest.mark.parametrize("mode", ["full", "feed"])
    def test_only_what_was_compared(self, funded: ShardDriver, mode: str) -> None:
        epoch, sequence, hash = funded.place()
        before = funded.image()
        for wrong in ((epoch + 1, sequence, hash), (epoch, sequence - 1, hash), (epoch, sequence, b"0" * 40), NO_META):
            with pytest.raises(redis.ResponseError, match="^CHANGED meta is at"):
                begin(funded, mode, expected=wrong)
        assert funded.image() == before
        assert funded.statuses([request_record(1)]) == ["POSTED"]

    def test_where_there_is_no_meta(self, funded: ShardDriver) -> None:
        place = funded.place()
        funded.redis.delete(funded.keys.meta)
        for mode, expected in (("full", place), ("feed", place), ("feed", NO_META)):
            with pytest.raises(redis.ResponseError, match="^CHANGED"):
                begin(funded, mode, expected=expected)
        begin(funded, expected=NO_META)

    def test_whatever_is_there(self, funded: ShardDriver) -> None:
        funded.redis.set(funded.keys.meta, b"damaged")
        with pytest.raises(redis.ResponseError, match="^CORRUPT"):
            begin(funded, "feed", expected=("*", "", ""))
        begin(funded, expected=("*", "", ""))
        assert not funded.redis.exists(funded.keys.meta)

    @pytest.mark.parametrize("arguments", [(b"t" * 15, "full"), (b"t" * 17, "full"), (TOKEN, "some"), (TOKEN, "")])
    def test_nonsense(self, funded: ShardDriver, arguments: tuple[bytes, str]) -> None:
        with pytest.raises(redis.ResponseError, match="^INVALID"):
            funded.call("hotledger_begin_load", *arguments, *funded.place())
        assert funded.state().is_open


class TestToken:
    """Who slept through the beginning of another load, or its end, writes nothing any more."""

    def assert_shut_out(self, shard: ShardDriver, token: bytes) -> None:
        before = shard.image()
        calls = (
            lambda: write(shard, "tiers", "", b"\0\0", b"limits", token),
            lambda: shard.call("hotledger_wipe", token, shard.keys.tiers),
            lambda: end(shard, token),
        )
        for call in calls:
            with pytest.raises(redis.ResponseError, match="^CHANGED"):
                call()
        assert shard.image() == before

    def test_another_load_has_begun(self, funded: ShardDriver) -> None:
        begin(funded)
        begin(funded, token=OTHER, expected=NO_META)
        self.assert_shut_out(funded, TOKEN)
        end(funded, OTHER)

    def test_the_load_has_ended(self, funded: ShardDriver) -> None:
        begin(funded)
        end(funded)
        self.assert_shut_out(funded, TOKEN)

    def test_no_load_has_begun(self, funded: ShardDriver) -> None:
        self.assert_shut_out(funded, b"")
        self.assert_shut_out(funded, TOKEN)


class TestLoad:
    def test_where_it_goes(self, funded: ShardDriver) -> None:
        begin(funded)
        keys, id, wallet, when = funded.keys, b"i" * 16, struct.pack("<q", -5), struct.pack("<d", 1e12)
        strings = {"wallets": keys.wallet(-5), "known": keys.known_devices(-5)}
        hashes = {
            ("outcomes", 3): keys.idempotency(3),
            ("holds", ""): keys.holds,
            ("resolved", 3): keys.resolved_holds(3),
            ("refunded", 3): keys.refunded(3),
        }
        for what, key in strings.items():
            write(funded, what, "", wallet, b"value")
            assert funded.redis.get(key) == b"value"
        for (what, number), key in hashes.items():
            write(funded, what, number, id, b"value")
            assert funded.redis.hgetall(key)[id] == b"value"
        write(funded, "tiers", "", b"\1\0", b"value")
        assert funded.redis.hgetall(keys.tiers) == {b"\1\0": b"value"}
        write(funded, "due", "", id, when)
        assert funded.redis.zrange(keys.due, 0, -1, withscores=True) == [(id, 1e12)]
        write(funded, "ended", "", id, b"")
        assert not funded.redis.exists(keys.due)
        assert id not in funded.redis.hgetall(keys.holds)

    def test_many_at_once(self, funded: ShardDriver) -> None:
        begin(funded)
        items = b"".join(struct.pack("<qq", n, n) for n in range(5000))
        funded.call("hotledger_load", TOKEN, "wallets", "", 16, items)
        values = funded.redis.mget([funded.keys.wallet(n) for n in range(5000)])
        assert values == [struct.pack("<q", n) for n in range(5000)]

    def test_attempts_that_are_further_stay(self, clocked: ShardDriver) -> None:
        day = clocked.server_ms() // DAY_MS
        field, key = b"d" + b"device-1" + struct.pack("<d", 1000), clocked.keys.attempts(day)
        begin(clocked)
        for loaded, kept in (
            ((7, 1, 2), (7, 1, 2)),
            ((7, 0, 1), (7, 1, 2)),
            ((6, 9, 9), (7, 1, 2)),
            ((7, 1, 3), (7, 1, 3)),
            ((8, 3, 1), (8, 3, 1)),
        ):
            write(clocked, "attempts", day, field, ATTEMPTS.struct.pack(*loaded) + b"wallet-1")
            assert clocked.redis.hget(key, field) == ATTEMPTS.struct.pack(*kept) + b"wallet-1"
        assert clocked.redis.pexpiretime(key) == (day + 2) * DAY_MS

    @pytest.mark.parametrize(
        "arguments",
        [
            ("walets", "", 16, b"x" * 16),
            ("wallets", "", 0, b"x" * 16),
            ("wallets", "", "", b"x" * 16),
            ("wallets", "", 7, b"x" * 14),
            ("wallets", "", 16, b"x" * 17),
            ("outcomes", -1, 17, b"x" * 17),
            ("outcomes", 0.5, 17, b"x" * 17),
            ("due", "", 24, b"x" * 25),
        ],
    )
    def test_nonsense(self, funded: ShardDriver, arguments: tuple[Any, ...]) -> None:
        begin(funded)
        before = funded.image()
        with pytest.raises(redis.ResponseError, match="^INVALID"):
            funded.call("hotledger_load", TOKEN, *arguments)
        assert funded.image() == before

    def test_wipe_takes_keys_of_the_shard_alone(self, funded: ShardDriver) -> None:
        begin(funded)
        for foreign in (b"{s1}:meta", b"{s0}", b"{s0}meta", funded.keys.loading):
            before = funded.image()
            with pytest.raises(redis.ResponseError, match="^INVALID key"):
                funded.call("hotledger_wipe", TOKEN, funded.keys.wallet(1), foreign)
            assert funded.image() == before
        many = [funded.keys.wallet(n) for n in range(3000)]
        funded.call("hotledger_wipe", TOKEN, *many)
        assert not any(funded.redis.mget(many))


class TestEnd:
    def test_the_journal_goes_on_from_there(self, funded: ShardDriver) -> None:
        """As a feed that brought nothing but a later sequence."""
        epoch, sequence, _ = funded.place()
        begin(funded, "feed")
        end(funded, epoch=epoch, sequence=sequence + 5, persisted=sequence + 5)
        assert funded.redis.xlen(funded.keys.journal) == 0
        assert funded.state().journal_sequence == sequence + 5
        funded.open()
        assert funded.statuses([request_record(1)]) == ["POSTED"]
        assert funded.meta()["sequence"] == sequence + 6
        [(entry_id, _)] = funded.redis.xrange(funded.keys.journal)
        assert entry_id == b"%d-0" % (sequence + 6)

    def test_at_the_beginning_of_a_history(self, funded: ShardDriver) -> None:
        begin(funded)
        end(funded, sequence=0, persisted=0, generation=1, generation_sequence=0, hash=b"0" * 40)
        assert funded.state().journal_sequence == 0
        funded.open()

    def test_a_feed_over_generations_drops_what_is_too_old(self, funded: ShardDriver) -> None:
        made = (funded.keys.idempotency, funded.keys.resolved_holds, funded.keys.refunded)
        funded.end_generation()  # the current one is 2
        for key in made:
            for generation in (1, 2, 3, 4):
                funded.redis.hset(key(generation), "id", "value")
        sequence = funded.meta()["sequence"]
        begin(funded, "feed")
        end(funded, sequence=sequence + 9, persisted=sequence + 9, generation=4, generation_sequence=sequence + 5)
        for key in made:
            assert [funded.redis.exists(key(generation)) for generation in (1, 2, 3, 4)] == [0, 0, 1, 1]

    def test_a_meta_that_is_none(self, funded: ShardDriver) -> None:
        begin(funded)
        for broken in ({"persisted": 8}, {"epoch": 0}, {"layout": 9}, {"generation_sequence": 8}):
            with pytest.raises(redis.ResponseError, match="^CORRUPT meta"):
                end(funded, **broken)
        assert funded.state().loading

    def test_a_journal_that_is_further(self, funded: ShardDriver) -> None:
        """Nothing that only Redis has is dropped by a feed."""
        sequence = funded.meta()["sequence"]
        begin(funded, "feed")
        with pytest.raises(redis.ResponseError, match="equal or smaller"):
            end(funded, sequence=sequence - 1, persisted=sequence - 1)
        assert funded.state().loading


def test_what_is_loaded_is_decided_upon(funded: ShardDriver) -> None:
    """A hold that was loaded is captured as one that was made here."""
    [held] = funded.post([hold_record(100, amount=50)])
    packed = HOLD.struct.pack(LAYOUT_VERSION, HoldState.OPEN, Kind.PAYMENT, 0, 1, 2, 50, 0, 0)
    assert funded.redis.hget(funded.keys.holds, held.id_bytes) == packed
    meta = funded.meta()
    funded.redis.delete(funded.keys.holds)
    begin(funded, "feed")
    write(funded, "holds", "", held.id_bytes, packed)
    funded.redis.delete(funded.keys.journal)
    end(funded, **{name: meta[name] for name, _ in META.fields if name != "layout"})
    funded.open()
    assert funded.statuses([capture_record(1, 100)]) == ["POSTED"]
    assert funded.balance(2) == (50, 0)
