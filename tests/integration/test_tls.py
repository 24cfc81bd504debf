"""TLS and passwords to both servers by URL, as an operator would write them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

import psycopg
import pytest
import redis

from engine import Engine, OpenWallet
from gateway.embedded import EmbeddedServers
from gateway.exits import Exit
from persister.migrate import migrate
from persister.reconcile import reconcile
from tests.fixtures.cli import Cli, run_process
from tests.fixtures.ledger import LedgerWorld
from tests.fixtures.tls import Certificates, Terminator

HARD_PASSWORD = "p@ss/w:rd? 100%#[é]"


class Doors(NamedTuple):
    redis: Terminator
    postgres: Terminator
    certificates: Certificates

    def redis_url(
        self, *, host: str = "localhost", authority: Path | None = None, password: str = HARD_PASSWORD
    ) -> str:
        where = f"narrow:{quote(password, safe='')}@{host}:{self.redis.port}"
        return f"rediss://{where}?ssl_ca_certs={authority or self.certificates.authority}"

    def postgres_url(
        self, *, host: str = "localhost", authority: Path | None = None, password: str = HARD_PASSWORD
    ) -> str:
        where = f"test_tls:{quote(password, safe='')}@{host}:{self.postgres.port}/hotledger"
        return f"postgresql://{where}?sslmode=verify-full&sslrootcert={authority or self.certificates.authority}"


@pytest.fixture
def doors(servers: EmbeddedServers, valkey_url: str, postgres_url: str, certificates: Certificates) -> Iterator[Doors]:
    """Both servers behind TLS, with a user and a password each; the local socket still needs none."""
    postgres_socket = f"{parse_qs(urlsplit(postgres_url).query)['host'][0]}/.s.PGSQL.5432"
    doors = Doors(
        Terminator(certificates.server, valkey_url.removeprefix("unix://"), asks_first=False),
        Terminator(certificates.server, postgres_socket, asks_first=True),
        certificates,
    )
    hba = servers.data_dir / "postgres" / "pg_hba.conf"
    before = hba.read_text()
    with redis.Redis.from_url(valkey_url) as admin, psycopg.connect(postgres_url, autocommit=True) as owner:
        admin.execute_command("ACL", "SETUSER", "narrow", "on", f">{HARD_PASSWORD}", "~*", "&*", "+@all")
        owner.execute("DROP ROLE IF EXISTS test_tls")
        owner.execute(f"CREATE ROLE test_tls LOGIN IN ROLE hotledger_app PASSWORD '{HARD_PASSWORD}'")
        hba.write_text(f"local all test_tls scram-sha-256\n{before}")
        owner.execute("SELECT pg_reload_conf()")
        try:
            yield doors
        finally:
            for door in doors[:2]:
                door.close()
            hba.write_text(before)
            owner.execute("SELECT pg_reload_conf()")
            owner.execute("DROP ROLE test_tls")
            admin.execute_command("ACL", "DELUSER", "narrow")


def test_payments_over_tls(doors: Doors) -> None:
    """Engine, persister, migration and reconciliation: each connects by itself."""
    assert migrate(doors.postgres_url()) == []
    world = LedgerWorld(doors.redis_url(), doors.postgres_url())

    async def trade() -> None:
        async with Engine.connect(world.redis_url, world.postgres_url) as engine:
            await engine.open_wallets([OpenWallet(wallet, 1, "USD") for wallet in (1, 2)])
            await engine.top_up(1, 10_000, key="funds")
            paid = await asyncio.gather(*(engine.pay(1, 2, 1, key=f"{n}") for n in range(1000)))
            assert all(outcome.posted for outcome in paid)
            assert (await engine.pay(1, 2, 1, key="last", durability="persisted")).posted

    with world.persister():
        asyncio.run(trade())
        world.until_persisted()
        assert reconcile(world.redis_url, world.postgres_url).ok
    urls = {"HOTLEDGER_REDIS_URL": world.redis_url, "HOTLEDGER_POSTGRES_URL": world.postgres_url}
    shown = run_process("statement", 2, "--json", environment=urls)
    assert shown.json["lines"][0]["available_after_minor"] == 1001, shown.err
    world.redis.close()


WRONG = {
    "another authority": {"authority": "other"},
    "another name": {"host": "127.0.0.1"},
    "another password": {"password": HARD_PASSWORD[::-1]},
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("server", ["redis", "postgres"])
def test_a_server_that_does_not_prove_itself_is_not_talked_to(doors: Doors, server: str, wrong: str) -> None:
    """And neither is one that does not believe us."""
    options: dict[str, Any] = WRONG[wrong]
    if "authority" in options:
        options = {"authority": doors.certificates.other}
    redis_url = doors.redis_url(**(options if server == "redis" else {}))
    postgres_url = doors.postgres_url(**(options if server == "postgres" else {}))
    urls = {"HOTLEDGER_REDIS_URL": redis_url, "HOTLEDGER_POSTGRES_URL": postgres_url}
    ended = Cli(environment=urls)("migrate")
    assert ended.status == Exit.UNAVAILABLE, ended
    expected = "password|Authentication" if "password" in wrong else "certificate"
    assert re.search(expected, ended.err), ended.err
    for secret in (HARD_PASSWORD, HARD_PASSWORD[::-1]):
        assert not leaks(secret, ended.err + ended.out)


def test_a_connection_without_tls_gets_nothing(doors: Doors) -> None:
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(doors.postgres_url().replace("sslmode=verify-full", "sslmode=disable"))
    assert doors.postgres.plain == 1
    without = doors.redis_url().replace("rediss://", "redis://").split("?")[0]
    with redis.Redis.from_url(without) as client, pytest.raises(redis.ConnectionError):
        client.ping()


def leaks(secret: str, text: str) -> bool:
    """Whether the text has the secret, as it is or quoted."""
    return any(form in text for form in (secret, quote(secret), quote(secret, safe="")))
