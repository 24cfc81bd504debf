"""Random traffic, and a shard that is filled from its ledger after it: from nothing, and from copies that are behind.

Each time everything in it must be what it was, byte by byte; tests/fixtures/rebuild.py says what cannot be. The traffic
is that of tests/property, held against the oracle as there. HOTLEDGER_MODEL_STEPS says how long it goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from gateway.embedded import EmbeddedServers
from persister.journal import Place
from tests.fixtures.clock import START_MS, clocked_library
from tests.fixtures.rebuild import assert_same, image_of, load, place_of, put_back, save
from tests.property.test_engine_model import STEPS
from tests.property.test_ledger_model import LedgerAgainstModel

LIVES = max(STEPS // 400, 1)
STEPS_PER_LIFE = 60
COPIES = 3


class Life(LedgerAgainstModel):
    """A shard whose copies are kept now and then."""

    def live(self, random: Random, steps: int) -> None:
        copies: list[tuple[Place | None, dict[bytes, bytes]]] = []
        self.begin(random)
        actions: list[tuple[int, Callable[[], Any]]] = [
            (5, lambda: self.post_in_one_batch(random, random.randint(1, 20))),
            (2, lambda: self.post_chains(random, [random.randint(1, 4) for _ in range(random.randint(1, 3))])),
            (8, lambda: self.tell_a_story(random)),
            (3, lambda: self.pass_time(random.choice([999, 60_000, 1_800_000, 3_600_000, 21_600_000, 86_400_000]))),
            (2, self.sweep),
            (1, self.end_the_generation),
        ]
        for step in range(1, steps + 1):
            [(_, action)] = random.choices(actions, [weight for weight, _ in actions])
            action()
            if step % (steps // COPIES) == 0:
                self.drain()
                self.load_from(None, {})
                for behind, copy in copies:
                    self.load_from(behind, copy)
                copies.append((place_of(self.shard), save(self.shard)))

    def load_from(self, behind: Place | None, copy: dict[bytes, bytes]) -> None:
        """A load makes of the copy what is there now; then that is put back."""
        now, expected = save(self.shard), image_of(self.shard)
        if behind == place_of(self.shard):
            return
        put_back(self.shard, copy)
        load(self.shard, self.url, self.postgres_url, behind)
        assert_same(image_of(self.shard), expected)
        put_back(self.shard, now)
        self.shard.open()


@pytest.mark.timeout(120 + STEPS)
@pytest.mark.parametrize("life", range(LIVES))
def test_what_is_loaded_is_what_was(servers: EmbeddedServers, monkeypatch: pytest.MonkeyPatch, life: int) -> None:
    seed = int(os.environ.get("HOTLEDGER_LIFE_SEED", Random().getrandbits(32)))
    print(f"HOTLEDGER_LIFE_SEED={seed}")
    # The sweeper gives its requests some time by the server's own clock, of which the test's is ahead.
    monkeypatch.setattr("persister.redis_shard.POST_TIMEOUT_MS", 2 * START_MS)
    for module in ("test_engine_model", "test_ledger_model"):
        monkeypatch.setattr(f"tests.property.{module}.note", lambda _: None)
    kind = type("OneLife", (Life,), {"url": servers.redis_url, "postgres_url": servers.postgres_url})
    with clocked_library():
        life_of_its_own = kind()
        try:
            life_of_its_own.live(Random(seed), STEPS_PER_LIFE)
        finally:
            life_of_its_own.teardown()
