"""Ending a hold without a key: a repetition is a replay, and a refusal that may pass does not stay for ever."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import redis

from engine import (
    Engine,
    InvalidRequest,
    Kind,
    OpenWallet,
    Outcome,
    Rule,
    Status,
    TierLimits,
    Transfer,
    WalletChange,
)
from tests.fixtures.shard import new_shard

PAYER, PAYEE = 1, 2


@pytest.fixture
async def engine(valkey_url: str) -> AsyncIterator[Engine]:
    with redis.Redis.from_url(valkey_url) as client:
        new_shard(client)
    async with Engine.connect(valkey_url) as connected:
        await connected.open_wallets([OpenWallet(wallet, 1, "USD") for wallet in (PAYER, PAYEE)])
        await connected.top_up(PAYER, 1_000, key="funds")
        yield connected


def told(outcome: Outcome) -> tuple[Status, bool]:
    return outcome.status, outcome.replayed


async def test_a_confirmation_that_met_a_frozen_wallet_works_after_it(engine: Engine) -> None:
    pending = await engine.start_top_up(PAYEE, 500, key="card")
    await engine.freeze(PAYEE, debits=False)
    for _ in range(25):
        assert (await engine.confirm(pending.transfer_id, "psp-1")).status is Status.CREDIT_FROZEN
    await engine.unfreeze(PAYEE)
    assert told(await engine.confirm(pending.transfer_id, "psp-2")) == (Status.POSTED, False)
    assert told(await engine.confirm(pending.transfer_id, "psp-2")) == (Status.POSTED, True)
    assert (await engine.confirm(pending.transfer_id, "psp-1")).status is Status.EXISTS_WITH_DIFFERENT_DETAILS
    assert (await engine.fail(pending.transfer_id)).status is Status.HOLD_ALREADY_CAPTURED
    [balance] = await engine.balances([PAYEE])
    assert balance is not None
    assert balance.available_minor == 500


async def test_an_approval_that_met_a_frozen_wallet_works_after_it(engine: Engine) -> None:
    await engine.set_tier_limits(1, TierLimits(max_amount_minor=10, review=frozenset({Rule.MAX_AMOUNT})))
    await engine.set_tier(PAYER, 1)
    stopped = await engine.transfer(PAYER, PAYEE, 600, key="big")
    assert (stopped.status, stopped.rule) == (Status.UNDER_REVIEW, Rule.MAX_AMOUNT)
    assert (await engine.capture(stopped.transfer_id)).status is Status.HOLD_UNDER_REVIEW
    await engine.freeze(PAYER)
    assert (await engine.approve(stopped.transfer_id)).status is Status.DEBIT_FROZEN
    await engine.unfreeze(PAYER)
    assert told(await engine.approve(stopped.transfer_id)) == (Status.POSTED, False)
    assert told(await engine.approve(stopped.transfer_id)) == (Status.POSTED, True)
    assert (await engine.reject(stopped.transfer_id)).status is Status.HOLD_ALREADY_CAPTURED


async def test_a_void_and_a_final_capture_repeat_as_replays(engine: Engine) -> None:
    first = await engine.hold(PAYER, PAYEE, 100, key="h1")
    assert told(await engine.void(first.transfer_id)) == (Status.POSTED, False)
    assert told(await engine.void(first.transfer_id)) == (Status.POSTED, True)
    second = await engine.hold(PAYER, PAYEE, 100, key="h2")
    assert told(await engine.capture(second.transfer_id, 40)) == (Status.POSTED, False)
    assert told(await engine.capture(second.transfer_id, 40)) == (Status.POSTED, True)
    assert (await engine.capture(second.transfer_id, 50)).status is Status.EXISTS_WITH_DIFFERENT_AMOUNT
    assert (await engine.capture(second.transfer_id, 50, key="again")).status is Status.HOLD_ALREADY_CAPTURED


async def test_a_capture_of_too_much_works_once_the_hold_is_raised(engine: Engine) -> None:
    held = await engine.hold(PAYER, PAYEE, 100, key="h")
    assert (await engine.capture(held.transfer_id, 150)).status is Status.EXCEEDS_HOLD
    await engine.raise_hold(held.transfer_id, 50, key="more")
    assert told(await engine.capture(held.transfer_id, 150)) == (Status.POSTED, False)


async def test_a_change_in_a_chain_needs_a_key(engine: Engine) -> None:
    """Without one the chain could not be sent again as the same."""
    chain = [Transfer(PAYER, PAYEE, 5, "t"), WalletChange(PAYER, Kind.SET_OVERDRAFT_LIMIT, 10)]
    with pytest.raises(InvalidRequest, match="^key must be given in a chain"):
        await engine.post(chain, linked=True)
    chain[1] = WalletChange(PAYER, Kind.SET_OVERDRAFT_LIMIT, 10, "w")
    for replayed in (False, True):
        assert [told(outcome) for outcome in await engine.post(chain, linked=True)] == [(Status.POSTED, replayed)] * 2
