"""The persister on real servers: exactly once through kills and outages, and it stops rather than guess."""

from __future__ import annotations

import random
import threading
import time
from uuid import UUID

import psycopg
import pytest

from engine.domain.ids import key_fingerprint
from engine.domain.transfer import Kind
from engine.errors import CorruptRecord, Fatal, HistoryMismatch, JournalGap, LedgerImbalance, ServerRefused
from engine.wire import ENTRY_HEADER, HASHED_HEADER, JOURNAL_RECORD, LAYOUT_VERSION
from gateway.embedded import EmbeddedServers
from persister import queries
from persister.connection import connect
from persister.drain import Persister
from persister.migrate import migrate
from persister.redis_shard import RedisShard
from tests.fixtures.ledger import LedgerWorld
from tests.fixtures.servers import wipe_redis
from tests.fixtures.shard import FINGERPRINT, OUTSIDE, new_shard, opening_record, request_record


class TestLedger:
    def test_a_payment_reaches_every_table(self, world: LedgerWorld) -> None:
        with world.persister():
            world.open_wallets(1000)
            number = world.pay_with_details(1, 2, "invoice 7", {"b": 1.50, "a": "é"})
            world.until_persisted()
        sequence = world.shard.meta()["sequence"]
        transfer_id = UUID(int=number)
        with world.connect() as connection:
            found = queries.transfer(connection, transfer_id)
            assert found is not None
            assert found[:3] == (transfer_id, sequence, Kind.PAYMENT)
            assert found[4:] == (1, 2, 5, 995, 1005, "invoice 7", {"b": 1.5, "a": "é"})
            newest, funding, opening = queries.statement(connection, 2)
            assert newest.version == 3
            assert newest[3:] == (Kind.PAYMENT, transfer_id, 1, 5, 1005, 0, "invoice 7", {"b": 1.5, "a": "é"})
            assert funding[5:9] == (OUTSIDE, 1000, 1000, 0)
            assert (opening.kind, opening.counterparty_id, opening.amount_minor) == (Kind.OPEN_WALLET, None, 0)
            assert queries.statement(connection, 2, before_version=3, limit=1) == [funding]
            assert dict(queries.balances(connection))[2] == 1005
            assert queries.currency_totals(connection) == [("USD", 21, 0, 20_000)]
            assert queries.shards(connection)[0].sequence == sequence
        assert world.one("select owner_id, currency::text, flags, shard from wallet where id = 2") == (102, "USD", 0, 0)
        assert world.one("select available, locked, version from wallet_balance where wallet_id = 1") == (995, 0, 3)
        assert world.one("select count(*) from journal_event") == sequence
        assert abs(time.time() - found.at.timestamp()) < 60
        world.assert_proved()

    @pytest.mark.parametrize(
        ("reference", "metadata"),
        [
            ("r", None),
            (None, {}),
            ("ü" * 64, {"n": None, "deep": [1, 2.0, 1e300, "\\u0001"]}),
            ('quote " tab \t', None),
        ],
    )
    def test_details_keep_their_bytes(self, funded_world: LedgerWorld, reference: str | None, metadata: object) -> None:
        number = funded_world.pay_with_details(1, 2, reference, metadata)
        funded_world.drain()
        row = funded_world.one(
            "select reference, metadata from transfer_detail where transfer_id = %s", UUID(int=number)
        )
        assert row == (reference, metadata)
        funded_world.assert_proved()

    @pytest.mark.parametrize("table", ["journal_event", "journal_batch", "transfer", "ledger_entry", "wallet"])
    def test_is_append_only(self, funded_world: LedgerWorld, table: str) -> None:
        for change in ("UPDATE {} SET shard = 1", "DELETE FROM {}", "TRUNCATE {}"):
            with pytest.raises(psycopg.errors.RestrictViolation, match="append-only"):
                funded_world.one(change.format(table))

    def test_migrations_of_two_processes_take_turns(self, postgres_url: str) -> None:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        applied: list[list[str]] = []
        threads = [threading.Thread(target=lambda: applied.append(migrate(postgres_url))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(applied) == [[], [], ["0001", "0002"]]

    def test_a_database_without_the_schema_is_fatal(self, world: LedgerWorld) -> None:
        world.tamper("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        with pytest.raises(Fatal, match="migrations"):
            world.drain()


class TestExactlyOnce:
    def test_killed_at_random_moments(self, world: LedgerWorld) -> None:
        world.drain()
        world.open_wallets()
        chance = random.Random(3)
        for _ in range(4):
            child = world.child()
            before = world.shard.meta()["persisted"]
            world.pay(3000)
            world.until(lambda before=before: bool(world.shard.meta()["persisted"] > before))
            paying = time.monotonic() + chance.uniform(0, 0.15)
            while time.monotonic() < paying:
                world.pay(300)
            assert child.poll() is None
            child.kill()
            child.wait()
        world.drain()
        assert world.one("select count(*) from transfer") == world.shard.meta()["sequence"] - 21
        world.assert_proved()

    def test_a_commit_that_redis_never_heard_of(
        self, funded_world: LedgerWorld, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The leader dies between its commit and its advance; the next one makes up for it, even when idle."""
        funded_world.pay(50)
        with monkeypatch.context() as patch:
            patch.setattr(RedisShard, "advance", lambda *_: None)
            funded_world.drain()
        assert funded_world.shard.meta()["persisted"] < funded_world.shard.meta()["sequence"]
        with funded_world.persister():
            funded_world.until_persisted()
        funded_world.assert_proved()

    def test_two_at_once_and_the_leader_goes(self, world: LedgerWorld) -> None:
        with world.persister():
            with world.persister():
                world.open_wallets()
                world.pay(500)
                world.until_persisted()
            world.pay(500)
            world.until_persisted()
        world.assert_proved()

    def test_a_leader_without_its_lock_writes_nothing_twice(self, funded_world: LedgerWorld) -> None:
        """Its connection is cut by the server while it works: it comes back, and the guards hold."""
        with funded_world.persister(), funded_world.connect() as connection:
            for _ in range(10):
                funded_world.pay(300)
                connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity "
                    "where application_name = 'hotledger persister'"
                )
            funded_world.until_persisted()
        funded_world.assert_proved()

    def test_postgres_stops_and_redis_is_killed(self, own_world: tuple[LedgerWorld, EmbeddedServers]) -> None:
        world, servers = own_world
        with world.persister():
            world.open_wallets()
            servers.stop_postgres(immediate=True)
            world.pay(2000)
            servers.start_postgres()
            world.until_persisted()
            servers.kill_redis()
            servers.restart_redis()
            world.until(world.is_open)
            world.pay(100)
            world.until_persisted()
        world.assert_proved()

    def test_idle_latency(self, funded_world: LedgerWorld) -> None:
        with funded_world.persister():
            seconds = []
            for _ in range(20):
                time.sleep(0.02)
                began_at = time.perf_counter()
                funded_world.pay(1)
                funded_world.until_persisted()
                seconds.append(time.perf_counter() - began_at)
        assert sorted(seconds)[10] < 0.05


class TestOpening:
    def test_both_empty(self, world: LedgerWorld) -> None:
        world.drain()
        state = world.shard.state()
        assert state.is_open
        assert state.meta is not None
        deployment = world.one("select id from deployment")
        assert state.meta["deployment"] == deployment.bytes
        assert state.meta["key_fingerprint"] == key_fingerprint(deployment.bytes)

    def test_resumes_after_a_crash_before_redis_was_initialised(self, world: LedgerWorld) -> None:
        world.drain()
        before = world.one("select id from deployment")
        wipe_redis(world.redis_url)
        world.drain()
        assert world.is_open()
        assert world.one("select id from deployment") == before

    def test_reopens_a_server_that_lost_its_library(self, funded_world: LedgerWorld) -> None:
        with funded_world.persister():
            funded_world.redis.execute_command("FUNCTION", "FLUSH")
            funded_world.until(funded_world.is_open)
            funded_world.pay(10)
            funded_world.until_persisted()
        funded_world.assert_proved()

    def test_drains_the_tail_before_it_opens(self, funded_world: LedgerWorld) -> None:
        funded_world.pay(500)
        funded_world.shard.call("hotledger_close")
        funded_world.drain()
        assert funded_world.is_open()
        funded_world.assert_proved()

    def test_redis_lost_everything(self, funded_world: LedgerWorld) -> None:
        wipe_redis(funded_world.redis_url)
        with pytest.raises(HistoryMismatch, match=r"Redis lost its data.*sequence 341.*no meta record"):
            funded_world.drain()
        assert not funded_world.is_open()

    def test_redis_lost_the_end(self, funded_world: LedgerWorld) -> None:
        saved = {key: funded_world.redis.dump(key) for key in funded_world.redis.scan_iter()}
        funded_world.pay(10)
        funded_world.drain()
        for key, value in saved.items():
            funded_world.redis.restore(key, 0, value, replace=True)
        with pytest.raises(HistoryMismatch, match=r"ledger is ahead.*sequence 351.*sequence 341"):
            funded_world.drain()
        assert not funded_world.is_open()

    def test_the_same_sequence_with_another_history(self, funded_world: LedgerWorld) -> None:
        saved = {key: funded_world.redis.dump(key) for key in funded_world.redis.scan_iter()}
        funded_world.pay(1)
        funded_world.drain()
        for key, value in saved.items():
            funded_world.redis.restore(key, 0, value, replace=True)
        funded_world.shard.open()
        funded_world.pay(1)
        with pytest.raises(HistoryMismatch, match="the histories differ"):
            funded_world.drain()
        assert not funded_world.is_open()

    def test_the_tail_is_missing(self, funded_world: LedgerWorld) -> None:
        funded_world.pay(300)
        funded_world.redis.xtrim(funded_world.shard.keys.journal, maxlen=1, approximate=False)
        funded_world.shard.call("hotledger_close")
        with pytest.raises(HistoryMismatch, match="begins at sequence 542, what is before it ends at 341"):
            funded_world.drain()

    def test_redis_of_another_deployment_is_left_alone(self, funded_world: LedgerWorld) -> None:
        wipe_redis(funded_world.redis_url)
        new_shard(funded_world.redis)
        with pytest.raises(HistoryMismatch, match="different deployments"):
            funded_world.drain()
        assert funded_world.is_open()

    def test_an_empty_ledger_and_a_redis_that_is_not(self, world: LedgerWorld) -> None:
        new_shard(world.redis)
        with pytest.raises(HistoryMismatch, match="Postgres is empty and Redis is not"):
            world.drain()

    def test_another_digest_key(self, funded_world: LedgerWorld) -> None:
        with pytest.raises(HistoryMismatch, match="another digest key"):
            funded_world.drain(digest_key=b"0123456789abcdef")

    def test_a_given_digest_key_is_needed_from_then_on(self, world: LedgerWorld) -> None:
        world.drain(digest_key=b"0123456789abcdef")
        assert world.shard.meta()["key_fingerprint"] == key_fingerprint(b"0123456789abcdef") != FINGERPRINT
        with pytest.raises(HistoryMismatch, match="no digest key was given"):
            world.drain()

    def test_a_server_that_evicts_is_refused(self, world: LedgerWorld) -> None:
        world.redis.config_set("maxmemory-policy", "allkeys-lru")
        try:
            with pytest.raises(ServerRefused, match="allkeys-lru"):
                world.drain()
        finally:
            world.redis.config_set("maxmemory-policy", "noeviction")


class TestStops:
    """Entries that no shard writes: the persister stops, closes the shard and leaves the ledger as it was."""

    def forge(self, world: LedgerWorld, *, keep_hash: bool = False, **changes: float) -> None:
        """Append an entry that continues the history but for the changed fields of its record or header."""
        meta = world.shard.meta()
        row = world.one("select available, version from wallet_balance where wallet_id = 1")
        other = world.one("select available, version from wallet_balance where wallet_id = 2")
        record = dict.fromkeys((name for name, _ in JOURNAL_RECORD.fields), 0) | {
            "id": b"forged".ljust(16, b"\0"), "kind": Kind.PAYMENT, "debit": 1, "credit": 2, "amount": 7,
            "currency": b"", "details_digest": b"", "terms_digest": b"",
            "debit_available": row[0] - 7, "debit_version": row[1] + 1,
            "credit_available": other[0] + 7, "credit_version": other[1] + 1,
        }  # fmt: skip
        header = dict.fromkeys((name for name, _ in ENTRY_HEADER.fields), 1) | {
            "layout": LAYOUT_VERSION,
            "first_sequence": meta["sequence"] + 1, "last_sequence": meta["sequence"] + 1,
            "time_ms": meta["time_ms"], "previous_hash": meta["hash"],
        }  # fmt: skip
        records = JOURNAL_RECORD.struct.pack(*(record | {k: v for k, v in changes.items() if k in record}).values())
        header |= {k: v for k, v in changes.items() if k in header}
        place = HASHED_HEADER.struct.pack(*(header.get(name, 0) for name, _ in HASHED_HEADER.fields))
        rolled = world.redis.eval("return redis.sha1hex(ARGV[1])", 0, header["previous_hash"] + place + records)
        header["hash"] = b"f" * 40 if keep_hash else rolled
        fields = {b"h": ENTRY_HEADER.struct.pack(*header.values()), b"r": records}
        world.redis.xadd(world.shard.keys.journal, fields, id=f"{int(header['last_sequence'])}-0")

    def check(self, world: LedgerWorld, error: type[Fatal], match: str) -> None:
        before = world.one("select sequence, chain from shard_state")
        with pytest.raises(error, match=match):
            Persister(world.redis_url, world.postgres_url).drain()
        assert world.one("select sequence, chain from shard_state") == before
        assert not world.is_open()

    def test_the_forger_itself(self, funded_world: LedgerWorld) -> None:
        """What it makes without a change is taken; only then Redis' own meta turns out to be behind."""
        self.forge(funded_world)
        with pytest.raises(HistoryMismatch, match="the ledger is ahead"):
            Persister(funded_world.redis_url, funded_world.postgres_url).drain()
        assert funded_world.one("select sequence from shard_state") == 342

    @pytest.mark.parametrize(
        ("changes", "error", "match"),
        [
            (
                {"first_sequence": 343, "last_sequence": 343},
                JournalGap,
                "begins at sequence 343, what is before it ends",
            ),
            ({"epoch": 2}, JournalGap, "of epoch 2, the ledger of 1"),
            ({"previous_hash": b"a" * 40}, JournalGap, "it follows the hash aaaa"),
            ({"keep_hash": True}, JournalGap, "it says ffff"),
            ({"first_sequence": 342, "last_sequence": 343}, CorruptRecord, "for 2 records"),
            ({"layout": 1}, CorruptRecord, "layout 1"),
            ({"kind": 99}, CorruptRecord, "sequence 342: kind 99 is unknown"),
            ({"amount": 1.5}, CorruptRecord, "amount is 1.5"),
            ({"amount": float("nan")}, CorruptRecord, "amount is nan"),
            ({"amount": 0}, CorruptRecord, "moves no money"),
            ({"details_size": 4}, CorruptRecord, "details"),
            (
                {"debit_version": 999},
                JournalGap,
                r"wallet 1: the ledger has version \d+.*the journal continues version 998",
            ),
            ({"credit_available": 5}, LedgerImbalance, r"wallet 2: .*continues version \d+, available -2"),
            ({"debit_locked": 3}, LedgerImbalance, "wallet 1: .*locked 3"),
            ({"credit": 55, "credit_version": 1}, JournalGap, "wallet 55: the ledger does not know it"),
            (
                {"kind": Kind.OPEN_WALLET, "debit_version": 1, "debit_available": 0},
                JournalGap,
                r"has it already: .*\(1, 1\)",
            ),
        ],
    )
    def test_at_a_forged_entry(
        self, funded_world: LedgerWorld, changes: dict[str, float], error: type[Fatal], match: str
    ) -> None:
        self.forge(funded_world, **changes)
        self.check(funded_world, error, match)

    def test_at_a_removed_entry(self, funded_world: LedgerWorld) -> None:
        funded_world.pay(300)
        funded_world.redis.xdel(funded_world.shard.keys.journal, "541-0")
        with pytest.raises(JournalGap, match="begins at sequence 542, what is before it ends at 441"):
            Persister(funded_world.redis_url, funded_world.postgres_url, batch_records=100).drain()
        assert not funded_world.is_open()

    def test_at_a_journal_whose_end_is_gone(self, funded_world: LedgerWorld) -> None:
        funded_world.pay(100)
        funded_world.redis.xdel(funded_world.shard.keys.journal, "441-0")
        self.check(funded_world, JournalGap, "at sequence 441, and its journal has nothing after 341")

    def test_at_a_version_skipped_within_a_batch(self, funded_world: LedgerWorld) -> None:
        funded_world.pay(1)
        for _ in range(2):
            funded_world.shard.statuses([request_record(funded_world.id(), Kind.PAYMENT, 1, 2, 1)])
        # A wallet that goes back in Redis, as after a partial restore.
        saved = funded_world.redis.get(funded_world.shard.keys.wallet(1))
        funded_world.shard.statuses([request_record(funded_world.id(), Kind.PAYMENT, 1, 2, 1)])
        funded_world.redis.set(funded_world.shard.keys.wallet(1), saved)
        funded_world.shard.statuses([request_record(funded_world.id(), Kind.PAYMENT, 1, 2, 1)])
        self.check(funded_world, JournalGap, r"wallet 1 at sequence 346: its version is (\d+), it follows")


class TestSettings:
    def test_generations_end_and_are_journalled(self, funded_world: LedgerWorld) -> None:
        with funded_world.persister(idempotency_window_s=0.0):
            funded_world.until(lambda: bool(funded_world.one("select generation from shard_state") >= 2))
        assert funded_world.shard.meta()["generation"] == 2
        assert funded_world.one("select count(*) from journal_event where kind = 32") == 1
        funded_world.assert_proved()

    def test_a_big_generation_ends(self, funded_world: LedgerWorld) -> None:
        with funded_world.persister(max_idempotency_records=300):
            funded_world.until(lambda: bool(funded_world.one("select generation from shard_state") >= 2))

    def test_the_journal_keeps_its_safety_tail(self, funded_world: LedgerWorld) -> None:
        with funded_world.persister(safety_tail=250):
            funded_world.pay(500)
            funded_world.until_persisted()
            funded_world.until(lambda: bool(funded_world.redis.xlen(funded_world.shard.keys.journal) == 3))

    def test_what_redis_may_still_forget_is_not_persisted(
        self, funded_world: LedgerWorld, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        funded_world.redis.config_set("appendfsync", "everysec")
        try:
            durable = threading.Event()
            wait = RedisShard.wait_until_durable
            monkeypatch.setattr(RedisShard, "wait_until_durable", lambda shard: durable.is_set() and wait(shard))
            with funded_world.persister():
                funded_world.pay(10)
                time.sleep(0.2)
                assert funded_world.one("select sequence from shard_state") == 341
                durable.set()
                funded_world.until_persisted()
        finally:
            funded_world.redis.config_set("appendfsync", "always")
        assert funded_world.redis.exists(funded_world.shard.keys.touch)
        funded_world.assert_proved()

    def test_a_role_that_defaults_to_asynchronous_commit_is_overruled(self, postgres_url: str) -> None:
        url = postgres_url + "&options=-csynchronous_commit%3Doff"
        with connect(url) as connection:
            assert connection.execute("show synchronous_commit").fetchone() == ("on",)


def test_wallets_opened_twice_within_one_shard_are_one_row(world: LedgerWorld) -> None:
    with world.persister():
        assert world.shard.statuses([opening_record(1, 5), opening_record(1, 5), opening_record(2, 5)]) == [
            "POSTED", "POSTED", "WALLET_EXISTS",
        ]  # fmt: skip
        world.until_persisted()
    assert world.one("select count(*) from wallet") == 1
    world.assert_proved()
