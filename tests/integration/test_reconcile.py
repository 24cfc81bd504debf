"""Reconciliation: silent on a good ledger, also under traffic; loud about every kind of damage."""

from __future__ import annotations

import struct
import threading
import time
from uuid import UUID

import pytest

from engine.domain.transfer import Kind
from engine.errors import Unavailable
from engine.keys import ShardKeys
from engine.wire import HOLD, LAYOUT_VERSION, USAGE, WALLET
from persister.reconcile import reconcile
from persister.report import MAX_DIFFERENCES
from tests.fixtures.journal import id_of
from tests.fixtures.ledger import LedgerWorld
from tests.fixtures.shard import OUTSIDE, changed, opening_record, request_record, tier_limits

KEYS = ShardKeys(0)
ALL = {
    "conservation", "balances", "versions", "sequences", "events", "transfers", "states", "overdrafts", "holds",
    "open_holds", "hold_changes", "refunds", "details", "chain", "heads", "redis",
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


def test_no_false_alarm_under_traffic_of_every_kind(funded_world: LedgerWorld) -> None:
    done = threading.Event()

    def act() -> None:
        while not done.is_set():
            funded_world.do_everything()
            funded_world.hold(7, 8, 30, expires_in_ms=20)

    with funded_world.persister():
        traffic = threading.Thread(target=act)
        traffic.start()
        try:
            for _ in range(8):
                report = funded_world.reconcile()
                assert report.ok, report.differences[:5]
        finally:
            done.set()
            traffic.join()
    assert funded_world.one("select count(*) from hold_change where kind = 11") > 0


class TestOverdrafts:
    """What takes a wallet below its limit, and what only looks like it."""

    def empty(self, world: LedgerWorld, wallet: int) -> int:
        """Leave nothing but a top-up of 100, which is spent too; returns its id."""
        top_up = world.move(Kind.TOP_UP, OUTSIDE, wallet, 100)
        world.move(Kind.WITHDRAWAL, wallet, OUTSIDE, world.shard.wallet(wallet)["available"])
        return top_up

    def test_a_limit_that_was_lowered(self, funded_world: LedgerWorld) -> None:
        self.empty(funded_world, 3)
        funded_world.change_wallet(Kind.SET_OVERDRAFT_LIMIT, 3, 500)
        funded_world.move(Kind.TRANSFER, 3, 4, 400)
        funded_world.change_wallet(Kind.SET_OVERDRAFT_LIMIT, 3, 300)
        funded_world.move(Kind.TRANSFER, 4, 3, 10)
        funded_world.drain()
        funded_world.assert_proved()

    @pytest.mark.parametrize("debt_first", [0, 1, None])
    def test_a_chargeback(self, funded_world: LedgerWorld, debt_first: int | None) -> None:
        if debt_first is not None:
            funded_world.set_limits(7, debt_first=debt_first)
            funded_world.change_wallet(Kind.SET_TIER, 3, 7)
        top_up = self.empty(funded_world, 3)
        funded_world.refund(top_up, 60, Kind.CHARGEBACK)
        funded_world.refund(top_up, 40, Kind.CHARGEBACK)
        funded_world.move(Kind.TRANSFER, 4, 3, 30)
        if debt_first == 0:
            # Their debt is set aside: what comes in may be spent.
            funded_world.move(Kind.TRANSFER, 3, 4, 20)
            funded_world.change_hold(Kind.VOID, funded_world.hold(3, 4, 10))
        else:
            refused = request_record(funded_world.id(), Kind.TRANSFER, 3, 4, 20)
            assert funded_world.shard.statuses([refused]) == ["INSUFFICIENT_FUNDS"]
        funded_world.drain()
        funded_world.assert_proved()

    @pytest.mark.parametrize("kind", [Kind.TRANSFER, Kind.HOLD])
    def test_what_a_redis_without_the_rule_would_have_done(self, funded_world: LedgerWorld, kind: Kind) -> None:
        """The ledger takes what was decided, and the check says that it was wrong."""
        self.empty(funded_world, 3)
        wallet = funded_world.redis.get(KEYS.wallet(3))
        funded_world.redis.set(KEYS.wallet(3), changed(WALLET, wallet, overdraft_limit=50))
        if kind is Kind.HOLD:
            funded_world.hold(3, 4, 50)
        else:
            funded_world.move(kind, 3, 4, 50)
        funded_world.drain()
        assert failed(funded_world) == {"overdrafts", "redis"}

    def test_a_debt_that_was_set_aside_has_a_bound(self, funded_world: LedgerWorld) -> None:
        funded_world.set_limits(7, debt_first=0)
        funded_world.change_wallet(Kind.SET_TIER, 3, 7)
        funded_world.refund(self.empty(funded_world, 3), 100, Kind.CHARGEBACK)
        packed = funded_world.redis.get(KEYS.wallet(3))
        usage = changed(USAGE, packed[WALLET.size :], debt=150)
        funded_world.redis.set(KEYS.wallet(3), packed[: WALLET.size] + usage)
        funded_world.move(Kind.TRANSFER, 3, 4, 50)
        funded_world.drain()
        assert failed(funded_world) == {"overdrafts"}


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
        ("update wallet set overdraft_limit = 5 where id = 3", {"states", "chain"}),
        ("update wallet set flags = 1 where id = 3", {"states", "chain"}),
        ("update wallet set currency = 'EUR' where id = 3", {"conservation", "events", "chain", "redis"}),
        ("delete from wallet where id = 3",
         {"conservation", "balances", "transfers", "events", "chain", "redis"}),
        ("update wallet set overdraft_limit = 0, flags = 0 where flags = 1", {"overdrafts", "states", "chain"}),
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


@pytest.fixture
def busy_world(funded_world: LedgerWorld) -> LedgerWorld:
    """A ledger with rows in every table, and four open holds."""
    funded_world.do_everything()
    funded_world.drain()
    return funded_world


def of(kind: Kind) -> str:
    """The first event of a kind."""
    return f"sequence = (select min(sequence) from journal_event where kind = {kind:d})"


# The ids of do_everything's holds come after those of its reviews.
PARTLY = "id = (select id from open_hold where captured > 0)"
REVIEWED = "id = (select id from open_hold where review <> 0)"


@pytest.mark.parametrize(
    ("statements", "checks"),
    [
        (f"update hold set amount = amount + 1 where {of(Kind.HOLD)}", {"hold_changes", "chain"}),
        (f"update hold set debit_wallet_id = 9 where {PARTLY}", {"open_holds", "hold_changes", "chain", "redis"}),
        (f"update hold set credit_wallet_id = 9 where {PARTLY}", {"open_holds", "chain", "redis"}),
        (f"update hold set review = 2 where {PARTLY}", {"hold_changes", "chain"}),
        (f"update hold set rule = 2 where {PARTLY}", {"open_holds", "chain"}),
        (f"update hold set expires_at_ms = 5 where {PARTLY}", {"open_holds", "chain", "redis"}),
        (f"update hold set purpose = 1 where {PARTLY}", {"open_holds", "chain", "redis"}),
        (f"update hold set at = at + interval '1 ms' where {PARTLY}", {"events", "open_holds", "chain"}),
        (f"update hold set credit_wallet_id = 4711 where {PARTLY}", {"events", "open_holds", "chain", "redis"}),
        (f"delete from hold where {of(Kind.VOID).replace('min(sequence)', 'min(sequence) - 1')}",
         {"events", "hold_changes", "chain"}),
        (f"update hold_change set amount = amount + 1 where {of(Kind.RAISE_HOLD)}",
         {"versions", "hold_changes", "chain"}),
        (f"update hold_change set amount = 0, released = amount where {of(Kind.CAPTURE)}", {"hold_changes", "chain"}),
        (f"update hold_change set released = released - 1 where {of(Kind.VOID)}",
         {"versions", "hold_changes", "chain"}),
        (f"update hold_change set remaining = remaining + 1 where {of(Kind.RAISE_HOLD)}", {"hold_changes", "chain"}),
        (f"update hold_change set captured = captured + 1 where {of(Kind.CAPTURE)}", {"hold_changes", "chain"}),
        (f"update hold_change set state = 3 where {of(Kind.VOID)}", {"hold_changes", "chain"}),
        (f"update hold_change set review = 1 where {of(Kind.VOID)}", {"hold_changes", "chain"}),
        (f"update hold_change set kind = 11 where {of(Kind.VOID)}", {"events", "hold_changes", "chain"}),
        (f"update hold_change set wallet_version = 999 where {of(Kind.VOID)}", {"transfers", "versions", "chain"}),
        (f"update hold_change set details_digest = 1 where {of(Kind.VOID)}", {"details", "chain"}),
        (f"delete from hold_change where {of(Kind.APPROVE_HOLD)}",
         {"events", "transfers", "open_holds", "chain", "redis"}),
        (f"delete from hold_change where {of(Kind.VOID)}",
         {"events", "transfers", "versions", "details", "open_holds", "chain"}),
        (f"update open_hold set remaining = remaining + 1 where {PARTLY}", {"holds", "open_holds"}),
        (f"update open_hold set captured = captured + 1 where {PARTLY}", {"open_holds"}),
        (f"update open_hold set review = 0 where {REVIEWED}", {"open_holds"}),
        (f"delete from open_hold where {PARTLY}", {"holds", "open_holds"}),
        ("insert into open_hold select gen_random_uuid(), shard, sequence, debit_wallet_id, credit_wallet_id, purpose,"
         f"review, rule, remaining, captured, expires_at_ms, at from open_hold where {PARTLY}",
         {"holds", "open_holds", "redis"}),
        ("update hold_detail set reference = 'other' where reference = 'po-7'", {"details"}),
        ("delete from hold_detail where reference = 'po-7'", {"details"}),
        ("insert into hold_detail values (0, 4711, 'stray', null)", {"details"}),
        (f"update refund set amount = amount + 1 where {of(Kind.REFUND)}", {"refunds", "chain"}),
        (f"update refund set total = total - 1 where {of(Kind.REFUND)}", {"refunds", "chain"}),
        (f"update refund set original_id = gen_random_uuid() where {of(Kind.CHARGEBACK)}", {"refunds", "chain"}),
        (f"update refund set original_id = (select id from transfer where {of(Kind.TRANSFER)}) "
         f"where {of(Kind.CHARGEBACK)}", {"refunds", "chain"}),
        (f"update refund set kind = 5 where {of(Kind.CHARGEBACK)}", {"events", "refunds", "chain"}),
        (f"update transfer set amount = 200 where {of(Kind.CAPTURE)}", {"transfers", "chain"}),
        (f"delete from refund where {of(Kind.CHARGEBACK)}", {"events", "chain"}),
        (f"update wallet_change set value = value + 1 where {of(Kind.SET_OVERDRAFT_LIMIT)}", {"states", "chain"}),
        (f"update wallet_change set kind = 17 where {of(Kind.UNFREEZE)}", {"events", "states", "chain"}),
        (f"update wallet_change set wallet_version = 999 where {of(Kind.SET_TIER)}", {"transfers", "states", "chain"}),
        (f"delete from wallet_change where {of(Kind.CLOSE_WALLET)}", {"events", "transfers", "states", "chain"}),
        ("update wallet_balance set flags = 0 where wallet_id = 12", {"states", "redis"}),
        ("update wallet_balance set tier = 0 where wallet_id = 11", {"states", "redis"}),
        ("update wallet_balance set overdraft_limit = 1 where wallet_id = 12", {"states", "redis"}),
        ("update tier_change set max_amount = 501", {"chain", "redis"}),
        ("delete from tier_change", {"events", "chain", "redis"}),
        ("update transfer_origin set device = 'device 3' where device = 'device 2'", {"chain"}),
        ("update transfer_origin set wallet_id = 2 where device = 'device 2'", {"events", "chain"}),
        ("delete from transfer_origin where device = 'device 2'", {"chain"}),
        ("update transfer_origin set sequence = sequence + 1 where device = 'device 2'", {"events", "chain"}),
    ],
)  # fmt: skip
def test_every_edit_of_the_other_tables_is_found(
    busy_world: LedgerWorld, monkeypatch: pytest.MonkeyPatch, statements: str, checks: set[str]
) -> None:
    monkeypatch.setattr("persister.live.PERSISTED_TIMEOUT_S", 0.05)
    busy_world.tamper(statements)
    assert failed(busy_world) == checks


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
        assert any(found in " ".join(map(str, difference)) for difference in report.differences)

    @pytest.mark.parametrize(
        ("wallet", "changes", "found"),
        [
            (12, {"flags": 6}, "flags 6"),
            (11, {"tier": 8}, "tier 8"),
            (11, {"available": 5}, "available 5"),
            (12, {"overdraft_limit": 1}, "overdraft_limit 1"),
        ],
    )
    def test_an_edited_state(self, busy_world: LedgerWorld, wallet: int, changes: dict[str, int], found: str) -> None:
        """Also where the limits' counters are behind the wallet, and where the ledger has come further."""
        packed = busy_world.redis.get(KEYS.wallet(wallet))
        edited = changed(WALLET, packed[: WALLET.size], **changes) + packed[WALLET.size :]
        busy_world.redis.set(KEYS.wallet(wallet), edited)
        [difference] = busy_world.reconcile().differences
        assert (difference.check, difference.subject.split()[:2]) == ("redis", ["wallet", str(wallet)])
        assert found in difference.found

    @pytest.mark.parametrize(
        ("changes", "found"),
        [
            ({"remaining": 41}, "remaining 41"),
            ({"captured": 21}, "captured 21"),
            ({"review": 1}, "review 1"),
            ({"purpose": 1}, "purpose 1"),
            ({"debit": 9}, "from 9"),
            ({"credit": 9}, "to 9"),
            ({"expires_at_ms": 5}, "expiry 5"),
            ({"state": 1}, f"{LAYOUT_VERSION:02x}01"),
            ({"layout": 9}, "0900"),
        ],
    )
    def test_an_edited_hold(self, busy_world: LedgerWorld, changes: dict[str, int], found: str) -> None:
        hold_id = busy_world.one("select id from open_hold where captured > 0")
        packed = busy_world.redis.hget(KEYS.holds, hold_id.bytes)
        busy_world.redis.hset(KEYS.holds, hold_id.bytes, changed(HOLD, packed, **changes))
        differences = busy_world.reconcile().differences
        assert {difference.check for difference in differences} == {"redis"}
        assert {difference.subject.replace("-", "") for difference in differences} == {f"hold {hold_id.hex}"}
        assert any(found in difference.found for difference in differences)

    def test_holds_that_only_one_side_has(self, busy_world: LedgerWorld) -> None:
        hold_id = busy_world.one("select id from open_hold where captured > 0")
        packed = busy_world.redis.hget(KEYS.holds, hold_id.bytes)
        busy_world.redis.hdel(KEYS.holds, hold_id.bytes)
        busy_world.redis.hset(KEYS.holds, id_of(4711), packed)
        found = {difference[1:4] for difference in busy_world.reconcile().differences}
        assert {(subject, expected) for subject, _, expected in found} == {
            (f"hold {hold_id}", "the ledger has it"),
            (f"hold {UUID(int=4711)}", "the ledger does not know it"),
        }

    def test_a_hold_that_ended(self, busy_world: LedgerWorld) -> None:
        """A capture whose end of the hold Redis forgot."""
        hold_id = busy_world.one("select id from open_hold where captured > 0")
        packed = busy_world.redis.hget(KEYS.holds, hold_id.bytes)
        busy_world.change_hold(Kind.VOID, hold_id.int)
        busy_world.drain()
        busy_world.redis.hset(KEYS.holds, hold_id.bytes, packed)
        [difference] = busy_world.reconcile().differences
        assert (difference.subject, "remaining 0" in difference.expected) == (f"hold {hold_id}", True)

    @pytest.mark.parametrize("deadline", [None, 5])
    def test_a_hold_that_the_sweeper_would_not_find(self, funded_world: LedgerWorld, deadline: int | None) -> None:
        number = funded_world.hold(1, 2, 10, expires_in_ms=600_000)
        funded_world.drain()
        if deadline is None:
            funded_world.redis.zrem(KEYS.due, id_of(number))
        else:
            funded_world.redis.zadd(KEYS.due, {id_of(number): deadline})
        [difference] = funded_world.reconcile().differences
        assert difference[1:3] == (
            f"hold {id_of(number).hex()}", f"Redis: due at {deadline and float(deadline)}",
        )  # fmt: skip

    @pytest.mark.parametrize("key", [KEYS.holds, KEYS.due, KEYS.tiers])
    def test_a_key_of_another_type(self, funded_world: LedgerWorld, key: bytes) -> None:
        funded_world.hold(1, 2, 10, expires_in_ms=600_000)
        funded_world.set_limits(7)
        funded_world.drain()
        funded_world.redis.set(key, b"")
        [difference] = funded_world.reconcile().differences
        assert (difference.check, difference.subject) == (
            "redis", "the tiers" if key == KEYS.tiers else "the holds",
        )  # fmt: skip

    def test_edited_limits(self, funded_world: LedgerWorld) -> None:
        for tier in (7, 8):
            funded_world.set_limits(tier, max_amount=5)
        funded_world.drain()
        funded_world.redis.hset(KEYS.tiers, struct.pack("<H", 7), tier_limits(max_amount=6))
        funded_world.redis.hdel(KEYS.tiers, struct.pack("<H", 8))
        funded_world.redis.hset(KEYS.tiers, struct.pack("<H", 9), tier_limits())
        assert sorted(d.subject for d in funded_world.reconcile().differences) == ["tier 7", "tier 8", "tier 9"]

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
