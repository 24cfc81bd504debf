"""Passwords and keys never show: not in errors, not in logs, not in the list of processes."""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import Engine
from engine.servers import redact_url
from gateway import cli
from gateway.embedded import EmbeddedServers
from gateway.exits import Exit
from gateway.persister_process import PersisterProcess
from persister.connection import connect
from persister.drain import Persister
from persister.migrate import migrate
from persister.reconcile import reconcile
from persister.redis_shard import RedisShard
from tests.fixtures.cli import Cli

SECRETS = ("s3cr3t", "t0ken")

REDIS_URLS = (
    "redis://u:s3cr3t@localhost:1", "redis://u:s3cr3t@t0ken@localhost:1", "redis://u:s3cr3t/t0ken@localhost:1",
    "redis://u:s3cr3t#t0ken@localhost:1", "redis://u:s3cr3t?t0ken@localhost:1", "redis://u:s3cr3t:t0ken@localhost:1",
    "redis://u:[s3cr3t]@localhost:1", "redis://localhost:1?password=s3cr3t", "rediss://u:s3cr3t@localhost:1",
    "unix://u:s3cr3t@/nowhere", "http://u:s3cr3t@localhost:1", "u:s3cr3t@localhost", "s3cr3t",
)  # fmt: skip
POSTGRES_URLS = (
    "postgresql://u:s3cr3t@localhost:1/x", "postgresql://u:s3cr3t@t0ken@localhost:1/x",
    "postgresql://localhost:s3cr3t/t0ken@localhost:1/x", "postgresql://u:s3cr3t#t0ken@localhost:1/x",
    "postgresql://u:s3cr3t?t0ken@localhost:1/x", "postgresql://u:s3cr3t%zz@localhost:1/x",
    "postgresql://u:[s3cr3t]@localhost:1/x", "postgresql://localhost:1/x?password=s3cr3t",
    "postgresql://localhost:1/x?pasword=s3cr3t", "host=localhost port=1 password=s3cr3t",
    "host=localhost port=1 password=s3cr3t t0ken", "host=localhost port=1 password='s3cr3t t0ken",
    "host=localhost port=1 password='s3cr3t t0ken'", "host=localhost port=1 password='s3cr3t x=t0ken'", "s3cr3t",
)  # fmt: skip


def assert_hidden(text: str) -> None:
    for secret in SECRETS:
        assert secret not in text, text


def failure(call: Callable[[], object]) -> str:
    """All that a program could print of the error that the call ends with, causes and contexts included."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  whatever it is: it is its text that counts
        call()
    said = []
    error: BaseException | None = caught.value
    while error is not None:
        said += traceback.format_exception_only(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "".join(said)


async def connected(redis_url: str, postgres_url: str | None = None) -> None:
    async with Engine.connect(redis_url, postgres_url, timeout_ms=50):
        pass


@pytest.mark.parametrize("url", REDIS_URLS)
def test_of_redis_urls_that_lead_nowhere(url: str, servers: EmbeddedServers, capfd: pytest.CaptureFixture[str]) -> None:
    assert_hidden(failure(lambda: asyncio.run(connected(url))))
    assert_hidden(failure(lambda: RedisShard(url, 0).state()))
    assert_hidden(failure(lambda: reconcile(url, servers.postgres_url)))
    ended = Cli(environment={"HOTLEDGER_REDIS_URL": url, "HOTLEDGER_POSTGRES_URL": servers.postgres_url})("migrate")
    assert ended.status in (Exit.USAGE, Exit.UNAVAILABLE)
    assert_hidden(ended.out + ended.err + capfd.readouterr().out)


@pytest.mark.parametrize("url", POSTGRES_URLS)
def test_of_postgres_urls_that_lead_nowhere(
    url: str, servers: EmbeddedServers, capfd: pytest.CaptureFixture[str]
) -> None:
    for call in (
        lambda: migrate(url),
        lambda: connect(url),
        lambda: reconcile(servers.redis_url, url),
        lambda: asyncio.run(connected("redis://localhost:1", url)),
    ):
        assert_hidden(failure(call))
    ended = Cli(environment={"HOTLEDGER_REDIS_URL": servers.redis_url, "HOTLEDGER_POSTGRES_URL": url})("migrate")
    assert ended.status in (Exit.USAGE, Exit.UNAVAILABLE)
    assert_hidden(ended.out + ended.err + capfd.readouterr().out)


def test_a_persister_that_reaches_neither_server(servers: EmbeddedServers, capfd: pytest.CaptureFixture[str]) -> None:
    for redis_url, postgres_url in (
        ("redis://u:s3cr3t@localhost:1", servers.postgres_url),
        (servers.redis_url, "postgresql://u:s3cr3t@localhost:1/x"),
    ):
        stop = threading.Event()
        thread = threading.Thread(target=Persister(redis_url, postgres_url).run, args=(stop,))
        thread.start()
        time.sleep(0.3)
        stop.set()
        thread.join()
    written = capfd.readouterr()
    logged = written.out + written.err
    assert "redis.away" in logged
    assert "postgres.away" in logged
    assert "u:***@localhost" in logged
    assert_hidden(logged)


def test_processes_do_not_show_them(servers: EmbeddedServers) -> None:
    url = "redis://u:s3cr3t@localhost:1"
    with PersisterProcess(url, "postgresql://u:s3cr3t@localhost:1/x", b"t0ken of sixteen") as child:
        assert child.pid is not None
        assert_hidden(Path(f"/proc/{child.pid}/cmdline").read_text())
        assert b"s3cr3t" in Path(f"/proc/{child.pid}/environ").read_bytes()


def test_help_and_crashes_do_not_show_them() -> None:
    hotledger = Cli(environment={"HOTLEDGER_REDIS_URL": "redis://u:s3cr3t@h", "HOTLEDGER_DIGEST_KEY": "t0ken"})
    for command in ("persist", "migrate", "reconcile", "pay"):
        assert_hidden(hotledger.done(command, "--help").out)
    ended = hotledger("wallet", "show", 1, "--postgres-url", "postgresql://u:s3cr3t@h/x")
    assert (ended.status, "HOTLEDGER_DIGEST_KEY" in ended.err) == (Exit.USAGE, True)
    assert_hidden(ended.err)
    assert cli.app.pretty_exceptions_show_locals is False


@pytest.mark.parametrize("url", [*REDIS_URLS[:-2], *POSTGRES_URLS[:-1]])
def test_a_redacted_url(url: str) -> None:
    if "pasword" not in url:
        assert_hidden(redact_url(url))
        assert_hidden(redact_url(f"the server at {url}"))
