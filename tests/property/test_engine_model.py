"""Random traffic against the engine and the oracle at once, on real servers; the invariants after each step.

The server's clock stands still but for the steps that move it (tests/fixtures/clock.py). `make test` runs it short;
HOTLEDGER_MODEL_STEPS=10000 (`make test-long`) says how many steps it takes on each product.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from random import Random
from typing import Any
from uuid import UUID

import pytest
import redis
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from engine import Engine, HoldState, Kind, Outcome, Refund, Rule, Status
from engine.domain.ids import as_uuid8
from engine.domain.wallet import FLAG_CLOSED, FLAG_CREDIT_FROZEN, FLAG_DEBIT_FROZEN
from engine.requests import pack_limits
from engine.wire import HOLD, IDEMPOTENCY
from tests.fixtures.clock import Clock, clocked_library
from tests.fixtures.servers import wipe_redis
from tests.fixtures.shard import ShardDriver, new_shard, reference_record
from tests.journal_replay import Replay
from tests.model import Asked, Model
from tests.model_content import Expire
from tests.model_state import Answer, ModelWallet
from tests.property.stories import Stories
from tests.property.traffic import OUTSIDE, USERS, Traffic

STEPS = int(os.environ.get("HOTLEDGER_MODEL_STEPS", "800"))
STEPS_PER_EXAMPLE = 40
STEPS_TO_SEE_ALL = 10_000

NEVER_SEEN = frozenset(
    {
        # What only happens to a shard, or is found by engines alone; and what engines never send.
        Status.SHARD_NOT_OPEN, Status.DEADLINE_PASSED, Status.LEDGER_BACKLOG, Status.LEDGER_BEHIND,
        Status.CHAIN_TOO_LONG, Status.NOT_APPLIED, Status.AMOUNT_OUT_OF_RANGE,
    }
)  # fmt: skip

randoms = st.randoms(use_true_random=True)
seen: Counter[str] = Counter()


class EngineAgainstModel(RuleBasedStateMachine):
    """One engine on a new shard. Subclassed with the server's URL."""

    url = ""
    ledger = False

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        wipe_redis(self.url)
        self.client = redis.Redis.from_url(self.url)
        self.clock = Clock(self.client)
        self.shard: ShardDriver = self.begin_shard()
        self.context = self.connect()
        self.engine: Engine = self.runner.run(self.context.__aenter__())
        self.model = Model(ledger=self.ledger)
        self.replay = Replay()
        self.generations = [0]
        self.ids = 0

    def begin_shard(self) -> ShardDriver:
        return new_shard(self.client, self.clock)

    def connect(self) -> Any:
        return Engine.connect(self.url)

    def teardown(self) -> None:
        self.runner.run(self.context.__aexit__(None, None, None))
        self.runner.close()
        self.client.close()

    def new_id(self) -> UUID:
        self.ids += 1
        return UUID(int=self.ids << 64 | self.ids)

    @initialize(random=randoms)
    def begin(self, random: Random) -> None:
        self.traffic = Traffic(self.model, self.new_id, random)
        windows = self.traffic.window_minutes, self.traffic.attempts_window_minutes
        self.stories = Stories(self.model, self.new_id, *windows)
        self.check(self.traffic.begin())

    # Steps

    @rule(random=randoms, size=st.integers(1, 25))
    def post_in_one_batch(self, random: Random, size: int) -> None:
        self.check(self.traffic.batch(random, size))

    @rule(random=randoms, sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4))
    def post_chains(self, random: Random, sizes: list[int]) -> None:
        """Some requests alone between the chains; only the last can be left open."""
        batch: list[Asked] = []
        for size in sizes:
            if batch and getattr(batch[-1].request, "linked", False):
                break
            batch += self.traffic.batch(random, random.randint(0, 2)) + self.traffic.chain(random, size)
        self.check(batch)

    @rule(random=randoms)
    def post_a_chain_again(self, random: Random) -> None:
        self.check(self.traffic.chain_again(random))

    @rule(random=randoms, size=st.integers(1, 5), times=st.integers(2, 3))
    def retry_a_batch(self, random: Random, size: int, times: int) -> None:
        batch = self.traffic.batch(random, size)
        for _ in range(times):
            self.check(batch)

    @rule(random=randoms, size=st.integers(1, 8))
    def call_one_by_one(self, random: Random, size: int) -> None:
        """Concurrent single calls keep the order in which they were made, since one batcher queues them."""
        batch = [
            asked
            for asked in self.traffic.batch(random, size)
            if not getattr(asked.request, "linked", False) and not self.is_decided_later(asked)
        ]

        async def call() -> list[Any]:
            return await asyncio.gather(*(self.engine.post([_named(asked)]) for asked in batch))

        self.compare(batch, [outcome for [outcome] in self.runner.run(call())])

    @rule(random=randoms)
    def tell_a_story(self, random: Random) -> None:
        for chapter in self.stories.tell(random):
            if isinstance(chapter, int):
                self.clock.advance(chapter)
            else:
                self.check(chapter)

    @rule(ms=st.sampled_from([1, 999, 15_000, 59_999, 60_000, 1_800_000, 3_600_000, 21_600_000, 86_400_000, -5_000]))
    def pass_time(self, ms: int) -> None:
        """Also back: a server's clock may be set. What is journalled never goes back."""
        self.clock.advance(ms)

    @rule()
    def sweep(self) -> None:
        """As the leader does: end what is due."""
        due = [UUID(bytes=hold_id) for hold_id in self.shard.call("hotledger_due", 1000)]
        assert due == self.model.due(self.clock.now_ms)
        self.expire(due)

    @rule(random=randoms)
    def something_rare(self, random: Random) -> None:
        random.choice([lambda: self.sweep_some(random), self.end_the_generation, self.reopen])()

    def sweep_some(self, random: Random) -> None:
        """Also what is not due."""
        holds = list(self.model.state.holds)
        self.expire(random.sample(holds, min(3, len(holds))))

    def end_the_generation(self) -> None:
        """Two generations remember together; only what is persisted may be dropped, so advance first."""
        meta = self.shard.meta()
        self.shard.call("hotledger_advance", meta["epoch"], meta["sequence"], 0)
        assert self.shard.call("hotledger_end_generation", meta["epoch"], meta["generation"]) == 1
        self.model.end_generation(self.clock.now_ms)
        self.generations.append(self.shard.meta()["sequence"])

    def reopen(self) -> None:
        self.shard.call("hotledger_close")
        self.shard.open()

    def is_decided_later(self, asked: Asked) -> bool:
        """Whether a request is not decided in the order of its list."""
        return (
            self.model.ledger
            and isinstance(asked.request, Refund)
            and (asked.request.transfer_id in self.model.forgotten)
        )

    # What every answer must be

    def check(self, batch: Sequence[Asked]) -> None:
        batch = _without_repeats_in_chains(batch)
        self.compare(batch, self.runner.run(self.engine.post([_named(asked) for asked in batch])))

    def expire(self, hold_ids: list[UUID]) -> None:
        """By the functions: engines have no such request."""
        batch = [Asked(expiry_id(hold_id), Expire(hold_id)) for hold_id in hold_ids]
        records = [reference_record(asked.id.int, Kind.EXPIRE_HOLD, asked.request[0].int) for asked in batch]
        self.compare(batch, self.shard.post(records) if records else [])

    def compare(self, batch: Sequence[Asked], outcomes: Sequence[Outcome]) -> None:
        answers = self.model.decide(batch, self.clock.now_ms)
        for asked, outcome, answer in zip(batch, outcomes, answers, strict=True):
            note(f"{asked.id.int & 0xFFFF}: {asked.request} -> {answer}")
            seen[outcome.status.value] += 1
            if outcome.rule:
                seen[f"{outcome.status.value} {Rule(outcome.rule).name}"] += 1
            found = Answer(outcome.status.value, *outcome[1:5], *outcome[6:])
            assert outcome.id_bytes == asked.id.bytes
            if _says_nothing_of_wallets(answer):
                found = found._replace(debit_available_minor=0, credit_available_minor=0)
                answer = answer._replace(debit_available_minor=0, credit_available_minor=0)
            assert _rounded(found, answer) == answer, f"{asked}: {found}, expected {answer}"

    @invariant()
    def wallets_are_the_models(self) -> None:
        known = [*USERS, *OUTSIDE.values()]
        for wallet_id, balance in zip(known, self.runner.run(self.engine.balances(known)), strict=True):
            expected = self.model.state.wallets.get(wallet_id)
            if expected is None:
                assert balance is None
                continue
            assert balance is not None
            assert balance == (
                wallet_id, expected.currency, expected.available, expected.locked, expected.version, expected.limit,
                _flags(expected), expected.tier,
            )  # fmt: skip
        assert set(self.model.conservation().values()) <= {0}

    @invariant()
    def holds_are_the_models(self) -> None:
        """Invariant 7: what is locked is what the open holds have left."""
        packed = self.client.hgetall(self.shard.keys.holds)
        holds = {UUID(bytes=hold_id): HOLD.unpack(hold) for hold_id, hold in packed.items()}
        locked: Counter[int] = Counter()
        for hold in holds.values():
            locked[hold["debit"]] += hold["remaining"]
        assert locked == {
            wallet_id: wallet.locked for wallet_id, wallet in self.model.state.wallets.items() if wallet.locked
        }
        assert {
            hold_id: (hold["debit"], hold["credit"], hold["purpose"], hold["review"], hold["remaining"],
                      hold["captured"], hold["expires_at_ms"], hold["state"])
            for hold_id, hold in holds.items()
        } == {
            hold_id: (hold.debit, hold.credit, hold.purpose, hold.review, hold.remaining, hold.captured,
                      hold.expires_at_ms or 0, HoldState.OPEN)
            for hold_id, hold in self.model.open_holds().items()
        }  # fmt: skip
        due = {
            UUID(bytes=hold_id): int(score)
            for hold_id, score in self.client.zrange(self.shard.keys.due, 0, -1, withscores=True)
        }
        assert due == {id: hold.expires_at_ms for id, hold in self.model.open_holds().items() if hold.expires_at_ms}

    @invariant()
    def the_journal_replays_to_the_balances(self) -> None:
        """Invariants 4, 5 and 8: no gap in sequences and versions; each record follows from those before it."""
        after = b"(%d-0" % self.replay.sequence
        self.replay.feed(self.client.xrange(self.shard.keys.journal, min=after))
        state, replay = self.model.state, self.replay
        assert replay.sequence == state.sequence == self.shard.meta()["sequence"]
        assert replay.wallets == {
            wallet_id: [wallet.available, wallet.locked, wallet.version, _flags(wallet), wallet.tier, wallet.limit]
            for wallet_id, wallet in state.wallets.items()
        }
        open_ones = {id: hold["remaining"] for id, hold in replay.holds.items() if hold["state"] == HoldState.OPEN}
        assert open_ones == {id.bytes: hold.remaining for id, hold in self.model.open_holds().items()}
        for id, (total, _) in state.refunded.items():
            assert replay.refunded[id.bytes] == total <= replay.moved[id.bytes]
        assert replay.tiers == {tier: pack_limits(limits) for tier, limits in state.tiers.items()}

    @invariant()
    def the_journal_says_what_was_answered(self) -> None:
        """Of all that was accepted in the two generations, so that a retry after a rebuild gets the same answer."""
        meta, kept = self.shard.meta(), {}
        for number in (meta["generation"] - 1, meta["generation"]):
            kept |= self.client.hgetall(self.shard.keys.idempotency(number))
        since = self.generations[-2] if len(self.generations) > 1 else 0
        for id, outcome in self.replay.outcomes.items():
            if outcome["sequence"] > since:
                assert IDEMPOTENCY.unpack(kept[id].ljust(IDEMPOTENCY.size, b"\0")) == outcome


def _says_nothing_of_wallets(answer: Answer) -> bool:
    """Whether no document says whose balances the answer shows."""
    return answer.status in ("NOT_REFUNDABLE", "LINKED_FAILED") or answer.status.startswith("EXISTS")


def _named(asked: Asked) -> Any:
    return asked.request._replace(id=asked.id)  # type: ignore[call-arg, union-attr]


def _without_repeats_in_chains(batch: Sequence[Asked]) -> list[Asked]:
    """An engine takes no chain that has an id twice: such requests come alone."""
    chain: set[UUID] = set()
    for asked in batch:
        if asked.id in chain:
            return [Asked(id, _alone(request)) for id, request in batch]
        chain.add(asked.id)
        if not getattr(asked.request, "linked", False):
            chain.clear()
    return list(batch)


def _alone(request: Any) -> Any:
    return request._replace(linked=False) if hasattr(request, "linked") else request


def expiry_id(hold_id: UUID) -> UUID:
    return UUID(bytes=as_uuid8(blake2b(hold_id.bytes, digest_size=16, person=b"hotledger.exp").digest()))


def _flags(wallet: ModelWallet) -> int:
    return (
        wallet.external * 1
        | wallet.debits_frozen * FLAG_DEBIT_FROZEN
        | wallet.credits_frozen * FLAG_CREDIT_FROZEN
        | wallet.closed * FLAG_CLOSED
    )


def _rounded(found: Answer, expected: Answer) -> Answer:
    """found with expected's figures of a rolling hour where they differ by what a double can hold of huge amounts."""
    if expected.used > 2**30 and abs(found.used - expected.used) <= 2 + expected.used * 2**-50:
        near = abs(found.retry_at_ms - expected.retry_at_ms) <= 1
        return found._replace(used=expected.used, retry_at_ms=expected.retry_at_ms if near else found.retry_at_ms)
    return found


def run(machine: type[EngineAgainstModel], steps: int, **attributes: Any) -> None:
    with clocked_library():
        run_state_machine_as_test(
            type("Machine", (machine,), attributes),
            settings=settings(
                max_examples=max(1, steps // STEPS_PER_EXAMPLE),
                stateful_step_count=STEPS_PER_EXAMPLE,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                database=None,
                phases=(Phase.generate,),
            ),
        )


@pytest.mark.parametrize("product", ["valkey", "redis"])
@pytest.mark.timeout(300 + STEPS)
def test_engine_against_model(product: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue("servers").redis_url if product == "valkey" else request.getfixturevalue("redis8_url")
    seen.clear()
    run(EngineAgainstModel, STEPS, url=url)
    if STEPS >= STEPS_TO_SEE_ALL:
        expected = {status.value for status in set(Status) - NEVER_SEEN}
        expected |= {f"{word} {rule.name}" for word in ("LIMIT_EXCEEDED", "UNDER_REVIEW") for rule in Rule}
        assert not expected - set(seen), "the traffic does not come to everything any more"
