"""A shard filled from its ledger is what it was; and what becomes of a load that is cut short or overtaken.

Random traffic is in test_rebuild_model.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from engine.domain.limits import Rule
from engine.domain.transfer import Kind, RequestFlag
from engine.domain.wallet import FLAG_CREDIT_FROZEN, FLAG_DEBIT_FROZEN
from engine.errors import CorruptRecord
from engine.wire import ANSWER, KNOWN_DEVICE, REPLY_HEADER
from persister import rebuild, rebuild_rules
from persister.connection import connect
from persister.journal import Place
from persister.loading import Load
from persister.rebuild import Loaded
from persister.redis_shard import Moved, RedisShard
from tests.fixtures.ledger import LedgerWorld, detail_fields
from tests.fixtures.rebuild import assert_same, image_of, load, place_of, put_back, save
from tests.fixtures.shard import (
    OUTSIDE,
    Asked,
    altered,
    capture_record,
    chain,
    hold_record,
    opening_record,
    reference_record,
    request_record,
    terms,
)

# Each way to be accepted whose answer has to be kept.
ASKED = [
    (request_record(501, Kind.PAYMENT, 1, 2, 10), "POSTED"),
    (request_record(502, Kind.PAYMENT, 4, 2, 2 * 10**15, flags=RequestFlag.BALANCING), "POSTED"),
    (request_record(503, Kind.TOP_UP, OUTSIDE, 1, 500, currency=b"USD\0\0\0\0\0"), "POSTED"),
    (request_record(504, Kind.PAYMENT, 1, 2, 10, attached=terms(conditions=2, min_available_after=1)), "POSTED"),
    (request_record(505, Kind.PAYMENT, 1, 2, 10, attached=terms(device=b"device 1")), "POSTED"),
    (hold_record(511, 1, 2, 100), "POSTED"),
    (reference_record(512, Kind.RAISE_HOLD, 511, 7), "POSTED"),
    (capture_record(513, 511, 50, final=False), "POSTED"),
    (capture_record(514, 511), "POSTED"),
    (hold_record(521, 1, 2, 30), "POSTED"),
    (reference_record(522, Kind.VOID, 521), "POSTED"),
    (reference_record(531, Kind.REFUND, 501, 3), "POSTED"),
    (reference_record(532, Kind.REFUND, 501), "POSTED"),
    (reference_record(533, Kind.CHARGEBACK, 503), "POSTED"),
    (request_record(541, Kind.PAYMENT, 11, 2, 600), "UNDER_REVIEW"),
    (reference_record(542, Kind.APPROVE_HOLD, 541), "POSTED"),
    (hold_record(543, 11, 2, 600), "UNDER_REVIEW"),
    (reference_record(544, Kind.APPROVE_HOLD, 543), "POSTED"),
    *zip(
        chain(request_record(551, debit=1, credit=2), hold_record(552, 1, 2, 5), capture_record(553, 552)),
        ["POSTED"] * 3,
        strict=True,
    ),
]
REFUSED = request_record(600, Kind.PAYMENT, 3, 2, 10**15)


def rebuilt(world: LedgerWorld, after: Place | None = None, **options: Any) -> Loaded:
    return load(world.shard, world.redis_url, world.postgres_url, after, **options)


def assert_comes_back(world: LedgerWorld, **options: Any) -> Loaded:
    """All that the ledger has, from nothing."""
    world.drain()
    before = image_of(world.shard, **options)
    world.redis.flushdb()
    loaded = rebuilt(world)
    assert_same(image_of(world.shard, **options), before)
    return loaded


def end_generation(world: LedgerWorld) -> None:
    world.drain()
    world.shard.end_generation()
    world.drain()


class TestFull:
    def test_everything_comes_back(self, funded_world: LedgerWorld) -> None:
        funded_world.do_everything()
        loaded = assert_comes_back(funded_world)
        assert loaded.wallets == loaded.verified == 22
        assert (loaded.holds, loaded.ended_holds, loaded.refunds, loaded.tiers) == (4, 3, 4, 1)

    def test_and_goes_on(self, funded_world: LedgerWorld) -> None:
        funded_world.do_everything()
        funded_world.change_wallet(Kind.UNFREEZE, 12, FLAG_DEBIT_FROZEN | FLAG_CREDIT_FROZEN)
        assert_comes_back(funded_world)
        funded_world.shard.open()
        funded_world.pay(100)
        funded_world.drain()
        funded_world.assert_proved()

    def test_a_ledger_without_requests(self, world: LedgerWorld) -> None:
        world.drain()
        before = image_of(world.shard)
        world.redis.flushdb()
        assert rebuilt(world)[:-1] == (0,) * 9
        found = image_of(world.shard)
        assert found[world.shard.keys.meta] == before[world.shard.keys.meta] | {
            "time_ms": found[world.shard.keys.meta]["time_ms"]
        }
        world.shard.open()
        world.open_wallets()

    def test_blocks_do_not_matter(self, funded_world: LedgerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (rebuild, rebuild_rules):
            monkeypatch.setattr(module, "SEQUENCES_AT_ONCE", 7)
        monkeypatch.setattr(rebuild, "WALLETS_AT_ONCE", 5)
        monkeypatch.setattr(rebuild, "HOLDS_AT_ONCE", 2)
        monkeypatch.setattr("persister.loading.BYTES_AT_ONCE", 300)
        funded_world.do_everything()
        assert_comes_back(funded_world)

    def test_what_is_left_of_another_life_goes(self, funded_world: LedgerWorld) -> None:
        world, keys = funded_world, funded_world.shard.keys
        world.drain()
        before = image_of(world.shard)
        others = (b"{s1}:meta", b"{s10}:w:12345678", b"something")
        for key in (keys.wallet(999), keys.idempotency(9), keys.tag + b":of no use", *others):
            world.redis.set(key, "old")
        world.redis.hset(keys.holds, "old", "old")
        rebuilt(world)
        assert_same(image_of(world.shard), before)
        assert world.redis.mget(others) == [b"old"] * 3

    def test_outcomes_of_two_generations(self, funded_world: LedgerWorld) -> None:
        world = funded_world
        world.do_everything()
        end_generation(world)
        world.do_everything()
        assert_comes_back(world)
        world.shard.open()
        end_generation(world)
        world.pay(10)
        world.refund(world.move(Kind.TOP_UP, OUTSIDE, 6, 40), 40)
        assert_comes_back(world)

    def test_attempts(self, funded_world: LedgerWorld) -> None:
        """Refused ones as far as they were collected."""
        world, shard = funded_world, funded_world.shard
        world.set_limits(7, device_attempts=40, ip_attempts=40, device_wallets=3, new_device_amount=50)
        for wallet in (11, 12, 13):
            world.change_wallet(Kind.SET_TIER, wallet, 7)
            world.move(Kind.PAYMENT, wallet, 1, 20, device=b"device 1", ip=b"address1")
        world.move(Kind.PAYMENT, 11, 1, 20, device=b"device 2")
        refused = request_record(
            world.id(), Kind.PAYMENT, 12, 1, 60, attached=terms(device=b"device 3", ip=b"address1")
        )
        assert shard.statuses([refused]) == ["LIMIT_EXCEEDED"]
        loaded = assert_comes_back(world, attempts=True)
        assert (loaded.known_devices, loaded.attempts) == (3, 4)

    def poor_wallet(self, world: LedgerWorld, tier: int) -> int:
        """One without money, in a tier."""
        wallet = 1_000_000 + world.id()
        world.done(opening_record(world.id(), wallet))
        world.change_wallet(Kind.SET_TIER, wallet, tier)
        return wallet

    def chargeback(self, world: LedgerWorld, wallet: int, amount: int) -> None:
        """Of a top-up that is spent."""
        top_up = world.move(Kind.TOP_UP, OUTSIDE, wallet, amount)
        world.move(Kind.PAYMENT, wallet, 1, amount)
        world.refund(top_up, amount, Kind.CHARGEBACK)

    def test_debts(self, funded_world: LedgerWorld) -> None:
        """Of the last time below zero, where the tier sets them aside; paid back in part, they stay what they were."""
        world = funded_world
        world.set_limits(7, debt_first=0)
        world.set_limits(8, debt_first=1)
        aside, first, none_yet = (self.poor_wallet(world, tier) for tier in (7, 8, 7))
        for wallet in (aside, first):
            self.chargeback(world, wallet, 500)
            world.move(Kind.PAYMENT, 1, wallet, 600)  # now it is out of debt
            world.move(Kind.PAYMENT, wallet, 1, 100)
            self.chargeback(world, wallet, 30)
            world.move(Kind.PAYMENT, 1, wallet, 10)
        world.move(Kind.PAYMENT, 1, none_yet, 10)
        assert [world.shard.usage(wallet)["debt"] for wallet in (aside, first, none_yet)] == [30, 0, 0]
        assert_comes_back(world)

    def test_devices_of_reviews_are_not_known(self, funded_world: LedgerWorld) -> None:
        world = funded_world
        world.set_limits(7, max_amount=500, new_device_amount=1000, review=[Rule.MAX_AMOUNT])
        world.change_wallet(Kind.SET_TIER, 11, 7)
        world.move(Kind.PAYMENT, 11, 1, 20, device=b"device 1")
        world.hold(11, 1, 20, device=b"device 2")
        world.hold(11, 1, 600, device=b"device 3")
        world.change_hold(Kind.APPROVE_HOLD, world.move(Kind.PAYMENT, 11, 1, 600, device=b"device 4"))
        assert assert_comes_back(world).known_devices == 1
        known = world.redis.get(world.shard.keys.known_devices(11))
        assert [device for device, _ in KNOWN_DEVICE.struct.iter_unpack(known)] == [b"device 1", b"device 2"]


class TestRetries:
    """What was asked before the rebuild is answered as it was then."""

    def replies(self, world: LedgerWorld, asked: list[Asked]) -> list[bytes]:
        attachments = b"".join(record.attached for record in asked)
        packed = world.shard.post_raw(b"".join(asked), b"", attachments)[REPLY_HEADER.size :]
        return [packed[at : at + ANSWER.size] for at in range(0, len(packed), ANSWER.size)]

    def test_get_their_answers(self, funded_world: LedgerWorld) -> None:
        world, asked = funded_world, [record for record, _ in ASKED]
        world.set_limits(7, max_amount=500, review=[Rule.MAX_AMOUNT])
        world.change_wallet(Kind.SET_TIER, 11, 7)
        outcomes = world.shard.post(asked)
        assert [outcome.status.value for outcome in outcomes] == [status for _, status in ASKED]
        assert world.shard.statuses([REFUSED]) == ["INSUFFICIENT_FUNDS"]
        before = self.replies(world, asked)
        world.drain()
        world.redis.flushdb()
        rebuilt(world)
        world.shard.open()
        balances = image_of(world.shard)
        assert self.replies(world, asked) == before
        assert all(reply[-1] == 1 for reply in before), "each was a replay"
        assert_same(image_of(world.shard), balances)
        other = [altered(record, amount=77) for record in asked[:5]]
        assert set(world.shard.statuses(other)) == {"EXISTS_WITH_DIFFERENT_AMOUNT"}

    def test_a_refused_one_is_decided_anew(self, funded_world: LedgerWorld) -> None:
        world = funded_world
        assert world.shard.statuses([REFUSED]) == ["INSUFFICIENT_FUNDS"]
        world.drain()
        world.redis.flushdb()
        rebuilt(world)
        world.shard.open()
        world.move(Kind.TOP_UP, OUTSIDE, 3, 10**15)
        assert world.shard.statuses([REFUSED]) == ["POSTED"]

    @pytest.mark.parametrize(
        ("reference", "metadata"),
        [
            ("order-7", None),
            (None, {"a": 1}),
            ("".join(map(chr, range(1, 32))) + '"\\/\x7f', {"a": '\u20ac \U0001f600 " \\ \n'}),
            ("\u00e9\u20ac\U0001f600\u2028\u2029\ufeff", {}),
        ],
    )
    def test_details_are_recognised(self, funded_world: LedgerWorld, reference: str | None, metadata: Any) -> None:
        world = funded_world
        number = world.pay_with_details(1, 2, reference, metadata)
        assert_comes_back(world)
        world.shard.open()
        packed = orjson.dumps([reference, metadata])
        again = request_record(number, Kind.PAYMENT, 1, 2, 5, **detail_fields(packed))
        [outcome] = world.shard.post([again], packed)
        assert (outcome.status.value, outcome.replayed) == ("POSTED", True)

    def test_erased_details_are_recognised(self, funded_world: LedgerWorld) -> None:
        world = funded_world
        world.pay_with_details(1, 2, "somebody's name", {"street": "Elm"})
        sequence = world.shard.meta()["sequence"]
        world.drain()
        assert world.one("SELECT erase_details(0::smallint, ARRAY[%s::bigint], 'asked for')", sequence) == 1
        assert_comes_back(world)

    def test_a_late_duplicate(self, funded_world: LedgerWorld) -> None:
        """Posted under an id that Redis had forgotten: its own answer, not that of the first."""
        world = funded_world
        paid = request_record(700, Kind.PAYMENT, 1, 2, 10)
        held = hold_record(701, 1, 2, 10)
        assert world.shard.statuses([paid, held, capture_record(702, 701)]) == ["POSTED"] * 3
        end_generation(world)
        end_generation(world)
        assert world.shard.statuses([paid, held, capture_record(702, 701)]) == ["POSTED"] * 3
        assert_comes_back(world)
        assert world.one("SELECT count(*) FROM transfer_duplicate") == 2


class TestFeed:
    def assert_catches_up(self, world: LedgerWorld, old: dict[bytes, bytes], there: Place, **options: Any) -> Loaded:
        world.drain()
        before = image_of(world.shard, **options)
        put_back(world.shard, old)
        loaded = rebuilt(world, there)
        assert_same(image_of(world.shard, **options), before)
        return loaded

    def test_what_is_behind_gets_what_it_lacks(self, funded_world: LedgerWorld) -> None:
        world = funded_world
        world.do_everything()
        held = [world.hold(7, 8, 50, expires_in_ms=3_600_000) for _ in range(3)]
        world.drain()
        old, there = save(world.shard), place_of(world.shard)
        world.do_everything()
        world.change_hold(Kind.VOID, held[0])
        world.capture(held[1], 20, final=False)
        world.pay(20)
        loaded = self.assert_catches_up(world, old, there)
        sequence = world.shard.meta()["sequence"]
        assert 0 < loaded.outcomes <= sequence - there.sequence
        assert loaded.verified == 0

    @pytest.mark.parametrize("ended", [1, 2, 3])
    def test_over_the_end_of_generations(self, funded_world: LedgerWorld, ended: int) -> None:
        world = funded_world
        world.do_everything()
        end_generation(world)
        old, there = save(world.shard), place_of(world.shard)
        for _ in range(ended):
            world.do_everything()
            end_generation(world)
        world.pay(5)
        self.assert_catches_up(world, old, there)

    def test_what_redis_refused_stays_refused(self, funded_world: LedgerWorld) -> None:
        world = funded_world
        assert world.shard.statuses([REFUSED]) == ["INSUFFICIENT_FUNDS"]
        world.drain()
        old, there = save(world.shard), place_of(world.shard)
        world.move(Kind.TOP_UP, OUTSIDE, 3, 10**15)
        self.assert_catches_up(world, old, there)
        world.shard.open()
        [outcome] = world.shard.post([REFUSED])
        assert (outcome.status.value, outcome.replayed) == ("INSUFFICIENT_FUNDS", True)

    def test_attempts_go_on(self, funded_world: LedgerWorld) -> None:
        world = funded_world
        world.set_limits(7, device_attempts=40, ip_attempts=40, device_wallets=3)
        world.change_wallet(Kind.SET_TIER, 11, 7)
        world.move(Kind.PAYMENT, 11, 1, 20, device=b"device 1", ip=b"address1")
        world.move(Kind.PAYMENT, 11, 1, 20, device=b"device 2", ip=b"address1")
        world.drain()
        old, there = save(world.shard), place_of(world.shard)
        world.change_wallet(Kind.SET_TIER, 12, 7)
        for wallet in (11, 12):
            world.move(Kind.PAYMENT, wallet, 1, 20, device=b"device 1", ip=b"address2")
        loaded = self.assert_catches_up(world, old, there, attempts=True)
        assert loaded.attempts == 2


class TestCutShort:
    def stop_at(self, phase: str) -> Callable[[str, int, int], None]:
        def progress(what: str, done: int, total: int) -> None:
            assert 0 <= done <= total
            if what == phase:
                raise KeyboardInterrupt

        return progress

    @pytest.mark.parametrize("phase", ["wipe", "wallets", "holds", "outcomes", "verify"])
    def test_a_load_that_was_cut_short_is_begun_again(self, funded_world: LedgerWorld, phase: str) -> None:
        world = funded_world
        world.do_everything()
        world.drain()
        before = image_of(world.shard)
        with pytest.raises(KeyboardInterrupt):
            rebuilt(world, progress=self.stop_at(phase))
        state = world.shard.state()
        assert (state.loading, state.meta, state.journal_sequence, state.is_open) == (True, None, 0, False)
        rebuilt(world)
        assert not world.shard.state().loading
        assert_same(image_of(world.shard), before)

    def test_one_that_is_overtaken_writes_nothing_more(self, funded_world: LedgerWorld) -> None:
        world = funded_world
        world.do_everything()
        world.drain()
        before = image_of(world.shard)
        done: list[Loaded] = []

        def progress(what: str, *_: int) -> None:
            if what == "wallets" and not done:
                done.append(rebuilt(world))

        with pytest.raises(Moved, match="another load has begun"):
            rebuilt(world, progress=progress)
        assert done
        assert_same(image_of(world.shard), before)

    def test_a_connection_is_of_use_after_an_error(self, funded_world: LedgerWorld) -> None:
        with RedisShard(funded_world.redis_url, 0) as redis:
            state = redis.state()
            with pytest.raises(Moved), Load(redis, state, full=True):  # noqa: PT012
                funded_world.redis.set(funded_world.shard.keys.loading, "another's token")
                for _ in range(20):
                    redis.ask("hotledger_load", b"t" * 16, "tiers", "", 3, b"abc")
                redis.take_answers(leave=5)
            assert redis.state().loading

    def test_not_what_was_compared(self, funded_world: LedgerWorld) -> None:
        world = funded_world
        with connect(world.postgres_url) as connection, RedisShard(world.redis_url, 0) as redis:
            found = redis.state()
            assert found.meta
            place = place_of(world.shard)
            options: dict[str, Any] = {"after": None, "now_ms": 0, "progress": lambda *_: None}
            for wrong in (place._replace(epoch=2), place._replace(sequence=1), place._replace(hash=b"0" * 40)):
                with pytest.raises(Moved, match="the ledger is at"):
                    rebuild.load_shard(connection, redis, 0, found=found, place=wrong, **options)
            world.pay(1)
            with pytest.raises(Moved, match="meta is at"):
                rebuild.load_shard(connection, redis, 0, found=found, place=place, **options)
            assert world.shard.state().is_open

    def test_the_comparison_finds_what_was_loaded_wrong(self, funded_world: LedgerWorld) -> None:
        world = funded_world

        def progress(what: str, *_: int) -> None:
            if what == "verify":
                world.redis.set(world.shard.keys.wallet(3), world.redis.get(world.shard.keys.wallet(4)) or b"")

        with pytest.raises(CorruptRecord, match="differences? after the load; wallet 3: "):
            rebuilt(world, progress=progress)
        assert world.shard.state().loading


class TestOutcomeRows:
    def test_plain_movements_and_openings_have_none(self, funded_world: LedgerWorld) -> None:
        assert funded_world.one("SELECT count(*) FROM outcome") == 0
        funded_world.do_everything()
        funded_world.hold(1, 2, 5, expires_in_ms=1)
        end_generation(funded_world)
        kinds = funded_world.one(
            "SELECT json_object_agg(kind, rows) FROM (SELECT kind, count(o.sequence) AS rows "
            "FROM journal_event LEFT JOIN outcome AS o USING (shard, sequence) GROUP BY kind) AS k"
        )
        kinds = json.loads(kinds) if isinstance(kinds, str) else kinds
        assert {str(Kind.EXPIRE_HOLD.value), str(Kind.END_GENERATION.value)} <= kinds.keys()
        rows = {Kind(int(kind)) for kind, count in kinds.items() if count}
        assert {Kind.TRANSFER, Kind.TOP_UP, Kind.PAYMENT, Kind.OPEN_WALLET}.isdisjoint(rows)
        assert rows == {Kind(int(kind)) for kind in kinds} - {
            Kind.TRANSFER, Kind.TOP_UP, Kind.PAYMENT, Kind.WITHDRAWAL, Kind.OPEN_WALLET,
            Kind.EXPIRE_HOLD, Kind.END_GENERATION,
        }  # fmt: skip
        funded_world.assert_proved()

    def test_where_generations_began(self, funded_world: LedgerWorld) -> None:
        world, query = funded_world, "SELECT generation_sequence, previous_generation_sequence FROM shard_state"
        assert world.one(query) == (0, 0)
        began = [0]
        for _ in range(3):
            world.shard.end_generation()
            began.append(world.shard.meta()["sequence"])
            world.pay(3)
        world.drain()  # the ends of all three in one batch
        assert world.one(query) == (began[3], began[2])
        end_generation(world)
        assert world.one(query) == (began[3] + 4, began[3])
