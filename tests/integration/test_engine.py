"""The engine against a real server: answers, coalescing, deadlines, and what happens to a call when things break."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from engine import (
    CorruptRecord,
    Engine,
    HistoryMismatch,
    HoldState,
    InvalidRequest,
    Kind,
    LedgerBacklog,
    LibraryMismatch,
    OpenWallet,
    OutcomeUnknown,
    Overloaded,
    Refund,
    Review,
    Rule,
    ServerRefused,
    ShardNotOpen,
    Status,
    TierLimits,
    Transfer,
    Unavailable,
    external_wallet_id,
)
from engine.domain.transfer import RequestFlag
from engine.library import LIBRARY_VERSION, library_code
from engine.requests import Claim
from engine.wire import JOURNAL_RECORD, JOURNAL_RECORDS_FIELD
from tests.fixtures.proxy import proxy_to
from tests.fixtures.shard import DEPLOYMENT, ShardDriver


def url_of(shard: ShardDriver) -> str:
    return f"unix://{shard.redis.connection_pool.connection_kwargs['path']}"


async def fund(engine: Engine, *wallets: int, amount_minor: int = 1000) -> None:
    await engine.open_wallets([OpenWallet(wallet, 1, "USD") for wallet in wallets])
    for wallet in wallets if amount_minor else ():
        assert (await engine.top_up(wallet, amount_minor, key=f"fund-{wallet}")).posted


async def test_a_first_payment(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        opened = await engine.open_wallet(1, owner_id=7, currency="USD")
        assert (opened.status, opened.sequence, opened.replayed) == (Status.POSTED, 2, False)
        await engine.open_wallet(2, owner_id=8, currency="USD", overdraft_limit_minor=50)
        assert (await engine.top_up(1, 1000, key="salary")).posted
        paid = await engine.pay(1, 2, 300, key="order-17", reference="INV-1", metadata={"table": 4})
        assert paid[:5] == (Status.POSTED, 5, False, 700, 300)
        again = await engine.pay(1, 2, 300, key="order-17", reference="INV-1", metadata={"table": 4})
        assert again == paid._replace(replayed=True)
        assert isinstance(again.transfer_id, UUID)
        taken = await engine.withdraw(2, 350, key="cash")
        assert (taken.status, taken.debit_available_minor, taken.credit_available_minor) == ("POSTED", -50, -650)
        assert (await engine.withdraw(2, 1, key="more")).status is Status.INSUFFICIENT_FUNDS
        balance = await engine.balance(2)
        assert balance is not None
        assert balance._asdict() == {
            "wallet_id": 2,
            "currency": "USD",
            "available_minor": -50,
            "locked_minor": 0,
            "version": 3,
            "overdraft_limit_minor": 50,
            "flags": 0,
            "tier": 0,
        }
        found = await engine.lookup(key="order-17")
        assert found == again
        assert (await engine.lookup(id=uuid4())).status is Status.NOT_APPLIED


async def test_other_content_under_a_key(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1, 2)
        await engine.transfer(1, 2, 10, key="k", reference="a")
        statuses = [
            (await engine.transfer(1, 2, 11, key="k", reference="a")).status,
            (await engine.pay(1, 2, 10, key="k", reference="a")).status,
            (await engine.transfer(2, 1, 10, key="k", reference="a")).status,
            (await engine.transfer(1, 2, 10, key="k", reference="b")).status,
            (await engine.transfer(1, 2, 10, key="k")).status,
            (await engine.transfer(1, 2, 10, key="k", reference="a", metadata={})).status,
            (await engine.transfer(1, 2, 10, key="k", reference="a", currency="USD")).status,
            (await engine.open_wallet(1, 2, "USD")).status,
        ]
        assert [status.removeprefix("EXISTS_WITH_DIFFERENT_") for status in statuses] == [
            "AMOUNT", "KIND", "DEBIT", "DETAILS", "DETAILS", "DETAILS", "CURRENCY", "OWNER",
        ]  # fmt: skip


async def test_metadata_is_the_same_content_in_any_order(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1, 2)
        await engine.transfer(1, 2, 10, key="k", metadata={"a": 1, "b": [2]})
        assert (await engine.transfer(1, 2, 10, key="k", metadata={"b": [2], "a": 1})).replayed


async def test_concurrent_calls_share_batches_and_keep_every_unit(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, *range(1, 11), amount_minor=10**6)
        before = engine._batcher.batches_sent
        outcomes = await asyncio.gather(*(engine.transfer(2 + n % 9, 1, 10, key=f"k{n}") for n in range(3000)))
        assert all(outcome.posted for outcome in outcomes)
        assert len({outcome.sequence for outcome in outcomes}) == 3000
        assert engine._batcher.batches_sent - before < 300
        merchant = await engine.balance(1)
        assert merchant is not None
        assert merchant.available_minor == 10**6 + 30_000


async def test_bulk_keeps_order_and_checks_all_before_any(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1, 2, amount_minor=5000)
        requests: list[Any] = [Transfer(1, 2, 1, key=f"k{n}") for n in range(2500)]
        requests.insert(1000, OpenWallet(3, 1, "EUR"))
        outcomes = await engine.post(requests)
        assert [outcome.sequence for outcome in outcomes] == list(
            range(outcomes[0].sequence, outcomes[0].sequence + 2501)
        )
        before = await engine.balance(1)
        with pytest.raises(InvalidRequest, match="amount_minor must be an integer from 1 to 9007199254740991, not 0"):
            await engine.post([Transfer(1, 2, 1, key="new"), Transfer(1, 2, 0, key="bad")])
        assert await engine.balance(1) == before
        assert await engine.post([]) == []


BAD_CALLS: list[tuple[str, dict[str, Any]]] = [
    ("amount_minor", {"amount_minor": 0}),
    ("amount_minor", {"amount_minor": -1}),
    ("amount_minor", {"amount_minor": 2**53}),
    ("amount_minor", {"amount_minor": 2**63}),
    ("amount_minor", {"amount_minor": 1.0}),
    ("amount_minor", {"amount_minor": True}),
    ("amount_minor", {"amount_minor": "1"}),
    ("debit", {"debit": 0}),
    ("debit", {"debit": 2**63}),
    ("debit", {"debit": None}),
    ("credit", {"credit": 2**64}),
    ("key", {"key": ""}),
    ("key", {"key": "k" * 256}),
    ("key", {"key": "\ud800"}),
    ("key", {"key": None}),
    ("key", {"id": uuid4()}),
    ("id", {"key": None, "id": UUID(int=0)}),
    ("id", {"key": None, "id": "nonsense"}),
    ("currency", {"currency": "usd"}),
    ("currency", {"currency": "US"}),
    ("currency", {"currency": "DOLLARSSS"}),
    ("reference", {"reference": ""}),
    ("reference", {"reference": "r" * 65}),
    ("reference", {"reference": "\0"}),
    ("metadata", {"metadata": {"k": "v" * 2048}}),
    ("metadata", {"metadata": {"k": object()}}),
    ("metadata", {"metadata": {"k": "\0"}}),
    ("metadata", {"metadata": [1]}),
    ("timeout_ms", {"timeout_ms": 0}),
    ("timeout_ms", {"timeout_ms": 10**9}),
]


@pytest.mark.parametrize(("field", "changes"), BAD_CALLS)
async def test_bad_input_names_the_field_and_changes_nothing(
    shard: ShardDriver, field: str, changes: dict[str, Any]
) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1, 2)
        before = shard.image()
        call: dict[str, Any] = {"debit": 1, "credit": 2, "amount_minor": 10, "key": "k"} | changes
        with pytest.raises(InvalidRequest) as caught:
            await engine.transfer(**call)
        assert caught.value.field == field
        assert shard.image() == before


async def test_edges_of_numbers_come_back_exact(shard: ShardDriver) -> None:
    most, last_id = 2**53 - 1, 2**63 - 1
    async with Engine.connect(url_of(shard)) as engine:
        await engine.open_wallets([OpenWallet(last_id, last_id, "USD"), OpenWallet(last_id - 1, 0, "USD")])
        outcome = await engine.top_up(last_id, most, key="all")
        assert (outcome.debit_available_minor, outcome.credit_available_minor) == (-most, most)
        outcome = await engine.transfer(last_id, last_id - 1, most, key="move")
        assert (outcome.debit_available_minor, outcome.credit_available_minor) == (0, most)
        assert [b and b.available_minor for b in await engine.balances([last_id, last_id - 1, 5])] == [0, most, None]
        assert (await engine.top_up(last_id, 1, key="one more")).status is Status.BALANCE_OUT_OF_RANGE


async def test_wallets_that_do_not_exist(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1)
        assert (await engine.top_up(9, 1, key="a")).status is Status.CREDIT_WALLET_NOT_FOUND
        assert (await engine.withdraw(9, 1, key="b")).status is Status.DEBIT_WALLET_NOT_FOUND
        assert (await engine.top_up(9, 1, key="c", currency="JPY")).status is Status.DEBIT_WALLET_NOT_FOUND
        assert await engine.balance(9) is None
        with pytest.raises(InvalidRequest):
            await engine.open_wallet(-5, 1, "USD")


async def test_a_closed_shard_is_waited_for_within_the_deadline(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1, 2)
        shard.call("hotledger_close")
        with pytest.raises(ShardNotOpen):
            await engine.transfer(1, 2, 1, key="a", timeout_ms=150)
        waiting = asyncio.ensure_future(engine.transfer(1, 2, 1, key="b"))
        await asyncio.sleep(0.1)
        shard.open()
        assert (await waiting).posted
        assert (await engine.lookup(key="a")).status is Status.NOT_APPLIED


async def test_a_flushed_library_is_loaded_again(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1, 2)
        shard.redis.execute_command("FUNCTION", "FLUSH")
        waiting = asyncio.ensure_future(engine.transfer(1, 2, 1, key="a"))
        await asyncio.sleep(0.2)
        assert not waiting.done(), "a reloaded library must not take payments before a persister opened the shard"
        shard.open()
        assert (await waiting).posted


async def test_backlog_is_unavailable_and_a_status_in_bulk(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1, 2)
        shard.open(max_backlog=shard.meta()["sequence"] + 1)
        assert [o.status for o in await engine.post([Transfer(1, 2, 1, key=f"k{n}") for n in range(2)])] == [
            "POSTED",
            "LEDGER_BACKLOG",
        ]
        with pytest.raises(LedgerBacklog):
            await engine.transfer(1, 2, 1, key="more")
        with pytest.raises(LedgerBacklog):
            await engine.open_wallet(3, 1, "USD")
        assert (await engine.transfer(1, 2, 1, key="k0")).replayed, "what was decided is answered even then"


async def test_a_full_queue_is_overloaded(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard), max_queued=1024) as engine:
        await fund(engine, 1, 2, amount_minor=10**6)
        results = await asyncio.gather(
            *(engine.transfer(1, 2, 1, key=f"k{n}") for n in range(6000)), return_exceptions=True
        )
        posted = [result for result in results if not isinstance(result, BaseException)]
        refused = [result for result in results if isinstance(result, BaseException)]
        assert posted
        assert refused
        assert all(isinstance(result, Overloaded) for result in refused)
        balance = await engine.balance(2)
        assert balance is not None
        assert balance.available_minor == 10**6 + len(posted)


async def test_a_cut_between_send_and_reply_is_retried_and_applied_once(shard: ShardDriver, tmp_path: Path) -> None:
    async with proxy_to(url_of(shard).removeprefix("unix://"), tmp_path) as (proxy, url), Engine.connect(url) as engine:
        await fund(engine, 1, 2, amount_minor=10**6)
        for cut in range(5):
            proxy.swallow_replies = True
            seen = proxy.requests_seen
            calls = [asyncio.ensure_future(engine.transfer(1, 2, 1, key=f"{cut}-{n}")) for n in range(50)]
            while proxy.requests_seen == seen:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.05)
            proxy.cut()
            proxy.swallow_replies = False
            outcomes = await asyncio.gather(*calls)
            assert all(outcome.posted for outcome in outcomes)
            assert any(outcome.replayed for outcome in outcomes), "the lost batch was decided, so its retry is a replay"
            assert len({outcome.sequence for outcome in outcomes}) == 50
        balance = await engine.balance(2)
        assert balance is not None
        assert balance.available_minor == 10**6 + 250


async def test_no_reply_by_the_deadline_is_unknown_and_lookup_tells(shard: ShardDriver, tmp_path: Path) -> None:
    async with proxy_to(url_of(shard).removeprefix("unix://"), tmp_path) as (proxy, url), Engine.connect(url) as engine:
        await fund(engine, 1, 2)
        proxy.swallow_replies = True
        with pytest.raises(OutcomeUnknown) as caught:
            await engine.transfer(1, 2, 5, key="k", timeout_ms=100)
        async with Engine.connect(url_of(shard)) as other:
            found = await other.lookup(key="k")
            assert found.posted
            assert caught.value.transfer_ids == [found.transfer_id]
        proxy.swallow_replies = False
        proxy.cut()
        assert (await engine.transfer(1, 2, 5, key="k")).replayed


async def test_a_server_that_stalls_past_the_deadline_never_applies_late(shard: ShardDriver) -> None:
    """The request lies in the server's socket while it is busy; when it gets to it, the deadline has passed."""
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1, 2)
        before = await engine.balance(2)
        busy = asyncio.get_running_loop().run_in_executor(
            None, shard.redis.execute_command, "FCALL", "hotledger_touch", 1, shard.keys.tag
        )
        await busy
        shard.redis.execute_command("CLIENT", "PAUSE", 400, "WRITE")
        with pytest.raises(OutcomeUnknown):
            await engine.transfer(1, 2, 5, key="k", timeout_ms=100)
        await asyncio.sleep(0.5)
        assert (await engine.lookup(key="k")).status is Status.NOT_APPLIED
        assert await engine.balance(2) == before
        assert (await engine.transfer(1, 2, 5, key="k")).replayed is False


async def test_an_unreachable_server_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        async with Engine.connect(f"unix://{tmp_path}/none.sock", timeout_ms=200):
            pass


async def test_a_damaged_wallet_fails_its_own_calls_only(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1, 2, 3)
        shard.redis.set(shard.keys.wallet(2), b"rubbish")
        results = await asyncio.gather(
            *(engine.transfer(1, wallet, 1, key=f"{wallet}-{n}") for n in range(10) for wallet in (2, 3)),
            return_exceptions=True,
        )
        assert [type(result) for result in results[::2]] == [CorruptRecord] * 10
        assert all(not isinstance(result, BaseException) and result.posted for result in results[1::2])


async def test_scopes_keep_keys_apart(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard), scope="a") as one, Engine.connect(url_of(shard), scope="b") as two:
        await fund(one, 1, 2)
        assert not (await one.transfer(1, 2, 1, key="k")).replayed
        assert not (await two.transfer(1, 2, 1, key="k")).replayed
        assert (await one.transfer(1, 2, 1, key="k")).replayed


async def test_another_digest_key_is_refused(shard: ShardDriver) -> None:
    with pytest.raises(HistoryMismatch, match="digest key"):
        async with Engine.connect(url_of(shard), digest_key=b"another key of 16+"):
            pass
    async with Engine.connect(url_of(shard), digest_key=DEPLOYMENT):
        pass


async def test_an_evicting_server_is_refused(shard: ShardDriver) -> None:
    shard.redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(ServerRefused, match="allkeys-lru"):
            async with Engine.connect(url_of(shard)):
                pass
    finally:
        shard.redis.config_set("maxmemory-policy", "noeviction")


async def test_library_versions(shard: ShardDriver) -> None:
    async def load(version: int, extra: str = "") -> None:
        code = library_code().replace(f"LIBRARY_VERSION = {LIBRARY_VERSION}", f"LIBRARY_VERSION = {version}") + extra
        shard.redis.execute_command("FUNCTION", "LOAD", "REPLACE", code)

    def loaded() -> str:
        [library] = shard.redis.function_list(library="hotledger", withcode=True)
        return str(library)

    await load(LIBRARY_VERSION, "\n-- other code")
    with pytest.raises(LibraryMismatch, match="other code"):
        async with Engine.connect(url_of(shard)):
            pass
    await load(LIBRARY_VERSION + 1)
    async with Engine.connect(url_of(shard)):
        assert f"LIBRARY_VERSION = {LIBRARY_VERSION + 1}" in loaded(), "a newer version stays"
    await load(LIBRARY_VERSION - 1)
    async with Engine.connect(url_of(shard)):
        assert f"LIBRARY_VERSION = {LIBRARY_VERSION}\\n" in loaded() or library_code() in loaded()


async def test_a_cancelled_call_leaves_the_engine_well(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1, 2)
        calls = [asyncio.ensure_future(engine.transfer(1, 2, 1, key=f"k{n}")) for n in range(20)]
        await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
        assert (await engine.transfer(1, 2, 1, key="after")).posted


async def test_leaving_waits_for_the_calls_in_flight(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1, 2)
        calls = [asyncio.ensure_future(engine.transfer(1, 2, 1, key=f"k{n}")) for n in range(100)]
        await asyncio.sleep(0)
    assert all(call.result().posted for call in calls)
    with pytest.raises(Unavailable, match="closed"):
        await engine.transfer(1, 2, 1, key="late")


async def test_kinds_that_do_not_move_money_are_no_transfers(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        with pytest.raises(InvalidRequest, match="kind"):
            await engine.post([Transfer(1, 2, 1, key="k", kind=Kind.OPEN_WALLET)])
        assert engine.external_wallet("USD") == external_wallet_id("USD", 0)


async def test_many_reads_at_once(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1, 2)
        balances = await asyncio.gather(*(engine.balance(1 + n % 2) for n in range(300)))
        assert all(balance is not None and balance.available_minor == 1000 for balance in balances)


@pytest.mark.parametrize("what", ["balance", "lookup", "top_up"])
async def test_reads_keep_their_deadline_on_a_stalled_server(shard: ShardDriver, tmp_path: Path, what: str) -> None:
    async with proxy_to(url_of(shard).removeprefix("unix://"), tmp_path) as (proxy, url), Engine.connect(url) as engine:
        await fund(engine, 1)
        proxy.swallow_replies = True
        engine._currencies.clear()
        calls: dict[str, Any] = {
            "balance": lambda: engine.balance(1, timeout_ms=150),
            "lookup": lambda: engine.lookup(key="k", timeout_ms=150),
            "top_up": lambda: engine.top_up(1, 5, key="k", timeout_ms=150),
        }
        async with asyncio.timeout(1):
            with pytest.raises(Unavailable):
                await calls[what]()


async def test_bulk_that_was_partly_applied_is_unknown_and_not_unavailable(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1, 2, amount_minor=10**6)
        requests = [Transfer(1, 2, 1, key=f"k{n}") for n in range(8000)]
        sending = asyncio.ensure_future(engine.post(requests, timeout_ms=400))
        while (await engine.lookup(key="k0")).status is not Status.POSTED:
            await asyncio.sleep(0)
        shard.call("hotledger_close")
        with pytest.raises(OutcomeUnknown) as caught:
            await sending
        assert len(caught.value.transfer_ids) == 8000
        shard.open()
        outcomes = await engine.post(requests)
        assert all(outcome.posted for outcome in outcomes)
        assert {outcome.replayed for outcome in outcomes} == {True, False}
        balance = await engine.balance(2)
        assert balance is not None
        assert balance.available_minor == 10**6 + 8000


async def test_external_wallets_are_no_side_of_a_single_transfer(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1, 2)
        outside = engine.external_wallet("USD")
        for debit, credit in ((outside, 1), (1, outside), (-5, 1)):
            with pytest.raises(InvalidRequest):
                await engine.transfer(debit, credit, 1, key="k")
            with pytest.raises(InvalidRequest):
                await engine.pay(debit, credit, 1, key="k")
        for wallet_id, currency in (
            (-7, "USD"),
            (engine.external_wallet("JPY"), "EUR"),
            (external_wallet_id("USD", 1), "USD"),
        ):
            with pytest.raises(InvalidRequest):
                await engine.post([OpenWallet(wallet_id, 0, currency)])


async def test_another_deployment_behind_the_same_address_takes_nothing(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1, 2)
        await engine.transfer(1, 2, 5, key="k")
        shard.redis.delete(shard.keys.meta, shard.keys.journal)
        shard.call("hotledger_initialise", b"another-deploym!", b"another!", 1)
        shard.open()
        with pytest.raises(HistoryMismatch):
            await engine.transfer(1, 2, 5, key="k2")


async def test_a_server_that_is_silent_is_given_up(shard: ShardDriver, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("engine.shard.SOCKET_TIMEOUT_S", 0.2)
    async with proxy_to(url_of(shard).removeprefix("unix://"), tmp_path) as (proxy, url), Engine.connect(url) as engine:
        await fund(engine, 1, 2)
        proxy.swallow_replies = True
        call = asyncio.ensure_future(engine.transfer(1, 2, 1, key="k", timeout_ms=5000))
        await asyncio.sleep(0.3)
        proxy.swallow_replies = False
        outcome = await call
        assert outcome.posted
        assert outcome.replayed, "the first send was decided, and its reply never came"


async def now(engine: Engine, wallet_id: int) -> tuple[int, int]:
    """(available, locked)"""
    balance = await engine.balance(wallet_id)
    assert balance is not None
    return balance.available_minor, balance.locked_minor


async def test_a_hold_and_what_becomes_of_it(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1, 2)
        held = await engine.hold(1, 2, 300, expires_in_ms=60_000, key="order-17")
        assert (held.status, held.amount_minor, held.debit_available_minor) == (Status.POSTED, 300, 700)
        hold_id = held.transfer_id
        assert await now(engine, 1) == (700, 300)
        [found, none] = await engine.find_holds([hold_id, uuid4()])
        assert found is not None
        assert none is None
        assert found[:8] == (hold_id, HoldState.OPEN, Kind.PAYMENT, Review.NONE, 1, 2, 300, 0)
        assert found.expires_at_ms is not None
        assert 0 < found.expires_at_ms - shard.server_ms() <= 60_000
        assert (await engine.raise_hold(hold_id, 50, key="tip")).amount_minor == 50
        part = await engine.capture(hold_id, 100, final=False, key="part", reference="first")
        assert (part.amount_minor, part.debit_available_minor, part.credit_available_minor) == (100, 650, 1100)
        rest = await engine.capture(hold_id, 200)
        assert (rest.amount_minor, rest.debit_available_minor, rest.credit_available_minor) == (200, 700, 1300)
        assert await now(engine, 1) == (700, 0)
        assert (await engine.capture(hold_id, 200)).replayed, "without a key it is the same capture"
        assert (await engine.void(hold_id)).status is Status.HOLD_ALREADY_CAPTURED
        [ended] = await engine.find_holds([hold_id])
        assert ended is not None
        assert (ended.state, ended.remaining_minor, ended.captured_minor) == (HoldState.CAPTURED, 0, 300)
        other = await engine.hold(1, 2, 10, key="order-18")
        assert (await engine.void(other.transfer_id)).amount_minor == 10
        assert (await engine.void(other.transfer_id)).replayed
        assert (await engine.capture(other.transfer_id)).status is Status.HOLD_ALREADY_VOIDED
        assert await engine.find_holds([]) == []


async def test_refunds_of_what_was_paid_and_captured(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1, 2)
        paid = await engine.pay(1, 2, 100, key="p")
        part = await engine.refund(paid.transfer_id, 30, key="r1")
        assert (part.status, part.amount_minor) == (Status.POSTED, 30)
        assert (part.debit_available_minor, part.credit_available_minor) == (1070, 930)
        assert (await engine.refund(paid.transfer_id, 71, key="r2")).status is Status.REFUND_EXCEEDS_TRANSFER
        assert (await engine.refund(paid.transfer_id, key="r3")).amount_minor == 70
        assert (await engine.refund(paid.transfer_id, key="r3")).replayed
        assert (await engine.refund(part.transfer_id, key="r4")).status is Status.NOT_REFUNDABLE
        assert (await engine.refund(uuid4(), key="r5")).status is Status.TRANSFER_NOT_FOUND
        held = await engine.hold(1, 2, 50, key="h")
        assert (await engine.refund(held.transfer_id, key="r6")).status is Status.NOT_REFUNDABLE
        captured = await engine.capture(held.transfer_id, 40)
        assert (await engine.refund(captured.transfer_id, key="r7")).amount_minor == 40
        assert await now(engine, 1) == await now(engine, 2) == (1000, 0)


async def test_a_chargeback_takes_what_is_not_there(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1, 2, amount_minor=0)
        top_up = await engine.top_up(1, 100, key="t")
        await engine.pay(1, 2, 80, key="p")
        assert (await engine.refund(top_up.transfer_id, key="r")).status is Status.INSUFFICIENT_FUNDS
        assert (await engine.chargeback(top_up.transfer_id, key="c")).debit_available_minor == -80
        assert (await engine.pay(1, 2, 1, key="p2")).status is Status.INSUFFICIENT_FUNDS
        await engine.top_up(1, 90, key="t2")
        assert (await engine.pay(1, 2, 10, key="p3")).debit_available_minor == 0, "the debt is paid first"
        paid = await engine.pay(2, 1, 5, key="p4")
        assert (await engine.chargeback(paid.transfer_id, key="c2")).status is Status.NOT_REFUNDABLE


async def test_top_ups_and_withdrawals_in_two_steps(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1)
        coming = await engine.start_top_up(1, 200, key="t")
        assert await now(engine, 1) == (1000, 0), "nothing can be spent yet"
        confirmed = await engine.confirm(coming.transfer_id, "psp-1")
        assert (confirmed.status, confirmed.credit_available_minor) == (Status.POSTED, 1200)
        assert (await engine.confirm(coming.transfer_id, "psp-1")).replayed
        other = await engine.confirm(coming.transfer_id, "psp-2")
        assert other.status is Status.EXISTS_WITH_DIFFERENT_DETAILS
        assert (await engine.fail(coming.transfer_id, "too late")).status is Status.HOLD_ALREADY_CAPTURED
        going = await engine.start_withdrawal(1, 500, key="w")
        assert await now(engine, 1) == (700, 500)
        assert (await engine.fail(going.transfer_id, "account closed")).amount_minor == 500
        assert (await engine.fail(going.transfer_id, "account closed")).replayed
        assert (await engine.confirm(going.transfer_id, "psp-3")).status is Status.HOLD_ALREADY_VOIDED
        assert await now(engine, 1) == (1200, 0)
        assert (await engine.refund(confirmed.transfer_id, key="reversal", reference="psp-4")).amount_minor == 200
        early = await engine.confirm(uuid4(), "psp-5")
        assert early.status is Status.HOLD_NOT_FOUND, "a confirmation that overtook its top-up may come again"
        assert (await engine.start_top_up(77, 5, key="t2")).status is Status.DEBIT_WALLET_NOT_FOUND


async def test_states_of_wallets(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1, 2, 3)
        await engine.freeze(1, credits=False)
        assert (await engine.pay(1, 2, 1, key="a")).status is Status.DEBIT_FROZEN
        assert (await engine.pay(2, 1, 1, key="b")).posted
        await engine.freeze(1)
        assert (await engine.pay(2, 1, 1, key="c")).status is Status.CREDIT_FROZEN
        balance = await engine.balance(1)
        assert balance is not None
        assert (balance.debit_frozen, balance.credit_frozen, balance.closed) == (True, True, False)
        await engine.unfreeze(1)
        assert (await engine.pay(1, 2, 1, key="d")).posted
        assert (await engine.pay(1, 2, 1, key="a")).status is Status.DEBIT_FROZEN, "a refusal stays with its key"
        await engine.set_overdraft_limit(2, 500)
        assert (await engine.withdraw(2, 1400, key="e")).debit_available_minor == -400
        assert (await engine.close_wallet(2)).status is Status.WALLET_NOT_EMPTY
        await engine.withdraw(3, 1000, key="f")
        assert (await engine.close_wallet(3, key="end")).posted
        assert (await engine.close_wallet(3, key="end")).replayed
        assert (await engine.pay(1, 3, 1, key="g")).status is Status.WALLET_CLOSED
        assert (await engine.freeze(3)).status is Status.WALLET_CLOSED
        assert (await engine.freeze(99)).status is Status.DEBIT_WALLET_NOT_FOUND


async def test_limits_of_a_tier_and_what_they_review(shard: ShardDriver) -> None:
    limits = TierLimits(max_amount_minor=500, day_count=3, review=frozenset({Rule.MAX_AMOUNT}))
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1, 2)
        assert (await engine.set_tier(1, 7)).status is Status.TIER_NOT_FOUND
        assert await engine.tier_limits(7) is None
        assert (await engine.set_tier_limits(7, limits)).posted
        assert await engine.tier_limits(7) == limits
        assert (await engine.set_tier(1, 7)).posted
        reviewed = await engine.pay(1, 2, 501, key="a")
        assert (reviewed.status, reviewed.rule, reviewed.posted) == (Status.UNDER_REVIEW, Rule.MAX_AMOUNT, False)
        assert await now(engine, 1) == (499, 501)
        assert (await engine.capture(reviewed.transfer_id)).status is Status.HOLD_UNDER_REVIEW
        assert (await engine.approve(reviewed.transfer_id)).credit_available_minor == 1501
        assert (await engine.approve(reviewed.transfer_id)).replayed
        await engine.pay(1, 2, 1, key="b")
        held = await engine.hold(1, 2, 2, device="phone", ip="10.0.0.1", key="c")
        assert (await engine.approve(held.transfer_id)).status is Status.HOLD_NOT_UNDER_REVIEW
        refused = await engine.pay(1, 2, 3, key="d")
        assert (refused.status, refused.rule, refused.used) == (Status.LIMIT_EXCEEDED, Rule.DAY_COUNT, 3)
        assert refused.amount_minor == refused.credit_available_minor == 0
        assert 0 < refused.retry_at_ms - shard.server_ms() <= 86_400_000
        assert refused.retry_at_ms % 86_400_000 == 0
        assert (await engine.pay(1, 2, 3, key="d")) == refused._replace(replayed=True)
        await engine.set_tier(1, 0)
        assert (await engine.pay(1, 2, 3, key="e")).posted
        balance = await engine.balance(1)
        assert balance is not None
        assert balance.tier == 0


async def test_rejecting_gives_back_what_was_reviewed(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1, 2)
        await engine.set_tier_limits(1, TierLimits(max_amount_minor=5, review=frozenset(Rule)))
        await engine.set_tier(1, 1)
        held = await engine.hold(1, 2, 6, key="a")
        assert held.status is Status.UNDER_REVIEW
        assert (await engine.approve(held.transfer_id)).amount_minor == 0, "a hold that may be captured from now on"
        assert (await engine.capture(held.transfer_id)).posted
        other = await engine.hold(1, 2, 7, key="b")
        assert (await engine.reject(other.transfer_id, reason="stolen card")).amount_minor == 7
        assert await now(engine, 1) == (994, 0)


async def test_a_currency_has_its_exponent_once(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        assert await engine.exponent("USD") is None
        await engine.open_wallets([OpenWallet(n, 1, code) for n, code in enumerate(("USD", "JPY", "KWD", "POINTS"), 1)])
        exponents = [await engine.exponent(code) for code in ("USD", "JPY", "KWD", "POINTS")]
        assert exponents == [2, 0, 3, 0], "by ISO 4217, and none for what has other codes"
        assert (await engine.define_currency("BTC8", 8)).posted
        assert (await engine.define_currency("BTC8", 8)).replayed
        assert (await engine.define_currency("BTC8", 2)).status is Status.EXISTS_WITH_DIFFERENT_OVERDRAFT_LIMIT
        await engine.open_wallet(9, 1, "BTC8")
        assert await engine.exponent("BTC8") == 8
        outside = await engine.balance(engine.external_wallet("BTC8"))
        assert outside is not None
        assert (outside.flags, outside.overdraft_limit_minor) == (1, 8)
        [entry] = [
            record
            for record in journal_records(shard)
            if record["debit"] == engine.external_wallet("BTC8") and record["kind"] == Kind.OPEN_WALLET
        ]
        assert (entry["flags"], entry["amount"]) == (RequestFlag.EXTERNAL, 8)


def journal_records(shard: ShardDriver) -> list[dict[str, Any]]:
    packed = b"".join(fields[JOURNAL_RECORDS_FIELD] for _, fields in shard.redis.xrange(shard.keys.journal))
    return [
        JOURNAL_RECORD.unpack(packed[at : at + JOURNAL_RECORD.size])
        for at in range(0, len(packed), JOURNAL_RECORD.size)
    ]


async def test_chains_and_conditions(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1, 2, 3)
        split = [Transfer(1, 2, 70, key="a"), Transfer(1, 3, 30, key="b")]
        assert [outcome.status for outcome in await engine.post(split, linked=True)] == ["POSTED", "POSTED"]
        assert [outcome.replayed for outcome in await engine.post(split, linked=True)] == [True, True]
        assert [outcome.status for outcome in await engine.post(split)] == ["EXISTS_WITH_DIFFERENT_CHAIN"] * 2
        before = [await engine.balance(wallet) for wallet in (1, 2, 3)]
        failing = [Transfer(1, 2, 1, key="c"), Transfer(1, 3, 5000, key="d"), Transfer(1, 3, 1, key="e")]
        outcomes = await engine.post(failing, linked=True)
        assert [outcome.status for outcome in outcomes] == ["LINKED_FAILED", "INSUFFICIENT_FUNDS", "LINKED_FAILED"]
        assert [await engine.balance(wallet) for wallet in (1, 2, 3)] == before
        marked = [failing[0]._replace(key="f", linked=True), failing[2]._replace(key="g"), failing[1]._replace(key="h")]
        statuses = [outcome.status for outcome in await engine.post(marked)]
        assert statuses == ["POSTED", "POSTED", "INSUFFICIENT_FUNDS"]
        open_one = [Transfer(1, 2, 1, key="i"), Transfer(1, 2, 1, key="j", linked=True)]
        assert [outcome.status for outcome in await engine.post(open_one)] == ["POSTED", "LINKED_CHAIN_OPEN"]
        assert (await engine.lookup(key="j")).status is Status.NOT_APPLIED
        too_long = [Transfer(1, 2, 1, key=f"long-{n}") for n in range(1025)]
        assert {outcome.status for outcome in await engine.post(too_long, linked=True)} == {"CHAIN_TOO_LONG"}
        balance = await engine.balance(1)
        assert balance is not None
        asked = Transfer(1, 2, 1, key="k", expect_version=balance.version, min_available_after_minor=0)
        assert [outcome.status for outcome in await engine.post([asked, asked._replace(key="l")])] == [
            "POSTED", "CONDITION_FAILED",
        ]  # fmt: skip
        [all_of_it] = await engine.post([Transfer(1, 2, 10**9, key="m", balancing=True)])
        assert (all_of_it.amount_minor, all_of_it.debit_available_minor) == (balance.available_minor - 1, 0)


# With a ledger at hand, which the test plays


class PlayedLedger:
    """What an engine asks of a ledger. claims: by transfer id."""

    def __init__(self) -> None:
        self.claims: dict[UUID, Claim] = {}
        self.away = False

    async def claim(self, transfer_id: UUID) -> Claim | None:
        if self.away:
            raise Unavailable("the ledger cannot be asked")
        return self.claims.get(transfer_id)


def with_ledger(engine: Engine) -> PlayedLedger:
    played: Any = PlayedLedger()
    engine._ledger = played
    return played


async def test_what_redis_forgot_is_refunded_by_what_the_ledger_knows(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1, 2)
        old, other = uuid4(), uuid4()
        ledger = with_ledger(engine)
        ledger.claims = {
            old: Claim(Kind.PAYMENT, 1, 2, 100, 40, shard.meta()["sequence"]),
            other: Claim(Kind.REFUND, 1, 2, 100, 0, shard.meta()["sequence"]),
        }
        assert (await engine.refund(old, 61, key="a")).status is Status.REFUND_EXCEEDS_TRANSFER
        assert (await engine.refund(old, 20, key="b")).credit_available_minor == 1020
        [unknown, rest, refused] = await engine.post(
            [Refund(uuid4(), key="c"), Refund(old, key="d"), Refund(other, key="e")]
        )
        assert unknown.status is Status.TRANSFER_NOT_FOUND
        assert (rest.status, rest.amount_minor) == (Status.POSTED, 40)
        assert refused.status is Status.NOT_REFUNDABLE
        assert (await engine.refund(old, 20, key="b")).replayed, "what the ledger knows is no part of the content"


async def test_a_ledger_that_is_behind_is_asked_again(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1, 2)
        shard.end_generation()
        old, begun = uuid4(), shard.meta()["generation_sequence"]
        ledger = with_ledger(engine)
        ledger.claims[old] = Claim(Kind.PAYMENT, 1, 2, 100, 0, begun - 1)
        with pytest.raises(Unavailable, match="behind"):
            await engine.refund(old, key="a", timeout_ms=100)
        waiting = asyncio.ensure_future(engine.refund(old, key="a"))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        ledger.claims[old] = Claim(Kind.PAYMENT, 1, 2, 100, 30, begun)
        assert (await waiting).amount_minor == 70


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("known", [True, False])
async def test_a_refund_in_a_chain_never_goes_alone(shard: ShardDriver, at: int, known: bool) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1, 2)
        old = uuid4()
        if known:
            with_ledger(engine).claims[old] = Claim(Kind.PAYMENT, 1, 2, 100, 0, shard.meta()["sequence"])
        else:
            with_ledger(engine)
        chain: list[Any] = [Transfer(1, 2, 5, key="a")]
        chain.insert(at, Refund(old, 60, key="b"))
        statuses = [outcome.status for outcome in await engine.post(chain, linked=True)]
        if known:
            assert statuses == ["POSTED", "POSTED"]
            assert await now(engine, 1) == (1055, 0)
        else:
            assert sorted(statuses) == ["LINKED_FAILED", "TRANSFER_NOT_FOUND"]
            assert await now(engine, 1) == (1000, 0)


async def test_a_chain_whose_refund_is_refused_leaves_nothing_even_if_the_ledger_knows_better(
    shard: ShardDriver,
) -> None:
    """Between reading the claim and deciding, the ledger may learn of the transfer: still nothing goes alone."""
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1, 2)
        old, ledger = uuid4(), with_ledger(engine)
        claim = Claim(Kind.PAYMENT, 1, 2, 100, 0, shard.meta()["sequence"])
        answers = iter([None, claim, claim])

        async def asked(transfer_id: UUID) -> Claim | None:
            return next(answers)

        ledger.claim = asked  # type: ignore[method-assign]
        chain = [Transfer(1, 2, 5, key="a"), Refund(old, 60, key="b")]
        statuses = [outcome.status for outcome in await engine.post(chain, linked=True)]
        assert statuses == ["LINKED_FAILED", "TRANSFER_NOT_FOUND"]
        assert await now(engine, 1) == (1000, 0)


async def test_a_ledger_that_is_away_leaves_no_list_half_told(shard: ShardDriver) -> None:
    async with Engine.connect(url_of(shard)) as engine:
        await fund(engine, 1, 2)
        with_ledger(engine).away = True
        with pytest.raises(Unavailable):
            await engine.refund(uuid4(), key="a", timeout_ms=100)
        with pytest.raises(Unavailable):
            await engine.post([Refund(uuid4(), key="a")], timeout_ms=100)
        with pytest.raises(OutcomeUnknown) as caught:
            await engine.post([Transfer(1, 2, 5, key="b"), Refund(uuid4(), key="c")], timeout_ms=100)
        assert len(caught.value.transfer_ids) == 2
        assert (await engine.transfer(1, 2, 5, key="b")).replayed, "the first of them had been applied"
