"""The machine of test_engine_model.py with a ledger: what Redis forgot is refunded all the same, and all is proved.

No persister runs beside it: each step that drains is one, so that what the sweeper ends is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import note
from hypothesis.stateful import precondition, rule

from engine import Engine
from gateway.embedded import EmbeddedServers
from persister.drain import Persister
from persister.migrate import migrate
from persister.reconcile import reconcile
from tests.fixtures.clock import START_MS
from tests.fixtures.shard import ShardDriver
from tests.model import Asked
from tests.model_content import Expire
from tests.property.test_engine_model import STEPS, EngineAgainstModel, run

SHARE_OF_STEPS = 4


class LedgerAgainstModel(EngineAgainstModel):
    """Subclassed with the servers' URLs."""

    postgres_url = ""
    ledger = True

    def begin_shard(self) -> ShardDriver:
        with psycopg.connect(self.postgres_url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        migrate(self.postgres_url)
        shard = ShardDriver(self.client, deployment=None)
        shard.clock = self.clock
        Persister(self.url, self.postgres_url).drain()
        return shard

    def connect(self) -> Any:
        return Engine.connect(self.url, self.postgres_url)

    def teardown(self) -> None:
        try:
            self.prove()
        finally:
            super().teardown()

    @rule()
    def drain(self) -> None:
        """The leader ends what is due before it drains."""
        due = self.model.due(self.clock.now_ms)
        Persister(self.url, self.postgres_url).drain()
        answers = self.model.decide([Asked(uuid4(), Expire(id)) for id in due], self.clock.now_ms)
        note(f"expired: {answers}")

    @precondition(lambda self: self.model.state.sequence)
    @rule()
    def prove(self) -> None:
        self.drain()
        report = reconcile(self.url, self.postgres_url)
        assert report.ok, report.differences[:5]
        assert report.sequence == self.model.state.sequence

    def end_the_generation(self) -> None:
        """The ledger has all that Redis forgets, and knows that it was forgotten."""
        self.drain()
        super().end_the_generation()
        self.drain()

    def check(self, batch: Sequence[Asked]) -> None:
        """A refund that needs the ledger is decided after the rest of its list: so it comes alone here."""
        start, linked = 0, False
        for at, asked in enumerate(batch):
            alone = not linked and not getattr(asked.request, "linked", False)
            linked = getattr(asked.request, "linked", False)
            if alone and self.is_decided_later(asked):
                super().check(batch[start:at])
                super().check([asked])
                start = at + 1
        super().check(batch[start:])


@pytest.mark.timeout(300 + STEPS)
def test_engine_and_ledger_against_model(servers: EmbeddedServers, monkeypatch: pytest.MonkeyPatch) -> None:
    # The sweeper gives its requests some time by the server's own clock, of which the test's is ahead.
    monkeypatch.setattr("persister.redis_shard.POST_TIMEOUT_MS", 2 * START_MS)
    steps = max(STEPS // SHARE_OF_STEPS, 1)
    run(LedgerAgainstModel, steps, url=servers.redis_url, postgres_url=servers.postgres_url)
