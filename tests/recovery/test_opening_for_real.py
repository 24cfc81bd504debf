"""Each case of opening, made to happen on real servers: restarts, lost ends, lost data, old backups, mix-ups."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engine import library
from engine.errors import HistoryMismatch, JournalGap
from engine.wire import MAX_BATCH
from gateway.embedded import EmbeddedServers
from persister.connection import connect
from persister.follower import Follower, Settings
from persister.journal import Place, RawEntry
from persister.ledger import Ledger
from persister.opener import Opener, Stopped
from persister.rebuild import Progress
from persister.redis_shard import Moved, RedisShard
from tests.fixtures.ledger import LedgerWorld, empty_ledger
from tests.fixtures.rebuild import image_of, put_back, save
from tests.fixtures.recovery import aof_of, cut, do_everything, of_epoch, old_ledger
from tests.fixtures.servers import wipe_redis
from tests.fixtures.shard import DEPLOYMENT, FINGERPRINT, request_record

OwnWorld = tuple[LedgerWorld, EmbeddedServers]


@pytest.fixture(scope="module")
def own_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServers]:
    """To be killed, and to have their files changed; every test leaves them running."""
    with EmbeddedServers(tmp_path_factory.mktemp("own") / "data") as servers:
        yield servers


@pytest.fixture
def funded_own(own_servers: EmbeddedServers) -> Iterator[OwnWorld]:
    """As funded_world, on those servers."""
    empty_ledger(own_servers)
    wipe_redis(own_servers.redis_url)
    world = LedgerWorld(own_servers.redis_url, own_servers.postgres_url)
    world.drain()
    world.open_wallets()
    world.pay(300)
    world.drain()
    yield world, own_servers
    world.redis.close()


def loaded_code(world: LedgerWorld) -> str | None:
    return library._loaded_code(world.redis.execute_command(*library._LISTING))


def epoch_of(world: LedgerWorld) -> int:
    epoch: int = world.one("select epoch from shard_state")
    return epoch


def is_open_in(world: LedgerWorld, epoch: int) -> bool:
    state = world.shard.state()
    return state.is_open and state.meta is not None and state.meta["epoch"] == epoch


@contextmanager
def opener_of(world: LedgerWorld, stop: threading.Event, progress: Progress) -> Iterator[Opener]:
    with connect(world.postgres_url) as connection, RedisShard(world.redis_url, 0) as redis:
        ledger, settings = Ledger(connection, 0), Settings()
        assert ledger.try_to_lead()
        follower = Follower(ledger, redis, settings)
        follower.check_server()
        yield Opener(ledger, redis, settings, follower, stop, progress)


class TestTheSameHistory:
    def test_opens_in_milliseconds_after_a_restart(self, funded_own: OwnWorld) -> None:
        world, servers = funded_own
        with world.persister():
            for _ in range(3):
                servers.kill_redis()
                servers.restart_redis()
                began_at = time.monotonic()
                world.until(world.is_open)
                assert time.monotonic() - began_at < 5
                world.pay(10)
            world.until_persisted()
        # By itself, without the persister's waiting for the server:
        world.shard.call("hotledger_close")
        began_at = time.monotonic()
        world.drain()
        assert world.is_open()
        assert time.monotonic() - began_at < 2
        world.assert_proved()

    def test_a_newer_library_is_loaded(self, funded_world: LedgerWorld) -> None:
        """A rolling upgrade: loading closes the shard, the persister opens it again."""
        code, version = library.library_code(), library.LIBRARY_VERSION
        older = code.replace(f"local LIBRARY_VERSION = {version}", f"local LIBRARY_VERSION = {version - 1}")
        assert older != code
        funded_world.redis.execute_command("FUNCTION", "LOAD", "REPLACE", older)
        funded_world.drain()
        assert loaded_code(funded_world) == code
        assert funded_world.is_open()
        funded_world.pay(10)
        funded_world.drain()
        funded_world.assert_proved()

    def test_a_newer_one_under_a_persister(self, funded_world: LedgerWorld) -> None:
        """An engine of the next release loads it: the persister opens what that closes."""
        code, version = library.library_code(), library.LIBRARY_VERSION
        newer = code.replace(f"local LIBRARY_VERSION = {version}", f"local LIBRARY_VERSION = {version + 1}")
        with funded_world.persister():
            funded_world.redis.execute_command("FUNCTION", "LOAD", "REPLACE", newer)
            funded_world.until(funded_world.is_open)
            funded_world.pay(10)
            funded_world.until_persisted()
        assert loaded_code(funded_world) == newer
        funded_world.assert_proved()


class TestRedisBehind:
    def test_seen_in_the_middle_of_its_way_back(
        self, funded_world: LedgerWorld, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What the leader reads does not lead to where it was promised: it compares once more before it stops."""
        read, opening = Follower.read, Opener.open
        missing, missed = threading.Event(), threading.Event()

        def lossy(follower: Follower, wait_ms: int | None = None) -> list[RawEntry]:
            if not missing.is_set():
                return read(follower, wait_ms)
            missed.set()
            return []

        def found(opener: Opener) -> bool:
            missing.clear()
            return opening(opener)

        monkeypatch.setattr(Follower, "read", lossy)
        monkeypatch.setattr(Opener, "open", found)
        with funded_world.persister():
            funded_world.pay(1)
            funded_world.until_persisted()
            for _ in range(2):
                missed.clear()
                missing.set()
                assert missed.wait(20)
                funded_world.pay(20)
                funded_world.until_persisted()
                assert not missing.is_set()
        funded_world.assert_proved()

    def test_is_fed(self, funded_world: LedgerWorld) -> None:
        do_everything(funded_world)
        funded_world.drain()
        saved = save(funded_world.shard)
        for _ in range(3):
            do_everything(funded_world)
        funded_world.pay(2 * MAX_BATCH)
        funded_world.drain()
        image = image_of(funded_world.shard)
        put_back(funded_world.shard, saved)
        assert image_of(funded_world.shard) != image
        funded_world.drain()
        assert image_of(funded_world.shard) == image
        assert epoch_of(funded_world) == 1
        do_everything(funded_world)
        funded_world.drain()
        funded_world.assert_proved()

    def test_from_the_very_beginning(self, world: LedgerWorld) -> None:
        world.drain()
        saved = save(world.shard)
        world.open_wallets()
        do_everything(world)
        world.drain()
        image = image_of(world.shard)
        put_back(world.shard, saved)
        world.drain()
        assert image_of(world.shard) == image
        assert epoch_of(world) == 1
        world.assert_proved()

    @pytest.mark.parametrize("torn", [0, 11])
    def test_its_file_was_cut_by_hand(self, funded_own: OwnWorld, torn: int) -> None:
        world, servers = funded_own
        size = aof_of(servers).stat().st_size
        do_everything(world)
        world.pay(500)
        world.drain()
        image, sequence = image_of(world.shard), world.shard.meta()["sequence"]
        servers.kill_redis()
        cut(aof_of(servers), size + torn)
        servers.restart_redis()
        assert world.shard.meta()["sequence"] == 341
        assert sequence > 841
        with world.persister():
            assert image_of(world.shard) == image
            world.pay(100)
            world.until_persisted()
        world.assert_proved()

    def test_everysec_and_a_kill(self, funded_own: OwnWorld) -> None:
        """Whatever the server forgets, the ledger never has more than it had made durable; both end up the same."""
        world, servers = funded_own
        with world.persister():
            for _ in range(3):
                world.redis.config_set("appendfsync", "everysec")
                world.pay(500)
                servers.kill_redis()
                servers.restart_redis()
                world.until(world.is_open)
            world.pay(10)
            world.until_persisted()
        world.assert_proved()

    def test_in_another_history(self, funded_world: LedgerWorld) -> None:
        saved = save(funded_world.shard)
        funded_world.pay(10, batch=10)
        funded_world.drain()
        put_back(funded_world.shard, saved)
        funded_world.shard.open()
        funded_world.pay(5, batch=5)
        with pytest.raises(HistoryMismatch, match=r"ahead of Redis, in a history .*sequence 351.*sequence 346.*doctor"):
            funded_world.drain()
        assert not funded_world.is_open()


class TestRedisEmpty:
    def test_is_rebuilt_in_a_new_epoch(self, funded_world: LedgerWorld) -> None:
        for _ in range(2):
            do_everything(funded_world)
        funded_world.drain()
        image = of_epoch(image_of(funded_world.shard), 2)
        wipe_redis(funded_world.redis_url)
        with funded_world.persister():
            assert image_of(funded_world.shard) == image
            assert epoch_of(funded_world) == 2
            do_everything(funded_world)
            funded_world.pay(100)
            funded_world.until_persisted()
        funded_world.assert_proved()
        assert funded_world.one("select count(distinct epoch) from journal_batch") == 2

    def test_while_a_persister_watches(self, funded_world: LedgerWorld) -> None:
        with funded_world.persister():
            for _ in range(3):
                funded_world.redis.flushall()
                funded_world.until(funded_world.is_open)
                funded_world.pay(50)
                funded_world.until_persisted()
        assert epoch_of(funded_world) == 4
        funded_world.assert_proved()

    def test_leftovers_are_wiped(self, funded_world: LedgerWorld) -> None:
        """Of somebody who deleted what he took for the shard."""
        do_everything(funded_world)
        funded_world.drain()
        image = of_epoch(image_of(funded_world.shard), 2)
        funded_world.redis.delete(funded_world.shard.keys.meta)
        funded_world.redis.set(funded_world.shard.keys.wallet(77), b"left over")
        funded_world.redis.hset(funded_world.shard.keys.holds, bytes(16), b"left over")
        funded_world.drain()
        assert image_of(funded_world.shard) == image
        funded_world.assert_proved()

    def test_with_more_in_its_journal(self, funded_world: LedgerWorld) -> None:
        funded_world.pay(10)
        funded_world.redis.delete(funded_world.shard.keys.meta)
        with pytest.raises(HistoryMismatch, match="lost its meta record, and its journal has more"):
            funded_world.drain()
        assert epoch_of(funded_world) == 1

    def test_nothing_was_in_the_ledger_yet(self, world: LedgerWorld) -> None:
        world.drain()
        wipe_redis(world.redis_url)
        world.drain()
        assert world.is_open()
        assert epoch_of(world) == 1


class TestInterrupted:
    """A rebuild that ends at any point is done again by the next persister."""

    def cut_short(self, world: LedgerWorld, after: int) -> bool:
        """Rebuild until progress was told of for the n-th time; whether it came that far."""
        told = 0

        def progress(what: str, done: int, total: int) -> None:
            nonlocal told
            told += 1
            if told > after:
                raise Stopped

        with opener_of(world, threading.Event(), progress) as opener:
            return not opener.open()

    def test_anywhere(self, funded_world: LedgerWorld) -> None:
        do_everything(funded_world)
        funded_world.drain()
        image = image_of(funded_world.shard)
        wipe_redis(funded_world.redis_url)
        after = 0
        while self.cut_short(funded_world, after):
            assert not funded_world.is_open()
            after += 1
        assert after > 3
        assert funded_world.is_open()
        epoch = epoch_of(funded_world)
        assert epoch == after + 2, "each attempt in an epoch of its own"
        assert image_of(funded_world.shard) == of_epoch(image, epoch)
        funded_world.assert_proved()

    def test_a_feed_too(self, funded_world: LedgerWorld) -> None:
        saved = save(funded_world.shard)
        do_everything(funded_world)
        funded_world.drain()
        image = image_of(funded_world.shard)
        after, whole = 0, False
        while not whole:
            put_back(funded_world.shard, saved)
            funded_world.shard.set_meta(epoch=epoch_of(funded_world))
            whole = not self.cut_short(funded_world, after)
            assert funded_world.is_open() is whole
            funded_world.drain()
            assert image_of(funded_world.shard) == of_epoch(image, epoch_of(funded_world))
            after += 1
        assert after > 2
        funded_world.assert_proved()

    def test_when_the_persister_is_told_to_stop(self, funded_world: LedgerWorld) -> None:
        wipe_redis(funded_world.redis_url)
        stop = threading.Event()

        def progress(what: str, done: int, total: int) -> None:
            stop.set()

        with opener_of(funded_world, stop, progress) as opener:
            assert not opener.open()
        assert funded_world.redis.exists(funded_world.shard.keys.loading)
        funded_world.drain()
        funded_world.assert_proved()

    def test_before_it_reached_redis(self, funded_world: LedgerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        """The new epoch is in the ledger, and Redis is as it was: of an older one, with nothing that is missing. It may
        be open: no payment is taken any more when its end is decided."""
        with connect(funded_world.postgres_url) as connection:
            ledger = Ledger(connection, 0)
            state = ledger.state()
            assert state
            assert state.place
            assert ledger.begin_epoch(state.place, 2)
            assert not ledger.begin_epoch(state.place, 3), "it is not there any more"
        assert funded_world.is_open(), "nobody told it"
        begin_epoch, too_late = Ledger.begin_epoch, []

        def paying(ledger: Ledger, place: Place, epoch: int) -> bool:
            too_late.extend(funded_world.shard.statuses([request_record(funded_world.id())]))
            return begin_epoch(ledger, place, epoch)

        monkeypatch.setattr(Ledger, "begin_epoch", paying)
        with funded_world.persister():
            funded_world.until(lambda: is_open_in(funded_world, 3))
            funded_world.pay(10)
            funded_world.until_persisted()
        assert too_late == ["SHARD_NOT_OPEN"]
        funded_world.assert_proved()

    def test_and_the_old_epoch_went_on(self, funded_world: LedgerWorld) -> None:
        saved = save(funded_world.shard)
        wipe_redis(funded_world.redis_url)
        funded_world.drain()
        put_back(funded_world.shard, saved)
        funded_world.shard.open()
        funded_world.pay(5)
        with pytest.raises(HistoryMismatch, match="older epoch than the ledger and has payments that the ledger lacks"):
            funded_world.drain()
        assert not funded_world.is_open()
        assert epoch_of(funded_world) == 2


class TestMissedTheEpoch:
    def test_a_stalled_persister(self, funded_own: OwnWorld) -> None:
        """It leads and is stopped; its session ends, another one rebuilds Redis; it wakes up and can do nothing."""
        world, _ = funded_own
        stalled = world.child()
        try:
            world.until(lambda: world.one(LEADERS) == 1)
            world.pay(50)
            world.until_persisted()
            stalled.send_signal(signal.SIGSTOP)
            world.pay(50)
            world.redis.flushall()
            # What a network or a host that is gone does to its session.
            world.one("select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = %s", NAME)
            with world.persister():
                assert epoch_of(world) == 2
                stalled.send_signal(signal.SIGCONT)
                world.pay(200)
                time.sleep(0.5)
                world.pay(200)
                world.until_persisted()
                assert stalled.poll() is None, "it stands by"
                assert epoch_of(world) == 2
            world.assert_proved()
            assert world.one("select count(*) from transfer") == 20 + 300 + 50 + 400
        finally:
            stalled.send_signal(signal.SIGCONT)
            stalled.kill()
            stalled.wait()

    def test_nothing_that_it_would_write_is_taken(self, funded_world: LedgerWorld) -> None:
        with connect(funded_world.postgres_url) as connection, RedisShard(funded_world.redis_url, 0) as redis:
            ledger = Ledger(connection, 0)
            state, old = ledger.state(), redis.state()
            assert state
            assert state.place
            follower = Follower(ledger, redis, Settings())
            follower.check_server()
            follower.place = state.place
            funded_world.pay(10)
            read = follower.read()
            wipe_redis(funded_world.redis_url)
            funded_world.drain()
            before = funded_world.one("select * from shard_state")
            with pytest.raises(JournalGap, match="is not at epoch 1"):
                follower.persist(read)
            assert funded_world.one("select * from shard_state") == before
            with pytest.raises(Moved, match="the epoch is 2"):
                follower.advance()
            with pytest.raises(Moved):
                redis.open_fence(state.place, old.replication_id, 1, 1)
            with pytest.raises(Moved):
                redis.initialise(DEPLOYMENT, FINGERPRINT, 1)
            assert not ledger.begin_epoch(state.place, 2)
            assert not ledger.begin_epoch(state.place, 3)
        funded_world.assert_proved()


class TestPostgresRestored:
    def test_the_tail_covers_it(self, funded_own: OwnWorld) -> None:
        world, servers = funded_own
        with old_ledger(servers), world.persister():
            do_everything(world)
            world.pay(2000)
            world.until_persisted()
        before = world.shard.meta()
        assert before["persisted"] == before["sequence"] > world.one("select sequence from shard_state")
        with world.persister():
            world.pay(10)
            world.until(lambda: world.one("select sequence from shard_state") == before["sequence"] + 10)
        world.assert_proved()

    def test_under_a_persister(self, funded_own: OwnWorld) -> None:
        """Which loses its connection, comes back, and finds another past."""
        world, servers = funded_own
        with world.persister():
            with old_ledger(servers):
                world.pay(500)
                world.until_persisted()
                sequence = world.shard.meta()["sequence"]
            world.until(lambda: world.one("select sequence from shard_state") == sequence)
            world.pay(10)
            world.until_persisted()
        world.assert_proved()

    def test_not_covered(self, funded_own: OwnWorld) -> None:
        world, servers = funded_own
        with old_ledger(servers), world.persister(safety_tail=150):
            world.pay(500)
            world.until_persisted()
            world.until(lambda: bool(world.redis.xlen(world.shard.keys.journal) == 2))
        missing = "Postgres lost the end of its history, and sequences 342 to 641 are no longer in the journal"
        for is_open in (True, False):
            assert world.is_open() is is_open
            with pytest.raises(HistoryMismatch, match=f"{missing}.*was told that the ledger has 841"):
                world.drain()
        assert world.one("select sequence from shard_state") == 341

    def test_from_before_a_rebuild(self, funded_own: OwnWorld) -> None:
        """The backup that a rebuild began from, once more: Redis went on from exactly there."""
        world, servers = funded_own
        with old_ledger(servers):
            wipe_redis(world.redis_url)
            world.drain()
            world.pay(500)
            world.drain()
        assert (epoch_of(world), world.shard.meta()["epoch"]) == (1, 2)
        world.drain()
        assert epoch_of(world) == 2
        world.assert_proved()

    def test_from_before_what_a_rebuild_began_with(self, funded_own: OwnWorld) -> None:
        world, servers = funded_own
        with old_ledger(servers):
            world.pay(100)
            world.drain()
            wipe_redis(world.redis_url)
            world.drain()
            world.pay(500)
            world.drain()
        with pytest.raises(HistoryMismatch, match="sequences 342 to 441 are no longer in the journal"):
            world.drain()
        assert epoch_of(world) == 1
        assert not world.is_open()

    def test_and_redis_is_of_that_time_too(self, funded_own: OwnWorld) -> None:
        """Both from backups, that of Redis the older one."""
        world, servers = funded_own
        saved = save(world.shard)
        world.pay(100)
        world.drain()
        with old_ledger(servers):
            world.pay(100)
            world.drain()
        put_back(world.shard, saved)
        world.drain()
        assert world.shard.meta()["sequence"] == 441
        world.assert_proved()


class TestMixedUp:
    def test_two_deployments(self, funded_own: OwnWorld, funded_world: LedgerWorld) -> None:
        ours, _ = funded_own
        mixed = LedgerWorld(ours.redis_url, funded_world.postgres_url)
        before = mixed.shard.image()
        with pytest.raises(HistoryMismatch, match=r"different deployments.*hotledger doctor"):
            mixed.drain()
        assert mixed.shard.image() == before
        assert mixed.is_open(), "it is not ours to close"
        mixed.redis.close()
        ours.drain()
        ours.assert_proved()


NAME = "hotledger persister"
LEADERS = "select count(*) from pg_locks where locktype = 'advisory' and granted"
