"""doctor: green on a healthy system; and of each trouble, how bad it is and what to do. It changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engine.keys import ShardKeys
from engine.wire import WALLET
from gateway.doctor import Diagnosis, Level, examine
from persister.opening import Step
from persister.reconcile import reconcile
from tests.fixtures.cli import Cli
from tests.fixtures.ledger import LedgerWorld
from tests.fixtures.shard import OUTSIDE, changed

NOWHERE = {"redis": "unix:///nowhere", "postgres": "postgresql:///x?host=/nowhere"}


def look(world: LedgerWorld, redis_url: str | None = None, postgres_url: str | None = None) -> Diagnosis:
    return examine(redis_url or world.redis_url, postgres_url or world.postgres_url, 0, None)


def found(diagnosis: Diagnosis) -> dict[str, Level]:
    return {finding.about: finding.level for finding in diagnosis.findings}


@contextmanager
def healthy(world: LedgerWorld) -> Iterator[None]:
    """With a persister, and reconciled."""
    with world.persister():
        world.until_persisted()
        assert reconcile(world.redis_url, world.postgres_url, note_it=True).ok
        yield


def test_a_healthy_system(funded_world: LedgerWorld) -> None:
    with healthy(funded_world):
        diagnosis = look(funded_world)
        assert diagnosis.findings == []
        assert diagnosis.step is Step.SERVE
        assert diagnosis.redis.lag_ms == 0
        cli = command(funded_world)
        printed = cli.json("doctor")
        shown = cli.done("doctor").out
    facts = printed["facts"]
    assert printed["level"] == "green"
    assert (facts["redis_sequence"], facts["ledger_sequence"], facts["lag_records"]) == (341, 341, 0)
    assert (facts["open"], facts["persister_leads"], facts["reconciler_runs"]) == (True, True, False)
    assert (facts["append_only"], facts["appendfsync"], facts["fsync"]) == (True, "always", True)
    assert facts["max_backlog"] == 1_000_000
    assert facts["last_full_reconciliation"]["differences"] == 0
    assert "GREEN" in shown
    assert "power loss" in facts["accepted_survives"]


def command(world: LedgerWorld, **urls: str) -> Cli:
    return Cli(
        environment={
            "HOTLEDGER_REDIS_URL": urls.get("redis", world.redis_url),
            "HOTLEDGER_POSTGRES_URL": urls.get("postgres", world.postgres_url),
        }
    )


@pytest.mark.parametrize("away", [{"redis"}, {"postgres"}, {"redis", "postgres"}])
def test_servers_that_are_away(funded_world: LedgerWorld, away: set[str]) -> None:
    urls = {name: NOWHERE[name] for name in away}
    ended = command(funded_world, **urls)("doctor", "--json")
    assert ended.status == 8, ended
    levels = {finding["about"]: finding["level"] for finding in ended.json["findings"]}
    assert {about for about in levels if about in ("redis", "postgres")} == away
    if away == {"redis"}:
        assert ended.json["facts"]["ledger_sequence"] == 341
    if away == {"postgres"}:
        assert ended.json["facts"]["redis_sequence"] == 341


def test_a_shard_that_nobody_opened(funded_world: LedgerWorld) -> None:
    funded_world.shard.call("hotledger_close")
    diagnosis = look(funded_world)
    assert found(diagnosis).items() >= {"shard": Level.RED, "persister": Level.AMBER}.items()
    assert diagnosis.step is Step.OPEN
    assert not funded_world.is_open(), "it changes nothing"


def test_no_library(funded_world: LedgerWorld) -> None:
    funded_world.redis.execute_command("FUNCTION", "FLUSH")
    assert found(look(funded_world))["redis"] is Level.RED
    assert funded_world.redis.execute_command("FUNCTION", "LIST") == []


def test_no_schema(valkey_url: str, postgres_url: str) -> None:
    world = LedgerWorld(valkey_url, postgres_url)
    world.tamper("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    diagnosis = look(world)
    assert found(diagnosis)["postgres"] is Level.RED
    world.redis.close()


def test_amber(funded_world: LedgerWorld) -> None:
    """What needs a look, each by itself."""
    funded_world.hold(OUTSIDE, 3, 900, expires_in_ms=600_000)
    with funded_world.persister():
        funded_world.until_persisted()
        assert found(look(funded_world)) == {"reconciliation": Level.AMBER}
        reconcile(funded_world.redis_url, funded_world.postgres_url, note_it=True)
        funded_world.tamper("update open_hold set expires_at_ms = 5, at = at - interval '2 days', purpose = 2")
        assert found(look(funded_world)) == {"holds": Level.AMBER, "pending": Level.AMBER}
        ended = command(funded_world)("doctor")
        assert ended.status == 7
        assert "AMBER: see above." in ended.out


def test_drift(funded_world: LedgerWorld) -> None:
    key = ShardKeys(0).wallet(3)
    funded_world.redis.set(key, changed(WALLET, funded_world.redis.get(key), available=5))
    with funded_world.persister():
        reconcile(funded_world.redis_url, funded_world.postgres_url, note_it=True)
        diagnosis = look(funded_world)
    assert found(diagnosis) == {"drift": Level.RED}
    assert "wallet 3" in diagnosis.findings[0].what


def test_a_backlog(funded_world: LedgerWorld) -> None:
    funded_world.shard.call("hotledger_close")
    with funded_world.persister(max_backlog=100):
        funded_world.until_persisted()
    funded_world.pay(95, batch=95)
    diagnosis = look(funded_world)
    assert found(diagnosis)["backlog"] is Level.RED
    assert diagnosis.redis.lag_ms is not None


class TestHistoriesThatStopped:
    """Which side has what, and what each way out would lose."""

    def remedy(self, diagnosis: Diagnosis) -> str:
        [shard] = [finding for finding in diagnosis.findings if finding.about == "shard"]
        assert shard.level is Level.RED
        return shard.remedy

    def test_another_history(self, funded_world: LedgerWorld) -> None:
        funded_world.tamper(
            "update journal_batch set journal_hash = decode(repeat('ab', 20), 'hex') where last_sequence > 141;"
            "update shard_state set journal_hash = decode(repeat('ab', 20), 'hex')"
        )
        diagnosis = look(funded_world)
        assert diagnosis.mismatch
        assert "histories differ" in diagnosis.mismatch
        assert diagnosis.only_in_redis == 200
        remedy = self.remedy(diagnosis)
        assert (
            "`hotledger recover --discard-redis`: keeps the ledger; loses what only Redis has: records: 200." in remedy
        )
        assert "backup" in remedy

    def test_another_deployment(self, funded_world: LedgerWorld) -> None:
        funded_world.tamper("update deployment set id = gen_random_uuid(), key_fingerprint = key_fingerprint")
        diagnosis = examine(funded_world.redis_url, funded_world.postgres_url, 0, None)
        assert "nothing is lost" in self.remedy(diagnosis)

    def test_another_digest_key(self, funded_world: LedgerWorld) -> None:
        diagnosis = examine(funded_world.redis_url, funded_world.postgres_url, 0, b"another key of 16 bytes")
        assert "HOTLEDGER_DIGEST_KEY" in self.remedy(diagnosis)
