"""Random batches against the engine and the model at once, on a real server; the invariants after each step."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from engine import Engine, Kind, OpenWallet, Transfer, external_wallet_id
from engine.keys import ShardKeys
from engine.wire import ENTRY_HEADER, JOURNAL_RECORD
from tests.fixtures.servers import wipe_redis
from tests.fixtures.shard import ShardDriver, new_shard
from tests.model import Model

CURRENCIES = ["USD", "EUR"]
USERS = [1, 2, 3, 4, 2**63 - 1]
OUTSIDE = [external_wallet_id(currency) for currency in CURRENCIES]
EDGES = [1, 2, 2**53 - 1, 2**53 - 2, 2**52]

wallet_ids = st.sampled_from(USERS * 3 + OUTSIDE * 4)
keys = st.integers(0, 60).map(lambda n: f"k{n}")
amounts = st.one_of(st.integers(1, 50), st.integers(1, 50), st.sampled_from(EDGES))
transfers = st.builds(
    Transfer,
    debit=wallet_ids,
    credit=wallet_ids,
    amount_minor=amounts,
    key=keys,
    kind=st.sampled_from([Kind.TRANSFER, Kind.TOP_UP, Kind.PAYMENT, Kind.WITHDRAWAL]),
    currency=st.sampled_from([None, None, None, *CURRENCIES]),
    reference=st.sampled_from([None, None, "r1", "r2"]),
    id=st.none(),
    metadata=st.none(),
)
limits = st.sampled_from([0, 0, 10, 2**53 - 1])
own_keys = st.one_of(st.none(), keys)
openings = st.one_of(
    st.builds(
        OpenWallet,
        wallet_id=st.sampled_from(USERS),
        owner_id=st.integers(0, 1),
        currency=st.sampled_from(CURRENCIES),
        overdraft_limit_minor=limits,
        key=own_keys,
        id=st.none(),
    ),
    # An external wallet's id goes with one currency only.
    st.builds(
        lambda number, owner_id, limit, key: OpenWallet(OUTSIDE[number], owner_id, CURRENCIES[number], limit, key),
        st.integers(0, 1),
        st.integers(0, 1),
        limits,
        own_keys,
    ),
)
requests = st.one_of(transfers, transfers, transfers, openings)


class EngineAgainstModel(RuleBasedStateMachine):
    """One engine on a new shard. Subclassed with the server's URL."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        wipe_redis(self.url)
        self.client = redis.Redis.from_url(self.url)
        self.shard: ShardDriver = new_shard(self.client)
        self.context = Engine.connect(self.url)
        self.engine: Engine = self.runner.run(self.context.__aenter__())
        self.model = Model()

    def teardown(self) -> None:
        self.runner.run(self.context.__aexit__(None, None, None))
        self.runner.close()
        self.client.close()

    @initialize()
    def outside(self) -> None:
        self.check([OpenWallet(wallet, 0, currency) for wallet, currency in zip(OUTSIDE, CURRENCIES, strict=True)])

    @rule(batch=st.lists(requests, min_size=1, max_size=25))
    def post_in_one_batch(self, batch: list[Any]) -> None:
        self.check(batch)

    @rule(batch=st.lists(requests, min_size=1, max_size=5), times=st.integers(2, 3))
    def retry_a_batch(self, batch: list[Any], times: int) -> None:
        for _ in range(times):
            self.check(batch)

    @rule(batch=st.lists(transfers, min_size=1, max_size=8))
    def call_one_by_one(self, batch: list[Transfer]) -> None:
        """Concurrent single calls keep the order in which they were made, since one batcher queues them."""

        async def call() -> list[Any]:
            return await asyncio.gather(*(self.engine.post([transfer]) for transfer in batch))

        self.compare(batch, [outcome for [outcome] in self.runner.run(call())])

    @rule()
    def end_the_generation(self) -> None:
        """Two generations remember together; only what is persisted may be dropped, so advance first, once."""
        meta = self.shard.meta()
        if meta["generation"] == 1:
            self.shard.call("hotledger_advance", 1, meta["sequence"], 0)
            assert self.shard.call("hotledger_end_generation", 1, 1) == 1
            self.model.sequence += 1

    @rule()
    def reopen(self) -> None:
        self.shard.call("hotledger_close")
        self.shard.open()

    def check(self, batch: list[Any]) -> None:
        self.compare(batch, self.runner.run(self.engine.post(batch)))

    def compare(self, batch: list[Any], outcomes: list[Any]) -> None:
        for request, outcome in zip(batch, outcomes, strict=True):
            expected = self.model.decide(request)
            assert (outcome.status, outcome.replayed) == expected[:2], request
            if not outcome.status.startswith("EXISTS"):
                assert outcome[3:5] == expected[2:], request

    @invariant()
    def wallets_are_the_models(self) -> None:
        """Invariants 1 to 3: money is conserved, no wallet is below its limit, nothing is applied twice."""
        known = [*USERS, *OUTSIDE]
        for wallet_id, balance in zip(known, self.runner.run(self.engine.balances(known)), strict=True):
            expected = self.model.wallets.get(wallet_id)
            if expected is None:
                assert balance is None
                continue
            assert balance is not None
            found = (balance.available_minor, balance.version, balance.currency, balance.locked_minor)
            assert found == (expected.available, expected.version, expected.currency, 0)
            assert expected.external or balance.available_minor >= -expected.overdraft_limit
        assert set(self.model.conservation().values()) <= {0}

    @invariant()
    def the_journal_replays_to_the_balances(self) -> None:
        """Invariants 4 and 5: sequences and versions have no gap, and the last record of a wallet is its balance."""
        sequence, hash_, last = 0, b"0" * 40, {}
        for entry_id, fields in self.client.xrange(ShardKeys(0).journal):
            header = ENTRY_HEADER.unpack(fields[b"h"])
            assert header["first_sequence"] == sequence + 1
            assert header["previous_hash"] == hash_
            sequence, hash_ = header["last_sequence"], header["hash"]
            assert entry_id == b"%d-0" % sequence
            records = list(JOURNAL_RECORD.struct.iter_unpack(fields[b"r"]))
            assert len(records) == header["last_sequence"] - header["first_sequence"] + 1
            for record in records:
                kind, debit, credit, after = record[1], record[4], record[5], record[9:]
                if kind == Kind.END_GENERATION:
                    continue
                sides = [(debit, *after[:3])] + ([(credit, *after[3:])] if kind != Kind.OPEN_WALLET else [])
                for wallet_id, available, _locked, version in sides:
                    assert version == last.get(wallet_id, (0, 0))[1] + 1
                    last[wallet_id] = (available, version)
        assert sequence == self.model.sequence == self.shard.meta()["sequence"]
        assert last == {
            wallet_id: (wallet.available, wallet.version) for wallet_id, wallet in self.model.wallets.items()
        }


@pytest.mark.parametrize("product", ["valkey", "redis"])
def test_engine_against_model(product: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue("servers").redis_url if product == "valkey" else request.getfixturevalue("redis8_url")
    machine = type("EngineAgainstModelHere", (EngineAgainstModel,), {"url": url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            phases=(Phase.generate,),
        ),
    )
