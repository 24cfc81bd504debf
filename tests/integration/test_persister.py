"""The persister on real servers: exactly once through kills and outages, and it stops rather than guess."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from engine.domain.ids import key_fingerprint
from engine.domain.money import pack_currency
from engine.domain.status import Status
from engine.domain.transfer import HoldState, Kind
from engine.domain.wallet import external_wallet_id
from engine.errors import CorruptRecord, Fatal, HistoryMismatch, JournalGap, LedgerImbalance, ServerRefused
from engine.wire import ENTRY_HEADER, LINK, MAX_BATCH
from gateway.embedded import EmbeddedServers
from persister import declined_queries, migrations, queries
from persister.connection import connect
from persister.declined import rows_of
from persister.drain import Persister
from persister.journal import Place
from persister.ledger import Ledger
from persister.migrate import migrate
from persister.redis_shard import Moved, RedisShard
from persister.sql import sql
from persister.sweeper import Sweeper
from tests.fixtures.journal import entry, id_of, link, record
from tests.fixtures.ledger import LedgerWorld
from tests.fixtures.servers import wipe_redis
from tests.fixtures.shard import FINGERPRINT, OUTSIDE, hold_record, new_shard, opening_record, request_record, terms

FORGED = 2**127
"""The id of forged requests."""

APPEND_ONLY = [
    "journal_event", "journal_batch", "transfer", "ledger_entry", "wallet", "wallet_change", "hold", "hold_change",
    "refund", "transfer_origin", "tier_change", "transfer_duplicate",
]  # fmt: skip

REVISIONS = sorted(path.name[1:5] for path in (Path(migrations.__file__).parent / "versions").glob("v*.py"))


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
            assert found[4:] == (1, 2, 5, 995, 1005, "invoice 7", {"b": 1.5, "a": "é"}, 0)
            newest, funding, opening = queries.statement(connection, 2)
            assert newest.version == 3
            assert newest[3:11] == (Kind.PAYMENT, transfer_id, 1, 5, 1005, 0, "invoice 7", {"b": 1.5, "a": "é"})
            assert newest[11:] == (0, None, None)
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

    @pytest.mark.parametrize("table", APPEND_ONLY)
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
        assert sorted(applied) == [[], [], REVISIONS]

    def test_wallets_from_before_wallets_had_a_state(self, postgres_url: str) -> None:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
            connection.execute(sql("migrations/0001_ledger"))
            connection.execute("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
            connection.execute("INSERT INTO alembic_version VALUES ('0001')")
            for wallet_id, flags, limit in ((-5, 1, 0), (1, 0, 700), (2, 0, 0)):
                row = (wallet_id, flags, limit)
                connection.execute("INSERT INTO wallet VALUES (%s, 0, 'USD', %s, 0, %s, 1, now())", row)
                connection.execute("INSERT INTO wallet_balance VALUES (%s, 0, 0, 1)", (wallet_id,))
            assert migrate(postgres_url) == REVISIONS[1:]
            found = connection.execute(
                "select wallet_id, flags, tier, overdraft_limit from wallet_balance order by 1"
            ).fetchall()
        assert found == [(-5, 1, 0, 0), (1, 0, 0, 700), (2, 0, 0, 0)]

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


class TestEverything:
    def test_every_kind_reaches_its_tables(self, funded_world: LedgerWorld) -> None:
        with funded_world.persister():
            funded_world.do_everything()
            funded_world.hold(7, 8, 30, expires_in_ms=1)
            funded_world.until(lambda: funded_world.shard.wallet(7)["locked"] == 0)
            funded_world.until_persisted()
        funded_world.assert_proved()
        with funded_world.connect() as connection:
            kinds = {row[0] for row in connection.execute("select distinct kind from journal_event")}
        assert kinds == set(Kind) - {Kind.END_GENERATION}
        for table in APPEND_ONLY:
            if table != "transfer_duplicate":
                assert funded_world.one(f"select count(*) from {table}") > 0, table
        assert funded_world.one("select count(*) from open_hold") == 4

    def test_killed_at_random_moments(self, world: LedgerWorld) -> None:
        world.drain()
        world.open_wallets()
        chance = random.Random(4)
        for _ in range(3):
            child = world.child()
            before = world.shard.meta()["persisted"]
            world.do_everything()
            world.until(lambda before=before: bool(world.shard.meta()["persisted"] > before))
            acting = time.monotonic() + chance.uniform(0, 0.15)
            while time.monotonic() < acting:
                world.do_everything()
            assert child.poll() is None
            child.kill()
            child.wait()
        world.drain()
        world.assert_proved()

    def test_one_batch_of_all_kinds(self, funded_world: LedgerWorld) -> None:
        """Holds that are made, changed and ended within one transaction."""
        for _ in range(20):
            funded_world.do_everything()
        funded_world.drain()
        funded_world.assert_proved()

    def test_wallets_keep_their_state(self, funded_world: LedgerWorld) -> None:
        funded_world.set_limits(9)
        funded_world.change_wallet(Kind.SET_TIER, 3, 9)
        funded_world.change_wallet(Kind.FREEZE, 3, 6)
        funded_world.drain()
        funded_world.change_wallet(Kind.UNFREEZE, 3, 4)
        funded_world.change_wallet(Kind.SET_OVERDRAFT_LIMIT, 3, 77)
        funded_world.drain()
        state = "select flags, tier, overdraft_limit from wallet_balance where wallet_id = %s"
        assert funded_world.one(state, 3) == (2, 9, 77)
        assert funded_world.one(state, 4) == (0, 0, 0)
        assert funded_world.one(state, OUTSIDE) == (1, 0, 0)
        funded_world.assert_proved()

    def test_an_external_wallet_has_its_currencys_exponent(self, world: LedgerWorld) -> None:
        world.drain()
        points = external_wallet_id("POINTS")
        world.done(opening_record(world.id(), points, currency=pack_currency("POINTS"), overdraft=8))
        world.open_wallets()
        world.drain()
        assert world.one("select flags, overdraft_limit from wallet where id = %s", points) == (1, 8)
        with world.connect() as connection:
            assert queries.currencies(connection) == [("POINTS", 8), ("USD", 0)]
        world.assert_proved()


class TestSweeper:
    def test_holds_end_when_their_time_is_over(self, funded_world: LedgerWorld) -> None:
        with funded_world.persister():
            lasting = funded_world.hold(1, 2, 40, expires_in_ms=600_000)
            forever = funded_world.hold(1, 2, 5)
            short = [funded_world.hold(1, 2, 10, expires_in_ms=200) for _ in range(3)]
            funded_world.until(lambda: funded_world.shard.wallet(1)["locked"] == 45)
            funded_world.until_persisted()
        assert [funded_world.shard.hold(number)["state"] for number in (lasting, forever, *short)] == [
            HoldState.OPEN, HoldState.OPEN, *[HoldState.EXPIRED] * 3,
        ]  # fmt: skip
        assert funded_world.one("select count(*) from hold_change where kind = 11") == 3
        funded_world.assert_proved()

    def test_works_off_what_is_due_after_hours_without_it(self, funded_world: LedgerWorld) -> None:
        """More than a batch; the rest of the journal is drained meanwhile."""
        count = 2 * MAX_BATCH + 100
        for start in range(0, count, 100):
            records = [hold_record(funded_world.id(), 1, 2, 1, expires_in_ms=1) for _ in range(start, start + 100)]
            assert set(funded_world.shard.statuses(records)) <= {"POSTED"}
        with funded_world.persister():
            funded_world.until(lambda: funded_world.shard.wallet(1)["locked"] == 0)
            funded_world.until_persisted()
        assert funded_world.one("select count(*) from hold_change where kind = 11") >= count
        assert not funded_world.redis.exists(funded_world.shard.keys.due)
        funded_world.assert_proved()

    def test_a_damaged_hold_does_not_keep_the_others(self, funded_world: LedgerWorld) -> None:
        holds = [funded_world.hold(1, 2, 10, expires_in_ms=1) for _ in range(5)]
        funded_world.redis.hset(funded_world.shard.keys.holds, id_of(holds[3]), b"damaged")
        with funded_world.persister():
            funded_world.until(lambda: funded_world.shard.wallet(1)["locked"] == 10)
            assert funded_world.is_open()

    def test_a_damaged_list_does_not_stop_the_shard(self, funded_world: LedgerWorld) -> None:
        funded_world.redis.set(funded_world.shard.keys.due, b"")
        with funded_world.persister():
            funded_world.pay(10)
            funded_world.until_persisted()
            time.sleep(0.3)
            assert funded_world.is_open()
        funded_world.assert_proved()

    def test_a_closed_shard_is_opened_again(self, funded_world: LedgerWorld) -> None:
        funded_world.hold(1, 2, 10, expires_in_ms=1)
        funded_world.drain()
        deployment = funded_world.shard.meta()["deployment"]
        funded_world.hold(1, 2, 10, expires_in_ms=1)
        time.sleep(0.005)
        with RedisShard(funded_world.redis_url, 0) as redis:
            with pytest.raises(Moved, match="another deployment"):
                Sweeper(redis, b"another deploym.").sweep()
            redis.close_fence()
            with pytest.raises(Moved, match="not open"):
                Sweeper(redis, deployment).sweep()
        funded_world.drain()
        assert funded_world.shard.wallet(1)["locked"] == 0


class TestDeclined:
    COUNT = "select count(*) from declined_attempt"

    def refuse(self, world: LedgerWorld, count: int = 1, **options: Any) -> None:
        records = [
            request_record(world.id(), Kind.PAYMENT, 1, 2, 2**50, attached=terms(**options)) for _ in range(count)
        ]
        assert set(world.shard.statuses(records)) == {"INSUFFICIENT_FUNDS"}

    def test_reach_the_ledger_once(self, funded_world: LedgerWorld) -> None:
        self.refuse(funded_world, device=b"device 1")
        funded_world.drain()
        self.refuse(funded_world, 5, ip=b"ip addr1")
        funded_world.drain()
        funded_world.drain()
        with funded_world.connect() as connection:
            *_, first = found = declined_queries.declined_attempts(connection)
        assert len(found) == 6
        assert first[2:] == (
            Kind.PAYMENT, Status.INSUFFICIENT_FUNDS, 0, 1, 2, 2**50, b"device 1", None,
        )  # fmt: skip
        funded_world.assert_proved()

    def test_come_while_the_persister_runs(self, funded_world: LedgerWorld) -> None:
        with funded_world.persister():
            self.refuse(funded_world)
            funded_world.until(lambda: funded_world.one(self.COUNT) == 1)
            self.refuse(funded_world)
            funded_world.until(lambda: funded_world.one(self.COUNT) == 2)

    def test_many_are_read_in_parts(self, funded_world: LedgerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("persister.leader.DECLINED_ROWS", 30)
        for _ in range(40):
            self.refuse(funded_world, 7)
        funded_world.drain()
        assert funded_world.one(self.COUNT) == 280

    def test_are_not_added_from_another_place(self, funded_world: LedgerWorld) -> None:
        self.refuse(funded_world)
        funded_world.drain()
        with connect(funded_world.postgres_url) as connection, pytest.raises(JournalGap, match="by somebody else"):
            Ledger(connection, 0).add_declined(rows_of(0, []), "0-0", "9-0")
        assert funded_world.one(self.COUNT) == 1

    @pytest.mark.parametrize("damage", ["entry", "type", "table"])
    def test_never_stop_the_shard(self, funded_world: LedgerWorld, damage: str) -> None:
        stream = funded_world.shard.keys.declined
        match damage:
            case "entry":
                funded_world.redis.xadd(stream, {b"d": b"damaged"})
                funded_world.redis.xadd(stream, {b"other": b"field"})
            case "type":
                funded_world.redis.set(stream, b"")
            case "table":
                self.refuse(funded_world)
                funded_world.tamper("drop table declined_attempt")
        funded_world.pay(10)
        funded_world.drain()
        assert funded_world.is_open()
        funded_world.assert_proved()
        if damage == "entry":
            self.refuse(funded_world)
            funded_world.drain()
            assert funded_world.one(self.COUNT) == 1


class TestOpening:
    """More of it in tests/recovery."""

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
        with pytest.raises(HistoryMismatch, match="sequences 342 to 541 are no longer in the journal"):
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

    def forge(self, world: LedgerWorld, *, hash: bytes | None = None, links: bytes = b"", **changes: Any) -> None:
        """Append an entry that continues the history with a payment, but for the changed fields of record or header."""
        place = Place(*world.shard.place())
        paying = world.one("select available, locked, version from wallet_balance where wallet_id = 1")
        paid = world.one("select available, locked, version from wallet_balance where wallet_id = 2")
        fields = {
            "kind": Kind.PAYMENT, "debit": 1, "credit": 2, "amount": 7,
            "debit_available": paying[0] - 7, "debit_locked": paying[1], "debit_version": paying[2] + 1,
            "credit_available": paid[0] + 7, "credit_locked": paid[1], "credit_version": paid[2] + 1,
        }  # fmt: skip
        of_header = {name for name, _ in ENTRY_HEADER.fields}
        header = {name: value for name, value in changes.items() if name in of_header}
        fields |= {name: value for name, value in changes.items() if name not in of_header}
        forged = record(FORGED, **fields)
        time_ms = world.shard.meta()["time_ms"]
        entry_id, made = entry(place, [forged], **{"time_ms": time_ms, "hash": hash, "links": links} | header)
        world.redis.xadd(world.shard.keys.journal, made, id=entry_id)

    def check(self, world: LedgerWorld, error: type[Fatal], match: str) -> None:
        before = world.one("select sequence, chain from shard_state")
        with pytest.raises(error, match=match):
            Persister(world.redis_url, world.postgres_url).drain()
        assert world.one("select sequence, chain from shard_state") == before
        assert not world.is_open()

    def test_the_forger_itself(self, funded_world: LedgerWorld) -> None:
        """What it makes without a change is taken; only then Redis' own meta turns out to know nothing of it."""
        self.forge(funded_world)
        with pytest.raises(HistoryMismatch, match="journal does not end where its meta record says"):
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
            ({"hash": b"f" * 40}, JournalGap, "it says ffff"),
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

    def forge_raise(self, world: LedgerWorld, **changes: Any) -> None:
        """Raise a hold of 50 that the ledger has by 7, but for the changed fields of record or link."""
        held = world.hold(1, 2, 50)
        world.drain()
        available, locked = world.one("select available, locked from wallet_balance where wallet_id = 1")
        state = {"reference": held, "purpose": Kind.PAYMENT, "remaining": 57} | {
            name: value for name, value in changes.items() if name == "reference" or name in dict(LINK.fields)
        }
        freed = state.get("released", -7)
        fields = {
            "kind": Kind.RAISE_HOLD, "debit_available": available + freed, "debit_locked": locked - freed,
            "credit_version": 0,
        } | {name: value for name, value in changes.items() if name not in state}  # fmt: skip
        self.forge(world, links=link(world.shard.meta()["sequence"] + 1, **state), **fields)

    def test_the_forger_of_holds_itself(self, funded_world: LedgerWorld) -> None:
        self.forge_raise(funded_world)
        with pytest.raises(HistoryMismatch, match="journal does not end where its meta record says"):
            funded_world.drain()
        assert funded_world.one("select remaining from open_hold") == 57

    @pytest.mark.parametrize(
        ("changes", "error", "match"),
        [
            ({"reference": 4711}, JournalGap, "hold .*: the ledger has no such open hold, .* remaining 50"),
            ({"remaining": 58}, LedgerImbalance, "the ledger has remaining 50, .*continues remaining 51"),
            ({"captured": 1}, LedgerImbalance, "continues .*captured 1"),
            ({"purpose": 1}, LedgerImbalance, "continues .*purpose 1"),
            ({"expires_at_ms": 5}, LedgerImbalance, "continues .*expiry 5"),
            ({"credit": 3}, LedgerImbalance, "continues .*wallets 1 to 3"),
            (
                {"kind": Kind.VOID, "amount": 51, "released": 51, "remaining": 0, "state": HoldState.VOIDED},
                LedgerImbalance,
                "continues remaining 51",
            ),
            ({"kind": Kind.HOLD, "remaining": 7}, CorruptRecord, "the beginning of its hold"),
        ],
    )
    def test_at_a_hold_that_does_not_follow(
        self, funded_world: LedgerWorld, changes: dict[str, Any], error: type[Fatal], match: str
    ) -> None:
        self.forge_raise(funded_world, **changes)
        self.check(funded_world, error, match)

    def test_at_a_hold_made_twice(self, funded_world: LedgerWorld) -> None:
        """Redis never makes a hold under the id of an open one."""
        held = funded_world.hold(1, 2, 50)
        funded_world.drain()
        funded_world.redis.delete(funded_world.shard.keys.holds)
        meta = funded_world.shard.meta()
        funded_world.redis.delete(funded_world.shard.keys.idempotency(int(meta["generation"])))
        again = request_record(held, Kind.HOLD, 1, 2, 50, attached=terms(purpose=Kind.PAYMENT))
        funded_world.done(again)
        self.check(funded_world, JournalGap, "open_hold has it already")

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
