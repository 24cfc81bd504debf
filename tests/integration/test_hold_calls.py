"""Ending a hold without a key: a repetition is a replay, and a refusal that may pass does not stay for ever."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import redis

from engine import Engine, OpenWallet, Outcome, Rule, Status, TierLimits
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
    for _ in range(3):
        assert (await engine.confirm(pending.transfer_id, "psp-1")).status is Status.CREDIT_FROZEN
    await engine.unfreeze(PAYEE)
    assert told(await engine.confirm(pending.transfer_id, "psp-1")) == (Status.POSTED, False)
    assert told(await engine.confirm(pending.transfer_id, "psp-1")) == (Status.POSTED, True)
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
