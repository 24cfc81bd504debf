"""What is built of linked requests, as a user would write it: splits, fees, currency exchange. Each example runs."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from engine import Engine, Kind, Outcome, Refund, Status, Transfer
from tests.fixtures.ledger import LedgerWorld

ALICE, BOB, CAROL = 1, 2, 3
SHOP, FEES = 900, 901
ALICE_EUR, DESK_USD, DESK_EUR = 11, 801, 802


async def split(engine: Engine, payer: int, shares: dict[int, int], order: str) -> list[Outcome]:
    """One payer, many payees: everybody gets a share, or nobody does."""
    requests = [
        Transfer(payer, payee, amount_minor, key=f"{order}:to:{payee}") for payee, amount_minor in shares.items()
    ]
    return await engine.post(requests, linked=True)


async def pay_with_fee(engine: Engine, payer: int, shop: int, amount_minor: int, order: str) -> list[Outcome]:
    """A payment, of which the shop owes us 1.5 %: the fee is never taken without the payment, nor left out."""
    fee_minor = max(1, amount_minor * 15 // 1000)
    return await engine.post(
        [
            Transfer(payer, shop, amount_minor, key=f"{order}:payment", kind=Kind.PAYMENT),
            Transfer(shop, FEES, fee_minor, key=f"{order}:fee", reference=order),
        ],
        linked=True,
    )


async def exchange(engine: Engine, usd_minor: int, eur_minor: int, quote: str) -> list[Outcome]:
    """Dollars for euros, through the desk's two liquidity wallets: no movement crosses currencies, the chain does.

    The quote's rate is the two amounts. If the desk has too few euros, the dollars stay where they are.
    """
    return await engine.post(
        [
            Transfer(ALICE, DESK_USD, usd_minor, key=f"{quote}:sold", currency="USD", metadata={"quote": quote}),
            Transfer(DESK_EUR, ALICE_EUR, eur_minor, key=f"{quote}:bought", currency="EUR", metadata={"quote": quote}),
        ],
        linked=True,
    )


async def give_back_with_fee(engine: Engine, paid: list[Outcome], order: str) -> list[Outcome]:
    """Undo pay_with_fee: the fee goes back to the shop, and the payment from there to the payer."""
    payment, fee = paid
    return await engine.post(
        [
            Refund(fee.transfer_id, key=f"{order}:fee:back"),
            Refund(payment.transfer_id, key=f"{order}:payment:back"),
        ],
        linked=True,
    )


@pytest.fixture
async def engine(world: LedgerWorld) -> AsyncIterator[Engine]:
    """With 100.00 for Alice, and 50.00 euros at the desk; in the end everything adds up."""
    with world.persister():
        async with Engine.connect(world.redis_url, world.postgres_url) as engine:
            for wallet in (ALICE, BOB, CAROL, SHOP, FEES, DESK_USD):
                await engine.open_wallet(wallet, owner_id=wallet, currency="USD")
            for wallet in (ALICE_EUR, DESK_EUR):
                await engine.open_wallet(wallet, owner_id=wallet, currency="EUR")
            await engine.top_up(ALICE, 100_00, key="alice")
            await engine.top_up(DESK_EUR, 50_00, key="desk")
            yield engine
        world.until_persisted()
        world.assert_proved()


async def available(engine: Engine, *wallets: int) -> list[int]:
    return [balance.available_minor for balance in await engine.balances(wallets) if balance]


def statuses(outcomes: list[Outcome]) -> list[Status]:
    return [outcome.status for outcome in outcomes]


async def test_a_split(engine: Engine) -> None:
    shares = {BOB: 25_00, CAROL: 30_00, SHOP: 5_00}
    assert statuses(await split(engine, ALICE, shares, "dinner")) == [Status.POSTED] * 3
    assert await available(engine, ALICE, BOB, CAROL, SHOP) == [40_00, 25_00, 30_00, 5_00]
    again = await split(engine, ALICE, shares, "dinner")
    assert all(outcome.replayed for outcome in again)

    refused = await split(engine, ALICE, {BOB: 39_00, CAROL: 2_00}, "taxi")
    assert statuses(refused) == [Status.LINKED_FAILED, Status.INSUFFICIENT_FUNDS]
    assert await available(engine, ALICE, BOB, CAROL) == [40_00, 25_00, 30_00]


async def test_a_fee_and_giving_it_back(engine: Engine) -> None:
    paid = await pay_with_fee(engine, ALICE, SHOP, 20_00, "order-17")
    assert statuses(paid) == [Status.POSTED, Status.POSTED]
    assert await available(engine, ALICE, SHOP, FEES) == [80_00, 19_70, 30]
    assert statuses(await give_back_with_fee(engine, paid, "order-17")) == [Status.POSTED, Status.POSTED]
    assert await available(engine, ALICE, SHOP, FEES) == [100_00, 0, 0]


async def test_an_exchange(engine: Engine) -> None:
    assert statuses(await exchange(engine, 54_00, 50_00, "quote-1")) == [Status.POSTED, Status.POSTED]
    assert await available(engine, ALICE, DESK_USD, DESK_EUR, ALICE_EUR) == [46_00, 54_00, 0, 50_00]
    too_much = await exchange(engine, 1_08, 1_00, "quote-2")
    assert statuses(too_much) == [Status.LINKED_FAILED, Status.INSUFFICIENT_FUNDS]
    assert await available(engine, ALICE, DESK_USD) == [46_00, 54_00]
    # Both or none, whichever of them it is that comes again.
    first_leg = Transfer(ALICE, DESK_USD, 54_00, key="quote-1:sold", currency="USD", metadata={"quote": "quote-1"})
    assert statuses(await engine.post([first_leg])) == [Status.EXISTS_WITH_DIFFERENT_CHAIN]
