"""Reconciliation: silent on a good ledger, also under traffic; loud about every kind of damage."""

from __future__ import annotations

import threading
import time

import pytest

from engine.errors import Unavailable
from engine.keys import ShardKeys
from engine.wire import WALLET
from persister.reconcile import reconcile
from persister.report import MAX_DIFFERENCES
from tests.fixtures.ledger import LedgerWorld
from tests.fixtures.shard import opening_record

KEYS = ShardKeys(0)
ALL = {
    "conservation", "balances", "versions", "sequences", "events", "transfers", "overdrafts", "holds", "details",
    "chain", "redis",
}  # fmt: skip


def failed(world: LedgerWorld) -> set[str]:
    return {check.name for check in world.reconcile().checks if not check.ok}


def test_a_good_ledger(funded_world: LedgerWorld) -> None:
    funded_world.pay_with_details(1, 2, "ref", {"k": [1]})
    funded_world.drain()
    report = funded_world.reconcile()
    assert report.ok
    assert report.total == 0
    assert report.differences == []
    assert {check.name for check in report.checks} == ALL
    assert report.chain == funded_world.one("select encode(chain, 'hex') from shard_state")
    checked = {check.name: check.checked for check in report.checks}
    assert checked["conservation"] == funded_world.one("select count(*) from ledger_entry")
    assert checked["chain"] == funded_world.one("select count(*) from journal_batch")
    assert checked["details"] == 1
    assert checked["redis"] >= 21


def test_an_empty_ledger(world: LedgerWorld) -> None:
    world.drain()
    world.assert_proved()


def test_no_false_alarm_under_traffic(funded_world: LedgerWorld) -> None:
    done, opened = threading.Event(), 1000

    def pay() -> None:
        nonlocal opened
        while not done.is_set():
            funded_world.pay(200, batch=50)
            opened += 1
            funded_world.shard.statuses([opening_record(funded_world.id(), opened)])
            time.sleep(0.001)

    with funded_world.persister():
        traffic = threading.Thread(target=pay)
        traffic.start()
        try:
            for _ in range(8):
                report = funded_world.reconcile()
                assert report.ok, report.differences[:5]
        finally:
            done.set()
            traffic.join()
    assert opened > 1010


@pytest.mark.parametrize(
    ("statements", "checks"),
    [
        ("update ledger_entry set amount = amount + 1 where wallet_id = 3 and version = 4",
         {"conservation", "balances", "versions", "transfers", "chain"}),
        ("update ledger_entry set available_after = available_after - 1 where wallet_id = 3 and version = 4",
         {"versions", "chain"}),
        ("update ledger_entry set at = at + interval '1 ms' where wallet_id = 3 and version = 4",
         {"transfers", "chain"}),
        ("delete from ledger_entry where wallet_id = 3 and version = 4",
         {"conservation", "balances", "versions", "transfers", "chain"}),
        ("update wallet_balance set available = available + 5 where wallet_id = 3", {"balances"}),
        ("update wallet_balance set available = available - 5, locked = 5 where wallet_id = 3", {"balances", "holds"}),
        ("delete from wallet_balance where wallet_id = 3", {"balances"}),
        ("update transfer set amount = amount + 1 where sequence = 100", {"transfers", "chain"}),
        ("update transfer set id = gen_random_uuid() where sequence = 100", {"events", "chain"}),
        ("update transfer set details_digest = 5 where sequence = 100", {"details", "chain"}),
        ("delete from transfer where sequence = 100", {"events", "transfers", "chain"}),
        ("insert into transfer select gen_random_uuid(), shard, 9999, kind, debit_wallet_id, 90, credit_wallet_id, "
         "91, amount, 0, at from transfer where sequence = 100", {"events", "transfers", "chain"}),
        ("update journal_event set kind = 1 where sequence = 100", {"events", "chain"}),
        ("delete from journal_event where sequence = 100", {"sequences", "events", "chain"}),
        ("delete from journal_event where sequence = 342", {"sequences", "events", "chain"}),
        ("delete from journal_batch where last_sequence = 141", {"sequences", "chain"}),
        ("update journal_batch set journal_hash = decode(repeat('a', 40), 'hex') where last_sequence = 41", {"chain"}),
        ("update journal_batch set chain = sha256('x'::bytea) where last_sequence = 342", {"chain"}),
        ("update shard_state set sequence = 300", {"sequences", "redis"}),
        ("update wallet set overdraft_limit = 5 where id = 3", {"chain", "redis"}),
        ("update wallet set flags = 1 where id = 3", {"chain", "redis"}),
        ("update wallet set currency = 'EUR' where id = 3", {"conservation", "events", "chain", "redis"}),
        ("delete from wallet where id = 3",
         {"conservation", "balances", "transfers", "events", "chain", "redis"}),
        ("update wallet set overdraft_limit = 0, flags = 0 where flags = 1", {"overdrafts", "chain", "redis"}),
        ("update transfer_detail set reference = 'other'", {"details"}),
        ("update transfer_detail set metadata = '{\"k\":2}'", {"details"}),
        ("delete from transfer_detail", {"details"}),
        ("insert into transfer_detail values (gen_random_uuid(), 'stray', null)", {"details"}),
    ],
)  # fmt: skip
def test_every_edit_of_the_ledger_is_found(
    funded_world: LedgerWorld, monkeypatch: pytest.MonkeyPatch, statements: str, checks: set[str]
) -> None:
    """By exactly the checks that it touches: no check answers for another."""
    monkeypatch.setattr("persister.live.PERSISTED_TIMEOUT_S", 0.05)
    funded_world.pay_with_details(1, 2, "ref", {"k": 1})
    funded_world.drain()
    funded_world.tamper(statements)
    assert failed(funded_world) == checks


def test_an_edit_that_balances_is_found_by_the_chain(funded_world: LedgerWorld) -> None:
    """A payment that became a plain transfer in both places that say so: nothing but the chain knows."""
    funded_world.tamper("update transfer set kind = 1 where sequence = 100;"
                        "update journal_event set kind = 1 where sequence = 100")  # fmt: skip
    report = funded_world.reconcile()
    assert {check.name for check in report.checks if not check.ok} == {"chain"}
    assert [difference.subject for difference in report.differences] == ["journal entry 141"]


def test_differences_are_counted_and_kept_up_to_a_bound(funded_world: LedgerWorld) -> None:
    with funded_world.persister():
        funded_world.pay(1500)
        funded_world.until_persisted()
    funded_world.tamper("update transfer set at = at + interval '1 ms'")
    report = funded_world.reconcile()
    transfers = next(check for check in report.checks if check.name == "transfers")
    assert transfers.total == 2 * funded_world.one("select count(*) from transfer") > MAX_DIFFERENCES
    assert len(transfers.differences) == MAX_DIFFERENCES


class TestRedis:
    def edit(self, world: LedgerWorld, **changes: int) -> None:
        wallet = world.shard.wallet(3) | changes
        world.redis.set(KEYS.wallet(3), WALLET.struct.pack(*wallet.values()))

    @pytest.mark.parametrize(
        ("changes", "found"),
        [
            ({"available": 5}, "available 5"),
            ({"version": 2}, "version 2"),
            ({"version": 9999}, "version"),
            ({"overdraft_limit": 1}, "overdraft_limit 1"),
            ({"flags": 1}, "flags 1"),
            ({"currency": b"EUR\0\0\0\0\0"}, "EUR"),
        ],
    )
    def test_an_edited_wallet(self, funded_world: LedgerWorld, changes: dict[str, int], found: str) -> None:
        self.edit(funded_world, **changes)
        report = funded_world.reconcile()
        assert {difference.check for difference in report.differences} == {"redis"}
        assert all(difference.subject.startswith("wallet 3") for difference in report.differences)
        assert any(found in " ".join(difference) for difference in report.differences)

    def test_a_missing_wallet(self, funded_world: LedgerWorld) -> None:
        funded_world.redis.delete(KEYS.wallet(3))
        assert [d[1:3] for d in funded_world.reconcile().differences] == [("wallet 3", "Redis does not have it")]

    def test_a_wallet_that_the_ledger_does_not_know(self, funded_world: LedgerWorld) -> None:
        funded_world.redis.copy(KEYS.wallet(3), KEYS.wallet(4711))
        assert [d[1:3] for d in funded_world.reconcile().differences] == [("wallet 4711", "Redis has it")]

    def test_a_damaged_wallet_does_not_hide_the_others(self, funded_world: LedgerWorld) -> None:
        funded_world.redis.set(KEYS.wallet(3), b"damaged")
        funded_world.redis.delete(KEYS.wallet(7))
        assert sorted(d.subject for d in funded_world.reconcile().differences) == ["wallet 3", "wallet 7"]

    def test_a_closed_shard(self, funded_world: LedgerWorld) -> None:
        funded_world.shard.call("hotledger_close")
        assert [d.subject for d in funded_world.reconcile().differences] == ["the shard"]

    def test_a_ledger_that_stands_still(self, funded_world: LedgerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("persister.live.PERSISTED_TIMEOUT_S", 0.05)
        funded_world.pay(1)
        assert [d.subject for d in funded_world.reconcile().differences] == ["the ledger"]

    def test_redis_away(self, funded_world: LedgerWorld) -> None:
        with pytest.raises(Unavailable):
            reconcile("unix:///nowhere", funded_world.postgres_url)
