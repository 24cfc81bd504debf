"""The continuous reconciler: silent under traffic, and whatever differs is found, noted, and ended when it is gone."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import orjson
import pytest

from engine.domain.transfer import Kind as RequestKind
from engine.keys import ShardKeys
from engine.wire import WALLET
from persister import drift
from persister.chain import Head
from persister.connection import connect
from persister.drift import Drift, Kind
from persister.ledger_checks import check_recent
from persister.report import Report
from persister.verify import head_before
from persister.watch import Intervals, Reconciled, Watcher
from tests.fixtures.cli import started, wait_for
from tests.fixtures.ledger import LedgerWorld
from tests.fixtures.shard import changed, opening_record, request_record

KEYS = ShardKeys(0)
LOAD_S = float(os.environ.get("HOTLEDGER_WATCH_S", "5"))
"""How long the reconciler runs under load; `make test-long` takes a minute."""


class Told(list[Reconciled]):
    """What a watcher told, in order."""

    def complete(self, kind: Kind) -> int:
        return sum(run.kind is kind and run.incomplete is None for run in self)


@contextmanager
def watching(world: LedgerWorld, *, every_s: float = 0.03, full_s: float = 3600) -> Iterator[Told]:
    """A watcher in a thread. An error that ends it is raised at the end."""
    told, stop, errors = Told(), threading.Event(), []
    intervals = Intervals(every_s=every_s, full_s=full_s)
    watcher = Watcher(world.redis_url, world.postgres_url, intervals=intervals, told=told.append)

    def run() -> None:
        try:
            watcher.run(stop)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield told
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]


def open_drift(world: LedgerWorld) -> list[Drift]:
    with closing(connect(world.postgres_url)) as connection:
        return drift.open_drift(connection, 0)


def edit_wallet(world: LedgerWorld, wallet: int, **changes: int) -> bytes:
    """Edit it in Redis as only somebody with all rights can; returns what it was."""
    was: bytes = world.redis.get(KEYS.wallet(wallet))
    world.redis.set(KEYS.wallet(wallet), changed(WALLET, was, **changes))
    return was


def test_looks_between_full_passes(funded_world: LedgerWorld) -> None:
    with watching(funded_world, full_s=1) as told, funded_world.persister():
        funded_world.until(lambda: told.complete(Kind.FULL) >= 1)
        funded_world.pay(50)
        funded_world.until_persisted()
        funded_world.until(lambda: told.complete(Kind.FULL) >= 2 and told[-1].report.sequence >= 391)
    assert all(run.open_drift == 0 and run.report.ok for run in told)
    looked_at = [run.report for run in told if run.kind is Kind.RECENT]
    assert sum(report.check("sequences", "").checked for report in looked_at) <= 50 * 2
    rows = funded_world.one("select count(*), max(sequence), bool_and(incomplete is null) from reconcile_run")
    assert rows == (len(told), told[-1].report.sequence, True)


def test_a_watcher_goes_on_where_the_last_one_was(funded_world: LedgerWorld) -> None:
    with watching(funded_world) as told:
        funded_world.until(lambda: bool(told))
    funded_world.pay(50)
    funded_world.drain()
    with watching(funded_world) as told:
        funded_world.until(lambda: bool(told))
    assert told[0].kind is Kind.RECENT
    assert told[0].report.check("sequences", "").checked == 50


def test_one_of_two_watchers_works(funded_world: LedgerWorld) -> None:
    with watching(funded_world) as first:
        funded_world.until(lambda: bool(first))
        with watching(funded_world) as second:
            count = len(first)
            funded_world.until(lambda: len(first) > count + 5)
            assert second == []
            assert funded_world.one("select count(*) from pg_locks where locktype = 'advisory' and granted") == 1


def test_an_empty_ledger_that_begins(world: LedgerWorld) -> None:
    with watching(world) as told:
        world.until(lambda: len(told) > 2)
        assert {run.incomplete is None for run in told} == {False}
        world.drain()
        world.open_wallets()
        world.drain()
        world.until(lambda: told[-1].report.sequence == 41 and told[-1].incomplete is None)
    assert all(run.open_drift == 0 for run in told)


class TestDrift:
    def test_it_is_noted_and_ended(self, funded_world: LedgerWorld) -> None:
        version = funded_world.shard.wallet(3)["version"]
        available = funded_world.shard.wallet(3)["available"]
        was = edit_wallet(funded_world, 3, available=5)
        with watching(funded_world) as told:
            funded_world.until(lambda: len(told) > 3)
            [found] = open_drift(funded_world)
            assert found[:2] == ("redis", "wallet 3")
            assert found[4:6] == (version, version)
            assert "available 5," in found.found
            assert f"available {available}," in found.expected
            assert found.seen_at > found.found_at, "it is looked at again each time"
            assert [len(run.new) for run in told] == [1] + [0] * (len(told) - 1)
            assert {run.open_drift for run in told} == {1}
            funded_world.redis.set(KEYS.wallet(3), was)
            funded_world.until(lambda: told[-1].open_drift == 0)
        assert open_drift(funded_world) == []
        assert [it.subject for run in told for it in run.gone] == ["wallet 3"]
        assert funded_world.one("select count(*) from drift where resolved_at >= found_at") == 1

    def test_it_comes_again(self, funded_world: LedgerWorld) -> None:
        for _ in range(2):
            was = edit_wallet(funded_world, 3, available=5)
            with watching(funded_world, full_s=0) as told:
                funded_world.until(lambda: bool(told) and told[-1].open_drift == 1)
                funded_world.redis.set(KEYS.wallet(3), was)
                funded_world.until(lambda: told[-1].open_drift == 0)
        assert funded_world.one("select count(*) from drift") == 2

    def test_of_the_ledger_is_ended_by_a_full_pass(self, funded_world: LedgerWorld) -> None:
        with watching(funded_world, full_s=0) as told:
            funded_world.until(lambda: bool(told))
            funded_world.tamper("update wallet_balance set available = available + 5 where wallet_id = 3")
            funded_world.until(lambda: told[-1].open_drift == 1)
            assert [it[:2] for it in open_drift(funded_world)] == [("balances", "wallet 3")]
            funded_world.tamper("update wallet_balance set available = available - 5 where wallet_id = 3")
            funded_world.until(lambda: told[-1].open_drift == 0)

    def test_a_look_finds_a_wallet_that_changed(self, funded_world: LedgerWorld) -> None:
        """Not those that did not: they are for the next full pass."""
        with watching(funded_world) as told:
            funded_world.until(lambda: bool(told))
            edit_wallet(funded_world, 3, overdraft_limit=7)
            edit_wallet(funded_world, 4, overdraft_limit=7)
            funded_world.move(RequestKind.TRANSFER, 3, 5, 1)
            funded_world.drain()
            funded_world.until(lambda: told[-1].open_drift > 0)
            assert [it.subject for it in open_drift(funded_world)] == ["wallet 3"]
        with watching(funded_world, full_s=0) as told:
            funded_world.until(lambda: bool(told))
        assert [it.subject for it in open_drift(funded_world)] == ["wallet 3", "wallet 4"]

    def test_it_is_bounded(self, funded_world: LedgerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(drift, "MAX_OPEN_DRIFT", 5)
        monkeypatch.setattr(drift, "KEPT_RUNS", 3)
        was = {wallet: edit_wallet(funded_world, wallet, available=5) for wallet in range(1, 9)}
        with watching(funded_world, full_s=0) as told:
            funded_world.until(lambda: len(told) > 5)
            assert told[-1].open_drift == 5
            assert max(run.report.total for run in told) == 8
            for wallet, packed in was.items():
                funded_world.redis.set(KEYS.wallet(wallet), packed)
            funded_world.until(lambda: told[-1].open_drift == 0)
        assert funded_world.one("select count(*) filter (where resolved_at is null), count(*) from drift") == (0, 3)
        assert funded_world.one("select count(*), count(*) filter (where kind = 'full') from reconcile_run") == (6, 3)

    def test_a_damaged_record_can_be_noted(self, funded_world: LedgerWorld) -> None:
        edit_wallet(funded_world, 3, currency=b"U\0D\0\0\0\0\0")
        with watching(funded_world) as told:
            funded_world.until(lambda: bool(told))
        assert [it.subject for it in open_drift(funded_world)] == ["wallet 3"]

    def test_a_ledger_whose_chain_was_made_anew(self, funded_world: LedgerWorld) -> None:
        """Nothing in it contradicts itself, but it is not what was there at the last look."""
        with watching(funded_world) as told:
            funded_world.until(lambda: bool(told))
        funded_world.tamper("update transfer set kind = 1 where sequence = 100;"
                            "update journal_event set kind = 1 where sequence = 100")  # fmt: skip
        rechain(funded_world)
        with watching(funded_world) as told:
            funded_world.until(lambda: bool(told))
        assert told[0].kind is Kind.FULL
        assert [it[:2] for it in open_drift(funded_world)] == [("heads", "journal entry 341")]


def rechain(world: LedgerWorld) -> None:
    """Make the chain anew from the rows, as somebody with all rights and this program could."""
    from persister.verify import verify_ledger

    while True:
        with closing(connect(world.postgres_url)) as connection:
            verified = verify_ledger(connection, 0)
        if verified.ok:
            return
        made = verified.bad[0].made if verified.bad else verified.head.link.hex()
        world.tamper(
            f"update journal_batch set chain = '\\x{made}' where last_sequence = {verified.bad[0].last_sequence}"
            if verified.bad
            else f"update shard_state set chain = '\\x{made}'"
        )


class TestServersThatAreAway:
    def test_wallets_are_compared_once_redis_is_back(self, funded_world: LedgerWorld) -> None:
        with watching(funded_world) as told:
            funded_world.until(lambda: bool(told))
        funded_world.move(RequestKind.TRANSFER, 3, 5, 1)
        funded_world.drain()
        edit_wallet(funded_world, 3, available=5)
        funded_world.redis.execute_command("FUNCTION", "FLUSH")
        with watching(funded_world) as told:
            funded_world.until(lambda: len(told) > 2)
            assert all(run.incomplete and "Redis cannot be asked" in run.incomplete for run in told)
            assert all(run.kind is Kind.RECENT and run.report.ok for run in told), "the ledger is looked at"
            funded_world.drain()
            funded_world.until(lambda: told[-1].open_drift == 1)
        assert told[-1].kind is Kind.RECENT

    def test_a_closed_shard_is_no_drift(self, funded_world: LedgerWorld) -> None:
        edit_wallet(funded_world, 3, available=5)
        funded_world.shard.call("hotledger_close")
        with watching(funded_world, full_s=0) as told:
            funded_world.until(lambda: len(told) > 2)
        assert all(run.incomplete and "closed" in run.incomplete and run.open_drift == 0 for run in told)

    def test_drift_stays_open_while_nobody_can_look(self, funded_world: LedgerWorld) -> None:
        edit_wallet(funded_world, 3, available=5)
        with watching(funded_world, full_s=0) as told:
            funded_world.until(lambda: bool(told))
            funded_world.shard.call("hotledger_close")
            count = len(told)
            funded_world.until(lambda: len(told) > count + 3)
        assert told[-1].incomplete
        assert told[-1].open_drift == 1

    def test_a_lost_connection_to_postgres(self, funded_world: LedgerWorld) -> None:
        with watching(funded_world) as told:
            funded_world.until(lambda: bool(told))
            funded_world.tamper(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'hotledger reconciler'"
            )
            count = len(told)
            funded_world.until(lambda: len(told) > count + 2)


@pytest.mark.parametrize(
    ("statements", "checks"),
    [
        ("update ledger_entry set amount = amount + 1 where sequence = 350 and amount < 0",
         {"conservation", "versions", "transfers", "chain"}),
        ("update ledger_entry set available_after = available_after - 1 where sequence = 342 and amount < 0",
         {"versions", "chain"}),
        ("delete from ledger_entry where sequence = 350 and amount < 0",
         {"conservation", "versions", "transfers", "chain"}),
        ("update wallet_balance set available = available + 5 where wallet_id = 1", {"balances"}),
        ("update wallet_balance set available = available - 5, locked = locked + 5 where wallet_id = 3",
         {"balances", "holds"}),
        ("delete from wallet_balance where wallet_id = 3", {"balances"}),
        ("update transfer set amount = amount + 1 where sequence = 350", {"transfers", "chain"}),
        ("delete from transfer where sequence = 350", {"events", "transfers", "chain"}),
        ("update journal_event set kind = 1 where sequence = 350", {"events", "chain"}),
        ("delete from journal_event where sequence = 350", {"sequences", "events", "chain"}),
        ("delete from journal_event where sequence = 342", {"sequences", "events", "chain"}),
        ("delete from journal_batch where last_sequence = 391", {"sequences", "chain"}),
        ("update journal_batch set chain = sha256('x'::bytea) where last_sequence = 391", {"chain"}),
        ("update shard_state set sequence = 350", {"sequences"}),
        ("update wallet_balance set tier = 0 where wallet_id = 11", {"states"}),
        ("update open_hold set remaining = remaining + 1 where captured > 0", {"holds", "open_holds"}),
        ("update hold_change set remaining = remaining + 1 where kind = 9", {"hold_changes", "chain"}),
        ("update wallet_change set value = value + 1 where kind = 20", {"states", "chain"}),
        ("update tier_change set max_amount = 501", {"chain"}),
        ("update outcome set kept = set_byte(kept, 5, 255 - get_byte(kept, 5)) "
         "where sequence = (select min(sequence) from outcome)", {"chain"}),
        ("update transfer set amount = amount + 1 where sequence = 100", set()),
    ],
)  # fmt: skip
def test_a_look_finds_edits_of_what_is_new(funded_world: LedgerWorld, statements: str, checks: set[str]) -> None:
    """And leaves what was there before to the full pass."""
    with closing(connect(funded_world.postgres_url)) as connection:
        head = head_before(connection, 0, 342)
        assert head is not None
        assert head.sequence == 341
        funded_world.pay(100, batch=50)
        funded_world.do_everything()
        funded_world.drain()
        assert look(connection, head) == set()
        funded_world.tamper(statements)
        assert look(connection, head) == checks


def look(connection: Any, head: Head, shard: int = 0) -> set[str]:
    report = Report(shard)
    check_recent(connection, report, head)
    return {check.name for check in report.checks if not check.ok}


def test_much_that_is_new_is_looked_at_in_steps(funded_world: LedgerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persister.ledger_checks.RECENT_RECORDS", 70)
    funded_world.do_everything()
    funded_world.drain()
    with closing(connect(funded_world.postgres_url)) as connection:
        head = head_before(connection, 0, 1)
        assert head is not None
        report, at_end, steps, wallets = Report(0), False, 0, 0
        while not at_end:
            head, at_end, changed_ones = check_recent(connection, report, head)
            steps, wallets = steps + 1, max(wallets, len(changed_ones))
    assert report.ok, report.differences
    assert steps >= 4
    assert wallets >= 20
    sequence = funded_world.one("select sequence from shard_state")
    assert head.sequence == sequence
    assert report.check("events", "").checked == report.check("sequences", "").checked == sequence


def test_no_false_alarm_under_load(funded_world: LedgerWorld) -> None:
    """Every kind of request, wallets opened, holds that expire; looks and full passes without a pause."""
    done, opened = threading.Event(), 1000

    def act() -> None:
        nonlocal opened
        while not done.is_set():
            for _ in range(3):
                pairs = [random.sample(range(1, 11), 2) for _ in range(100)]  # the others get frozen and limited
                records = [request_record(funded_world.id(), RequestKind.PAYMENT, *pair, 1) for pair in pairs]
                assert set(funded_world.shard.statuses(records)) == {"POSTED"}
            funded_world.do_everything()
            funded_world.hold(7, 8, 30, expires_in_ms=20)
            opened += 1
            funded_world.shard.statuses([opening_record(funded_world.id(), opened)])

    with funded_world.persister():
        traffic = threading.Thread(target=act)
        traffic.start()
        try:
            with watching(funded_world, every_s=0.02, full_s=0.5) as told:
                time.sleep(LOAD_S)
                funded_world.until(lambda: told.complete(Kind.FULL) > 2 and told.complete(Kind.RECENT) > 5)
        finally:
            done.set()
            traffic.join()
    assert [it for run in told for it in run.new] == []
    assert [run.incomplete for run in told if run.incomplete] == []
    assert opened > 1010


def test_the_command(funded_world: LedgerWorld) -> None:
    """A process of its own, with its metrics, beside the persister that it starts."""
    edit_wallet(funded_world, 3, available=5)
    urls = {"HOTLEDGER_REDIS_URL": funded_world.redis_url, "HOTLEDGER_POSTGRES_URL": funded_world.postgres_url}
    words = ("reconcile", "--watch", "--every-s", "0.1", "--metrics-port", "0", "--json")
    with started(*words, environment=urls) as process:
        assert process.stderr is not None
        page = next(line.split()[-1] for line in process.stderr if line.startswith("metrics:"))
        threading.Thread(target=process.stderr.read, daemon=True).start()

        def metrics() -> str:
            with urllib.request.urlopen(page) as reply:
                text: str = reply.read().decode()
                return text

        wait_for(lambda: 'hotledger_reconcile_drift{shard="0"} 1.0' in metrics())
        wait_for(lambda: 'hotledger_reconcile_runs_total{complete="true",kind="recent",shard="0"}' in metrics())
        assert 'hotledger_reconcile_drift_found_total{check="redis",shard="0"} 1.0' in metrics()
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        printed = orjson.loads(process.stdout.read().splitlines()[-1])
        assert process.wait(30) == 0
    assert printed["open_drift"] == 1
    assert printed["runs"]["full"] == 1
