"""Least privilege on real servers: every kind of traffic under the narrow users, and everything else refused."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
import redis

from engine import (
    Engine,
    Kind,
    OpenWallet,
    Outcome,
    OutcomeUnknown,
    Refund,
    Rule,
    ServerRefused,
    ShardNotOpen,
    Status,
    TierLimits,
    Transfer,
    library,
)
from engine.errors import Fatal
from engine.shard import connect_redis
from engine.wire import ZERO_HASH
from gateway.acl import COMMANDS, User
from gateway.doctor import examine
from gateway.exits import Exit
from persister import roles
from persister.follower import Settings
from persister.journal import Place
from persister.migrate import grant_roles, migrate
from persister.reconcile import reconcile
from persister.recover import recover
from persister.redis_shard import RedisShard
from tests.fixtures.cli import Cli
from tests.fixtures.ledger import LedgerWorld
from tests.fixtures.narrow import PASSWORD, Guarded, as_postgres_user, as_redis_user, name_of, postgres_users
from tests.fixtures.shard import OUTSIDE, ShardDriver, new_shard, opening_record

PAYER, SHOP, FRAUDSTER, EMPTY = 101, 102, 103, 104


async def everything(engine: Engine) -> None:
    """Each kind of request that an engine sends, each thing it reads."""

    def done(outcome: Outcome, status: Status = Status.POSTED) -> UUID:
        assert outcome.status is status, outcome
        return outcome.transfer_id

    await engine.open_wallets([OpenWallet(wallet, 1, "USD") for wallet in (PAYER, SHOP, FRAUDSTER, EMPTY)])
    top_up = done(await engine.top_up(PAYER, 10_000, key="funds"))
    done(await engine.top_up(FRAUDSTER, 10_000, key="stolen"))
    paid = done(await engine.pay(PAYER, SHOP, 500, key="order", reference="INV-1", metadata={"who": "Jane"}))
    assert (await engine.pay(PAYER, SHOP, 500, key="order", reference="INV-1", metadata={"who": "Jane"})).replayed
    done(await engine.transfer(PAYER, EMPTY, 10**9, key="much"), Status.INSUFFICIENT_FUNDS)
    done(await engine.withdraw(PAYER, 10, key="cash"))
    done(await engine.refund(paid, 100, key="back"))
    chain = [Transfer(PAYER, SHOP, 5, "a"), Refund(paid, 10, "b"), Transfer(PAYER, SHOP, 1, "c", kind=Kind.PAYMENT)]
    assert all(outcome.posted for outcome in await engine.post(chain, linked=True))
    held = done(await engine.hold(PAYER, SHOP, 300, key="room", expires_in_ms=60_000))
    done(await engine.raise_hold(held, 50, key="minibar"))
    done(await engine.capture(held, 100, key="part", final=False))
    done(await engine.capture(held, 250))
    done(await engine.void(done(await engine.hold(PAYER, SHOP, 20, key="table"))))
    done(await engine.hold(PAYER, SHOP, 25, key="soon over", expires_in_ms=1))
    done(await engine.hold(PAYER, SHOP, 35, key="stays", expires_in_ms=86_400_000))
    done(await engine.confirm(done(await engine.start_top_up(PAYER, 70, key="card")), "psp"))
    done(await engine.fail(done(await engine.start_withdrawal(PAYER, 70, key="bank"))))
    limits = TierLimits(
        max_amount_minor=100, day_count=5, window_count=9, device_attempts=4, ip_attempts=9, device_wallets=2,
        new_device_amount_minor=5_000, review=frozenset({Rule.MAX_AMOUNT})
    )  # fmt: skip
    done(await engine.set_tier_limits(1, limits))
    assert await engine.tier_limits(1) == limits
    done(await engine.set_tier(FRAUDSTER, 1))
    origin = {"device": "a1b2", "ip": "203.0.113.7"}
    done(await engine.transfer(FRAUDSTER, SHOP, 80, key="small", **origin))
    stopped = done(await engine.transfer(FRAUDSTER, SHOP, 600, key="big", **origin), Status.UNDER_REVIEW)
    done(await engine.approve(stopped))
    stopped = done(await engine.transfer(FRAUDSTER, SHOP, 700, key="bigger", **origin), Status.UNDER_REVIEW)
    done(await engine.reject(stopped))
    statuses = [(await engine.transfer(FRAUDSTER, SHOP, 1, key=f"try {n}", **origin)).status for n in range(4)]
    assert Status.LIMIT_EXCEEDED in statuses
    done(await engine.chargeback(top_up, 10, key="bank says"))
    done(await engine.set_overdraft_limit(PAYER, 5))
    done(await engine.freeze(PAYER))
    done(await engine.unfreeze(PAYER))
    done(await engine.close_wallet(EMPTY))
    assert (await engine.lookup(key="order")).posted
    assert all(await engine.balances([PAYER, SHOP]))
    assert all(await engine.find_holds([held]))


def refused(admin_url: str) -> list[tuple[str, str, str]]:
    """What the server refused to the narrow users: who, why, what."""
    with redis.Redis.from_url(admin_url, decode_responses=True) as admin:
        return [(entry["username"], entry["reason"], entry["object"]) for entry in admin.acl_log()]


def commands_run(admin: redis.Redis) -> set[str]:
    """Since the statistics were reset; the admin's own are among them."""
    return {name.removeprefix("cmdstat_") for name in admin.info("commandstats")}


DANGEROUS = (
    "DEL {s0}:meta", "FLUSHALL", "FLUSHDB", "CONFIG GET appendfsync", "CONFIG SET appendfsync no", "EVAL return 0",
    "EVALSHA x 0", "SCRIPT FLUSH", "KEYS *", "RENAME {s0}:meta {s0}:x", "EXPIRE {s0}:meta 1", "RESTORE {s0}:x 0 y",
    "MIGRATE h 1 {s0}:meta 0 1", "FUNCTION FLUSH", "FUNCTION DELETE hotledger", "FUNCTION RESTORE x", "SHUTDOWN NOSAVE",
    "REPLICAOF NO ONE", "ACL LIST", "MONITOR", "CLIENT LIST", "CLIENT KILL TYPE normal", "SAVE", "BGREWRITEAOF",
    "MODULE LIST", "XDEL {s0}:journal 1-0", "XSETID {s0}:journal 1-0", "GETDEL {s0}:meta", "SWAPDB 0 1", "FAILOVER",
)  # fmt: skip

EXPECTED_REFUSALS = {("command", "config|get"), ("command", "watch")}
"""What narrow users ask for and do without: the server's settings, and loading the library."""


class TestRedisUsers:
    def test_all_traffic_runs(self, guarded: Guarded) -> None:
        world = guarded.world
        reader = as_postgres_user(guarded.postgres_url, "test_reader")

        async def trade() -> None:
            async with Engine.connect(as_redis_user(guarded.redis_url, User.ENGINE), reader, replicas=0) as engine:
                await everything(engine)
                for level in ("replicated", "persisted"):
                    assert (await engine.transfer(PAYER, SHOP, 1, key=level, durability=level)).posted
                world.redis.execute_command("FUNCTION", "FLUSH")
                assert (await engine.transfer(PAYER, SHOP, 1, key="after a flush")).posted

        world.redis.config_resetstat()
        with world.persister(safety_tail=0):
            asyncio.run(trade())
            world.until(lambda: len(world.shard.redis.hkeys(world.shard.keys.holds)) == 1)  # the other is expired
            world.until_persisted()
        persister_url = as_redis_user(guarded.redis_url, User.PERSISTER)
        with RedisShard(persister_url, 0) as shard:
            meta = world.shard.meta()
            assert shard.end_generation(meta["epoch"], meta["generation"])
        world.drain()
        world.redis.delete(*world.redis.scan_iter("{s0}:w:*"))  # beyond what any narrow user could do
        recover(persister_url, world.postgres_url, Settings(), progress=lambda *_: None)
        world.assert_proved()
        load_the_library_late(persister_url)
        used = commands_run(world.redis)
        assert set(COMMANDS[User.PERSISTER]) <= used
        assert {entry[1:] for entry in refused(guarded.redis_url)} <= EXPECTED_REFUSALS

    def test_engines_alone_need_what_they_have(self, guarded: Guarded) -> None:
        world = guarded.world
        with world.persister():
            world.open_wallets()
            world.until_persisted()
        recover(world.redis_url, world.postgres_url, Settings(), progress=lambda *_: None)  # the journal is empty now
        world.redis.config_resetstat()

        async def trade() -> None:
            async with Engine.connect(as_redis_user(guarded.redis_url, User.ENGINE), replicas=0) as engine:
                await everything(engine)
                assert (await engine.transfer(PAYER, SHOP, 1, key="r", durability="replicated")).posted
                with suppress(OutcomeUnknown):
                    await engine.transfer(PAYER, SHOP, 1, key="p", durability="persisted", timeout_ms=300)

        asyncio.run(trade())
        assert set(COMMANDS[User.ENGINE]) <= commands_run(world.redis)
        assert {entry[1:] for entry in refused(guarded.redis_url)} <= EXPECTED_REFUSALS

    def test_readers_reconcile_and_look_at_health(self, guarded: Guarded) -> None:
        world = guarded.world
        reader_url = as_redis_user(guarded.redis_url, User.READER)
        ledger_url = as_postgres_user(guarded.postgres_url, "test_reader")
        with world.persister():
            world.open_wallets()
            world.do_everything()
            world.hold(1, 2, 50, expires_in_ms=3_600_000)
            world.until_persisted()
        recover(world.redis_url, world.postgres_url, Settings(), progress=lambda *_: None)  # the journal is empty now
        world.redis.config_resetstat()
        report = reconcile(reader_url, ledger_url)
        assert report.ok, report.differences
        world.pay(1)  # so that there is a record that the ledger lacks
        found = examine(reader_url, ledger_url, 0, None, started_here=False)
        assert (found.redis.problem, found.postgres.problem) == (None, None)
        assert found.redis.lag_ms is not None
        assert set(COMMANDS[User.READER]) <= commands_run(world.redis)
        assert {entry[1:] for entry in refused(guarded.redis_url)} <= EXPECTED_REFUSALS

    def test_no_other_command_is_allowed(self, guarded_redis: str) -> None:
        with redis.Redis.from_url(guarded_redis, decode_responses=True) as admin:
            arguments = commands_of(admin)
            for user in User:
                with admin.pipeline(transaction=False) as pipe:
                    for command, count in arguments.items():
                        words = [*command.split("|"), *["{s0}:x"] * count]
                        pipe.execute_command("ACL", "DRYRUN", name_of(user), *words)
                    answers = dict(zip(arguments, pipe.execute(raise_on_error=False), strict=True))
                allowed = {command for command, answer in answers.items() if "no permissions to run" not in str(answer)}
                # These ask for no permission: they are how a connection begins and ends.
                assert allowed - {"auth", "hello", "quit", "reset"} == set(COMMANDS[user])

    def test_nothing_outside_of_the_deployment(self, guarded_redis: str) -> None:
        with redis.Redis.from_url(guarded_redis) as admin:
            admin.set("{s1}:meta", "another's")
        for user in User:
            with redis.Redis.from_url(as_redis_user(guarded_redis, user)) as client:
                for words in (
                    ("GET", "{s1}:meta"), ("GET", "s0:meta"), ("GET", "hotledger:x"),
                    ("MGET", "{s0}:meta", "{s1}:meta"), ("FCALL_RO", "hotledger_state", 1, "{s1}"),
                ):  # fmt: skip
                    with pytest.raises(redis.exceptions.NoPermissionError):
                        client.execute_command(*words)
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.execute_command("SUBSCRIBE", "{s1}:persisted")

    def test_the_dangerous_ones_by_trying(self, guarded_redis: str) -> None:
        with redis.Redis.from_url(guarded_redis) as admin:
            admin.set("{s0}:meta", "kept")
            for user in User:
                with redis.Redis.from_url(as_redis_user(guarded_redis, user)) as client:
                    for line in DANGEROUS:
                        with pytest.raises(redis.exceptions.NoPermissionError):
                            client.execute_command(*line.split())
            assert admin.get("{s0}:meta") == b"kept"

    def test_readers_write_nothing(self, guarded_redis: str) -> None:
        with redis.Redis.from_url(guarded_redis) as admin:
            shard = new_shard(admin)
            before = shard.image()
            with redis.Redis.from_url(as_redis_user(guarded_redis, User.READER)) as client:
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.set("{s0}:meta", "x")
                reading = ShardDriver(client)
                for change in (
                    lambda: reading.call("hotledger_touch"),
                    lambda: reading.post([opening_record(1, OUTSIDE)]),
                    lambda: reading.call("hotledger_close"),
                ):
                    with pytest.raises(redis.exceptions.ResponseError):
                        change()
            assert shard.image() == before

    def test_engines_do_not_lead(self, guarded_redis: str) -> None:
        with (
            redis.Redis.from_url(guarded_redis) as admin,
            redis.Redis.from_url(as_redis_user(guarded_redis, User.ENGINE)) as client,
        ):
            shard, engine = new_shard(admin), ShardDriver(client)
            place, before = shard.place(), shard.image()
            for call in (
                lambda: engine.call("hotledger_initialise", b"d" * 16, b"f" * 8, 1),
                lambda: engine.call("hotledger_open", *place, shard.state().replication_id, 1, 1),
                lambda: engine.call("hotledger_close"),
                lambda: engine.call("hotledger_advance", 1, 0, 0),
                lambda: engine.call("hotledger_end_generation", 1, 1),
                lambda: engine.call("hotledger_begin_load", b"t" * 16, "full", "*", "", ""),
                lambda: engine.call("hotledger_load", b"t" * 16, "wallets", "", 8, b""),
                lambda: engine.call("hotledger_wipe", b"t" * 16, "{s0}:meta"),
                lambda: engine.call("hotledger_end_load", b"t" * 16, b""),
            ):
                with pytest.raises(
                    redis.exceptions.ResponseError, match="no permissions to run the 'unlink'|can't run"
                ):
                    call()
            assert shard.state().is_open
            assert shard.image() == before

    def test_a_user_who_could_stop_post_half_way_is_refused(self, guarded_redis: str) -> None:
        with redis.Redis.from_url(guarded_redis) as admin:
            new_shard(admin)
            asyncio.run(connected(as_redis_user(guarded_redis, User.ENGINE)))
            for user in (User.ENGINE, User.PERSISTER):
                admin.execute_command("ACL", "SETUSER", name_of(user), "-zadd")
            with pytest.raises(ServerRefused, match="may not ZADD"):
                asyncio.run(connected(as_redis_user(guarded_redis, User.ENGINE)))
            with (
                RedisShard(as_redis_user(guarded_redis, User.PERSISTER), 0) as shard,
                pytest.raises(ServerRefused, match="may not ZADD"),
            ):
                shard.open_fence(Place(1, 0, ZERO_HASH), shard.state().replication_id, 1, 1)

    def test_every_write_of_post_is_asked_for(self) -> None:
        root = Path(__file__).parents[2] / "lua"
        posting = [*root.glob("lib/*.lua"), root / "functions" / "post.lua"]
        called = {
            name
            for path in posting
            for name in re.findall(r"call(?:_in_chunks)?\('([A-Z]+)'", path.read_text(encoding="utf-8"))
        }
        asked = set(re.findall(r"{ '([A-Z]+)',", (root / "functions" / "access.lua").read_text(encoding="utf-8")))
        reads = {
            "EXISTS", "GET", "HGET", "HLEN", "HMGET", "INFO", "MGET", "TIME", "XINFO", "XLEN", "XREVRANGE", "ZCARD",
        }  # fmt: skip
        assert called - reads - {"UNLINK"} == asked

    async def test_only_persisters_load_the_library(self, guarded_redis: str) -> None:
        client = connect_redis(as_redis_user(guarded_redis, User.ENGINE))
        with pytest.raises(ShardNotOpen, match="a persister has to"):
            await library.ensure_library(client)
        await client.aclose()

    def test_the_rules_as_printed(self, redis_url: str) -> None:
        hotledger = Cli(environment={"HOTLEDGER_ACL_PASSWORD": PASSWORD})
        with redis.Redis.from_url(redis_url) as admin:
            try:
                admin.execute_command(*hotledger.done("acl", "engine", "--user", "narrow").out.split())
                with redis.Redis.from_url(as_redis_user(redis_url, "narrow")) as client:
                    assert client.get("{s0}:meta") is None
                shown = hotledger.json("acl", "reader", "--shard", 7, "--config-get")
                assert PASSWORD not in str(shown)
                assert {"%R~{s7}:*", "+config|get"} <= set(shown["rules"])
                kept = Cli().done("acl", "engine", "--user", "narrow")
                assert "no password" in kept.err.lower()
                admin.execute_command(*kept.out.split())
                with redis.Redis.from_url(as_redis_user(redis_url, "narrow")) as client:
                    assert client.get("{s0}:meta") is None
            finally:
                admin.execute_command("ACL", "DELUSER", "narrow")
        assert Cli(environment={"HOTLEDGER_ACL_PASSWORD": "short"})("acl", "engine").status == Exit.USAGE


def commands_of(admin: redis.Redis) -> dict[str, int]:
    """Every command and subcommand that the server has, with the number of arguments that it needs at least."""
    admin.set_response_callback("COMMAND", lambda reply, **_: reply)
    found: dict[str, int] = {}
    for name, arity, *rest in admin.execute_command("COMMAND"):
        subcommands = rest[-1]
        if not subcommands:
            found[name] = abs(arity) - 1
        for subcommand, its_arity, *_ in subcommands:
            found[subcommand] = abs(its_arity) - 2
    return found


def load_the_library_late(url: str) -> None:
    """What a loader does that finds, on its second look, that another was faster."""

    async def load() -> None:
        async with redis.asyncio.Redis.from_url(url) as client:
            assert await library._load(client) is False

    asyncio.run(load())


async def connected(url: str, **options: Any) -> None:
    async with Engine.connect(url, **options):
        pass


class TestPostgresRoles:
    def test_every_object_is_somebodys(self, postgres_url: str) -> None:
        with psycopg.connect(postgres_url) as connection:
            owned = connection.execute(
                """
                select relname, relkind::text, relowner::regrole::text from pg_class
                where relnamespace = 'public'::regnamespace and relkind in ('r', 'v', 'm', 'p')
                union all
                select proname, 'f', proowner::regrole::text from pg_proc where pronamespace = 'public'::regnamespace
                """
            ).fetchall()
        assert {owner for _, _, owner in owned} == {"hotledger_owner"}
        names = {kind: {name for name, its, _ in owned if its == kind} for kind in "rvf"}
        assert names["r"] == {*roles.APP_MAY, *roles.API_MAY}
        assert names["v"] == set(roles.VIEWS)
        assert names["f"] == set(roles.FUNCTIONS)

    @pytest.mark.parametrize("role", ["app", "api", "reader"])
    def test_nothing_but_what_was_granted(self, postgres_url: str, role: str) -> None:
        may = {"app": roles.APP_MAY, "api": roles.API_MAY, "reader": {}}[role]
        with postgres_users(postgres_url), psycopg.connect(as_postgres_user(postgres_url, f"test_{role}")) as user:
            for table in tables_of(user):
                for privilege in ("INSERT", "UPDATE", "DELETE", "TRUNCATE", "TRIGGER", "REFERENCES"):
                    query = "select has_table_privilege(%s, %s)"
                    [has] = user.execute(query, (table, privilege)).fetchone()
                    assert has == (privilege in may.get(table, "")), (table, privilege)

    def test_history_by_trying(self, postgres_url: str) -> None:
        with psycopg.connect(postgres_url) as connection:
            append_only = {table for table in tables_of(connection) if roles.APP_MAY.get(table) == "INSERT"}
            query = "select attrelid::regclass::text, attname from pg_attribute where attnum = 1"
            columns = dict(connection.execute(query).fetchall())
        assert {"transfer", "ledger_entry", "journal_event", "outcome", "hold_detail"} <= append_only
        changes = (
            "DELETE FROM {}", "TRUNCATE {}", "DROP TABLE {}", "ALTER TABLE {} DISABLE TRIGGER ALL",
            "ALTER TABLE {} ADD COLUMN x int", "CREATE INDEX ON {} ((1))",
        )  # fmt: skip
        with postgres_users(postgres_url):
            for user in ("test_app", "test_api", "test_reader"):
                with psycopg.connect(as_postgres_user(postgres_url, user), autocommit=True) as connection:
                    for change in (
                        *(change.format(table) for table in append_only for change in changes),
                        *(f"UPDATE {table} SET {columns[table]} = DEFAULT" for table in append_only),
                        "SET session_replication_role = replica", "SET ROLE hotledger_owner",
                        "CREATE TABLE public.x ()", "DROP SCHEMA public CASCADE",
                        "SELECT erase_details(0::smallint, '{}', 'x')",
                        "COPY transfer TO PROGRAM 'true'", "SELECT pg_read_file('/etc/passwd')",
                        "DELETE FROM shard_state", "DELETE FROM wallet_balance", "UPDATE deployment SET id = id",
                        "CREATE ROLE other",
                        "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE sql AS ''",
                    ):  # fmt: skip
                        with pytest.raises(psycopg.errors.InsufficientPrivilege):
                            connection.execute(change)

    def test_who_may_only_write_does_not_migrate(self, postgres_url: str) -> None:
        with postgres_users(postgres_url):
            user = as_postgres_user(postgres_url, "test_app")
            assert migrate(user) == []
            with psycopg.connect(postgres_url, autocommit=True) as admin:
                admin.execute("UPDATE alembic_version SET version_num = '0001'")
                with pytest.raises(Fatal, match="older than this program.*hotledger migrate"):
                    migrate(user)
                admin.execute("UPDATE alembic_version SET version_num = '9999'")
                with pytest.raises(Fatal, match="newer than this program"):
                    migrate(user)

    def test_a_member_of_the_owner_migrates_and_persisters_follow(self, postgres_url: str, valkey_url: str) -> None:
        """No superuser anywhere; the roles are there from another database of the server."""
        with (
            psycopg.connect(postgres_url, autocommit=True) as admin,
            own_database(admin, "test_dba", "test_roles"),
        ):
            url = as_postgres_user(postgres_url, "test_dba").replace("///hotledger", "///test_roles")
            applied = migrate(url)
            assert "0005" in applied
            missing = [what.split(":")[0] for what in grant_roles(url)]
            assert missing == ["this user is no member of hotledger_owner", "hotledger_owner does not own everything"]
            admin.execute("GRANT hotledger_owner TO test_dba")
            assert grant_roles(url) == []
            with psycopg.connect(url) as connection:
                query = "select distinct tableowner from pg_tables where schemaname = 'public'"
                assert connection.execute(query).fetchall() == [("hotledger_owner",)]
            with postgres_users(postgres_url):
                world = LedgerWorld(valkey_url, url.replace("test_dba", "test_app"))
                with world.persister():
                    world.open_wallets()
                    world.pay(100)
                    world.until_persisted()
                world.redis.close()

    def test_roles_that_nobody_may_make_are_named(self, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(roles, "ROLES", (*roles.ROLES, "hotledger_of_a_test"))
        with postgres_users(postgres_url):
            [missing] = grant_roles(as_postgres_user(postgres_url, "test_app"))
        assert "CREATE ROLE hotledger_of_a_test NOLOGIN" in missing


def tables_of(connection: psycopg.Connection) -> list[str]:
    query = "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'"
    return [table for (table,) in connection.execute(query)]


@contextmanager
def own_database(admin: psycopg.Connection, user: str, database: str) -> Iterator[None]:
    """A database that an ordinary user owns."""
    admin.execute(f"DROP DATABASE IF EXISTS {database}")
    admin.execute(f"DROP ROLE IF EXISTS {user}")
    admin.execute(f"CREATE ROLE {user} LOGIN")
    admin.execute(f"CREATE DATABASE {database} OWNER {user}")
    try:
        yield
    finally:
        admin.execute(f"DROP DATABASE {database}")
        admin.execute(f"DROP ROLE {user}")
