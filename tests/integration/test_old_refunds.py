"""Refunds of transfers that Redis has forgotten: the engine asks the ledger, and no refund is ever overlooked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from engine import Engine, OpenWallet, Refund, Status, Transfer
from tests.fixtures.ledger import LedgerWorld
from tests.integration.test_duplicates import forget_everything

PAYER, SHOP = 101, 102


@pytest.fixture
def persisted(world: LedgerWorld) -> Iterator[LedgerWorld]:
    with world.persister():
        yield world


@pytest.fixture
async def engine(persisted: LedgerWorld) -> AsyncIterator[Engine]:
    async with Engine.connect(persisted.redis_url, persisted.postgres_url) as connected:
        await connected.open_wallets([OpenWallet(wallet, 1, "USD") for wallet in (PAYER, SHOP)])
        await connected.top_up(PAYER, 1_000, key="funds")
        yield connected


async def forget(world: LedgerWorld) -> None:
    await asyncio.to_thread(forget_everything, world)


async def test_a_payment_a_capture_and_a_top_up(engine: Engine, persisted: LedgerWorld) -> None:
    paid = await engine.pay(PAYER, SHOP, 100, key="order")
    held = await engine.hold(PAYER, SHOP, 60, key="room")
    taken = await engine.capture(held.transfer_id, 50)
    funds = await engine.top_up(SHOP, 30, key="card")
    assert (await engine.refund(paid.transfer_id, 10, key="early")).posted
    await forget(persisted)
    for transfer, part, rest in ((paid, 40, 50), (taken, 20, 30), (funds, 30, 0)):
        name = str(transfer.transfer_id)
        assert (await engine.refund(transfer.transfer_id, part, key=f"part:{name}")).amount_minor == part
        over = await engine.refund(transfer.transfer_id, rest + 1, key=f"over:{name}")
        assert over.status is Status.REFUND_EXCEEDS_TRANSFER
        await forget(persisted)  # the totals too: the ledger has them
        left = await engine.refund(transfer.transfer_id, key=f"rest:{name}")
        assert (left.status, left.amount_minor) == (
            (Status.POSTED, rest) if rest else (Status.REFUND_EXCEEDS_TRANSFER, 0)
        )
    [payer, shop] = [balance for balance in await engine.balances([PAYER, SHOP]) if balance]
    assert (payer.available_minor, payer.locked_minor, shop.available_minor) == (1_000, 0, 0)
    await asyncio.to_thread(persisted.until_persisted)
    assert persisted.reconcile().ok


async def test_refunds_at_once_never_exceed_an_old_transfer(engine: Engine, persisted: LedgerWorld) -> None:
    paid = await engine.pay(PAYER, SHOP, 100, key="order")
    await forget(persisted)
    outcomes = await asyncio.gather(*(engine.refund(paid.transfer_id, 30, key=f"r{n}") for n in range(8)))
    assert sorted(outcome.status for outcome in outcomes) == sorted(
        [Status.POSTED] * 3 + [Status.REFUND_EXCEEDS_TRANSFER] * 5
    )
    assert (await engine.refund(paid.transfer_id, key="rest")).amount_minor == 10


async def test_in_a_list_and_in_a_chain(engine: Engine, persisted: LedgerWorld) -> None:
    paid = await engine.pay(PAYER, SHOP, 100, key="order")
    await forget(persisted)
    listed = await engine.post([Refund(paid.transfer_id, 10, "a"), Transfer(PAYER, SHOP, 1, "b")])
    assert [outcome.status for outcome in listed] == [Status.POSTED, Status.POSTED]
    await forget(persisted)
    chain = [Refund(paid.transfer_id, 20, "c"), Transfer(PAYER, SHOP, 2, "d")]
    assert [outcome.posted for outcome in await engine.post(chain, linked=True)] == [True, True]
    assert [outcome.replayed for outcome in await engine.post(chain, linked=True)] == [True, True]
    chain = [Refund(paid.transfer_id, 71, "e"), Transfer(PAYER, SHOP, 2, "f")]
    failed = [outcome.status for outcome in await engine.post(chain, linked=True)]
    assert failed == [Status.REFUND_EXCEEDS_TRANSFER, Status.LINKED_FAILED]


async def test_without_a_ledger_an_old_transfer_is_not_found(engine: Engine, persisted: LedgerWorld) -> None:
    paid = await engine.pay(PAYER, SHOP, 100, key="order")
    await forget(persisted)
    async with Engine.connect(persisted.redis_url) as blind:
        outcome = await blind.refund(paid.transfer_id, key="r")
        assert outcome.status is Status.TRANSFER_NOT_FOUND
    assert (await engine.refund(paid.transfer_id, key="r")).posted, "it was not kept"


async def test_a_charged_back_top_up_that_is_long_spent(engine: Engine, persisted: LedgerWorld) -> None:
    funds = await engine.top_up(SHOP, 30, key="card")
    await engine.withdraw(SHOP, 30, key="spent")
    await forget(persisted)
    assert (await engine.refund(funds.transfer_id, key="r")).status is Status.INSUFFICIENT_FUNDS
    assert (await engine.chargeback(funds.transfer_id, key="c")).debit_available_minor == -30
    await asyncio.to_thread(persisted.until_persisted)
    assert persisted.reconcile().ok


async def test_what_was_paid_twice_is_refunded_at_most_twice(engine: Engine, persisted: LedgerWorld) -> None:
    """A key that came again after the window; by its own id or by that of the entry in the ledger."""
    paid = await engine.pay(PAYER, SHOP, 100, key="twice")
    assert (await engine.refund(paid.transfer_id, key="first")).amount_minor == 100
    await forget(persisted)
    assert (await engine.pay(PAYER, SHOP, 100, key="twice")).posted
    await asyncio.to_thread(persisted.until_persisted)
    derived = persisted.one("select transfer_id from transfer_duplicate")
    assert (await engine.refund(paid.transfer_id, 60, key="second")).posted
    assert (await engine.refund(derived, 60, key="third")).status is Status.TRANSFER_NOT_FOUND
    await forget(persisted)
    assert (await engine.refund(derived, 1, key="fourth")).status is Status.TRANSFER_NOT_FOUND
    assert (await engine.refund(paid.transfer_id, 41, key="fifth")).status is Status.REFUND_EXCEEDS_TRANSFER
    assert (await engine.refund(paid.transfer_id, key="sixth")).amount_minor == 40
    await asyncio.to_thread(persisted.until_persisted)
    assert persisted.reconcile().ok


async def test_a_refused_late_retry_does_not_hide_the_transfer(engine: Engine, persisted: LedgerWorld) -> None:
    paid = await engine.pay(PAYER, SHOP, 100, key="order")
    await forget(persisted)
    await engine.freeze(PAYER, credits=False)
    assert (await engine.pay(PAYER, SHOP, 100, key="order")).status is Status.DEBIT_FROZEN
    assert (await engine.refund(paid.transfer_id, key="r")).amount_minor == 100


async def test_a_chain_with_a_refund_needs_no_ledger_that_is_away(engine: Engine, persisted: LedgerWorld) -> None:
    paid = await engine.pay(PAYER, SHOP, 100, key="order")
    async with Engine.connect(persisted.redis_url, persisted.postgres_url) as other:
        other._ledger._url = "postgresql:///x?host=/nowhere"  # type: ignore[union-attr]
        chain = [Refund(paid.transfer_id, 20, "c"), Transfer(PAYER, SHOP, 2, "d")]
        assert [outcome.posted for outcome in await other.post(chain, linked=True)] == [True, True]


async def test_lookup_finds_old_holds(engine: Engine, persisted: LedgerWorld) -> None:
    held = await engine.hold(PAYER, SHOP, 70, key="room")
    await forget(persisted)
    found = await engine.lookup(key="room")
    assert (found.status, found.sequence, found.replayed) == (Status.POSTED, held.sequence, True)
    assert (found.debit_available_minor, found.amount_minor) == (930, 70)
