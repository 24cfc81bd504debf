"""The processes of `hotledger serve`: they drain when they are told to end, come back when they die, and say when they
are ready. Each test has servers of its own."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

import psutil
import pytest
import redis

from gateway.embedded import EmbeddedServers
from gateway.http.server import Listen
from persister.migrate import migrate
from tests.fixtures.cli import Cli
from tests.fixtures.http import Client, HttpWorld, http_world, is_ready, persisting, serving, set_up, until


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpWorld]:
    """A service whose processes may be hurt."""
    with http_world(tmp_path_factory.mktemp("serve")) as made:
        yield made


class Payers:
    """Threads that pay, one keep-alive connection each, and keep what was answered."""

    def __init__(self, world: HttpWorld, debit: int, credit: int) -> None:
        self.answered: dict[str, int] = {}
        self.unanswered: set[str] = set()
        self._world = world
        self._body = {"debit_wallet_id": debit, "credit_wallet_id": credit, "amount_minor": 1}
        self._stop = threading.Event()
        self._numbers = itertools.count()
        self._threads = [threading.Thread(target=self._pay) for _ in range(8)]

    def _pay(self) -> None:
        with closing(Client(self._world.port, self._world.keys["operator"])) as client:
            while not self._stop.is_set():
                name = f"payer {next(self._numbers)}"
                try:
                    self.answered[name] = client.post("/v1/payments", self._body, id=name).status
                except ConnectionRefusedError:  # nothing was sent
                    time.sleep(0.05)
                    if self._world.process.poll() is not None:
                        return
                except (OSError, HTTPException):
                    self.unanswered.add(name)
                    if self._world.process.poll() is not None:
                        return

    @contextmanager
    def paying(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(60)


def test_sigterm_answers_what_is_under_way(tmp_path: Path) -> None:
    """Of a service under load nothing is cut off: what was answered 201 is in the ledger, and the process ends well."""
    with EmbeddedServers(tmp_path / "data") as servers:
        migrate(servers.postgres_url)
        with persisting(servers):
            with serving(servers, tmp_path / "log") as world:
                set_up(world)
                debit, credit = world.wallet(funds=10**6), world.wallet()
                payers = Payers(world, debit, credit)
                with payers.paying():
                    until(lambda: len(payers.answered) > 300)
                    world.process.send_signal(signal.SIGTERM)
                    assert world.process.wait(60) == 0, (tmp_path / "log").read_text()
            assert set(Counter(payers.answered.values())) <= {201, 503}
            paid = sum(status == 201 for status in payers.answered.values())
            with serving(servers, tmp_path / "log", workers=1) as again:
                again.keys = world.keys
                again.operator = again.client("operator")
                body = {"debit_wallet_id": debit, "credit_wallet_id": credit, "amount_minor": 1}
                for name in payers.unanswered:
                    assert again.operator.post("/v1/payments", body, id=name).status == 201
                for name, status in payers.answered.items():
                    if status == 503:
                        assert again.operator.post("/v1/payments", body, id=name).status == 201
                extra = sum(status == 503 for status in payers.answered.values())
                assert again.available(credit) == paid + extra + len(payers.unanswered)


def workers_of(world: HttpWorld) -> set[int]:
    found = set()
    for one in psutil.Process(world.process.pid).children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            if "spawn_main" in " ".join(one.cmdline()):
                found.add(one.pid)
    return found


def test_a_worker_that_dies_comes_back(own: HttpWorld) -> None:
    debit, credit = own.wallet(funds=10**6), own.wallet()
    workers = workers_of(own)
    assert len(workers) == 2
    payers = Payers(own, debit, credit)
    with payers.paying():
        until(lambda: len(payers.answered) > 50)
        os.kill(min(workers), signal.SIGKILL)
        until(lambda: len(workers_of(own) - {min(workers)}) == 2)
        seen = len(payers.answered)
        until(lambda: len(payers.answered) > seen + 100)
    body = {"debit_wallet_id": debit, "credit_wallet_id": credit, "amount_minor": 1}
    names = {*payers.unanswered, *payers.answered}
    for name in names:
        assert own.operator.post("/v1/payments", body, id=name).status == 201
    assert own.available(credit) == len(names)


def test_ready_means_that_a_payment_would_work(tmp_path: Path) -> None:
    """Without Postgres payments go on; without Redis the service lives, is not ready, and refuses as retryable."""
    with EmbeddedServers(tmp_path / "data") as servers:
        migrate(servers.postgres_url)
        with persisting(servers), serving(servers, tmp_path / "log", workers=1) as world:
            set_up(world)
            debit, credit = world.wallet(funds=5), world.wallet()
            body = {"debit_wallet_id": debit, "credit_wallet_id": credit, "amount_minor": 1}
            servers.stop_postgres()
            until(lambda: world.operator.get("/v1/tiers").code == "LEDGER_UNAVAILABLE")
            assert world.operator.post("/v1/payments", body, id="without the ledger").status == 201
            assert world.operator("PATCH", f"/v1/wallets/{debit}", {"tier": 0}).code == "LEDGER_UNAVAILABLE"
            with redis.Redis.from_url(servers.redis_url) as client:
                client.shutdown(nosave=True)
            until(lambda: not is_ready(world.port))
            assert world.with_key(None).get("/health/live").status == 200
            answer = world.operator.post("/v1/payments", body, id="without anything")
            assert answer.status in (503, 504)
            assert "postgres" not in answer.body.decode()


def test_no_secret_is_in_the_log(own: HttpWorld) -> None:
    path = own.servers.data_dir.parent / "serve.log"
    own.operator.get("/v1/tiers")
    own.with_key("hl_" + "0" * 16 + "_" + "s3cret" * 7 + "x").get("/v1/tiers")
    text = path.read_text()
    assert "service.ready" in text
    assert all(key.split("_", 2)[2] not in text for key in own.keys.values())
    assert "s3cret" not in text


def test_addresses() -> None:
    assert Listen.parse("127.0.0.1:80") == ("127.0.0.1", 80, None)
    assert Listen.parse("[::1]:80") == ("::1", 80, None)
    assert str(Listen.parse("unix:/run/x")) == "unix:/run/x"
    assert str(Listen.parse("[::1]:80")) == "http://[::1]:80"


@pytest.mark.parametrize(
    "words",
    [("--listen", "nowhere"), ("--listen", "a:99999"), ("--tls-cert", "x"), ("--tls-cert", "x", "--tls-key", "y")],
)
def test_wrong_settings(words: tuple[str, ...]) -> None:
    assert Cli(None)("serve", *words).status == 2
