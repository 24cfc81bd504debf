"""The audit finds each kind of wrong, and nothing where nothing is wrong. Rows are made by the torture's own load."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from uuid import UUID

import numpy as np
import psycopg
import pytest

from engine import Engine, Kind
from engine.domain.durability import Durability
from engine.domain.status import NUMBER_OF, Status
from engine.keys import ShardKeys
from engine.wire import ANSWER
from gateway.embedded import EmbeddedServers
from gateway.torture.audit import Findings, audit
from gateway.torture.client import Client, packer_of
from gateway.torture.load import Load, opening, posting
from gateway.torture.recorder import LEVELS, Recorder, What, read_records
from gateway.torture.world import Loss
from persister.copy_binary import Rows
from persister.migrate import migrate
from tests.fixtures.ledger import LedgerWorld
from tests.fixtures.servers import wipe_redis

ASKS, CALLERS = 600, 10
POSTED = NUMBER_OF[Status.POSTED]


async def record(world: LedgerWorld, directory: Path) -> None:
    """Real requests of every kind, one after the other, and what became of them."""
    chance = Random(5)
    directory.mkdir()
    with world.persister():
        async with (
            Recorder(directory / "client") as recorder,
            Engine.connect(world.redis_url, world.postgres_url) as engine,
        ):
            for requests in opening(lambda: UUID(bytes=chance.randbytes(16), version=4)):
                ask, asked_s = posting(requests), time.monotonic()
                await recorder.asking(ask.asked, Durability.ACCEPTED, asked_s)
                recorder.answered(await engine.post(requests), Durability.ACCEPTED, asked_s, time.monotonic())
            load = Load(chance, await packer_of(world.postgres_url), 10**6)
            client = Client(engine, load, recorder, chance, levels={Durability.ACCEPTED: 4, Durability.PERSISTED: 1})
            for _ in range(ASKS // CALLERS):
                await asyncio.gather(*(client.attempt(load.next()) for _ in range(CALLERS)))
        world.until_persisted()


class Case:
    """Rows that can be changed, and audited again."""

    def __init__(self, world: LedgerWorld, directory: Path) -> None:
        self.world = world
        self.records = read_records(directory / "client").copy()
        self._directory = directory

    def audit(self, *losses: Loss, records: Rows | None = None, at_rest: bool = False) -> Findings:
        """at_rest: with Redis, which takes longer."""
        changed = self._directory.with_name("changed")
        shutil.rmtree(changed, ignore_errors=True)
        changed.mkdir()
        (changed / "client").write_bytes((self.records if records is None else records).tobytes())
        return audit(self.world.redis_url, self.world.postgres_url, changed, losses, at_rest=at_rest)

    def posted(self, kind: Kind) -> tuple[int, int]:
        """Where a request of this kind is that was asked for once, and where its answer is: POSTED."""
        times = Counter(row["id"].tobytes() for row in self.records)
        asked: dict[bytes, int] = {}
        for at, row in enumerate(self.records):
            id = row["id"].tobytes()
            if row["what"] == What.ASKED and row["number"] == kind:
                asked[id] = at
            elif times[id] == 2 and id in asked and row["what"] == What.ANSWERED and row["number"] == POSTED:
                return asked[id], at
        raise AssertionError(f"the load has no {kind!r} like that")


@pytest.fixture(scope="module")
def case(servers: EmbeddedServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """One world for all tests here: each leaves it as it was."""
    empty(servers)
    world, directory = LedgerWorld(servers.redis_url, servers.postgres_url), tmp_path_factory.mktemp("torture")
    world.drain()
    asyncio.run(record(world, directory / "records"))
    yield Case(world, directory / "records")
    world.redis.close()


def empty(servers: EmbeddedServers) -> None:
    wipe_redis(servers.redis_url)
    with psycopg.connect(servers.postgres_url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    migrate(servers.postgres_url)


def total(found: Findings) -> tuple[int, int, int]:
    return found.lost, found.duplicated, found.violations


def test_what_happened_is_as_it_was_answered(case: Case) -> None:
    found = case.audit(at_rest=True)
    assert total(found) == (0, 0, 0), found.details
    assert found.acknowledged > ASKS * 0.7
    assert found.by_level["persisted"] > ASKS * 0.1
    assert found.refused > 0
    assert found.lookups >= found.acknowledged
    assert (found.unknown_applied, found.unknown_not_applied, found.lost_rightly) == (0, 0, 0)
    kinds = {Kind(row["number"]) for row in case.records if row["what"] == What.ASKED}
    assert kinds == set(Kind) - {Kind.EXPIRE_HOLD, Kind.END_GENERATION}


def test_what_is_wrong_is_found(case: Case) -> None:
    """One wrong after the other in what was recorded, each put right again."""
    records, untouched = case.records, case.records.copy()

    for kind, field in (
        (Kind.TRANSFER, "debit"), (Kind.HOLD, "credit"), (Kind.CAPTURE, "amount"), (Kind.REFUND, "credit"),
        (Kind.VOID, "debit"), (Kind.FREEZE, "debit"), (Kind.HOLD, "flag"), (Kind.CHARGEBACK, "amount"),
    ):  # fmt: skip
        _, answer = case.posted(kind)
        records[field][answer] += 1
        found = case.audit()
        assert found.violations == 1, (kind, field)
        assert "another answer: " in found.details[0]
        records[:] = untouched

    asked, answer = case.posted(Kind.PAYMENT)
    for field in ("debit", "credit", "amount"):
        records[field][asked] -= 1
        assert "other content: " in case.audit().details[0]
        records[:] = untouched

    found = case.audit(records=np.delete(records, [asked, answer]))
    assert found.violations == 1
    assert "nobody asked for it" in found.details[0]

    for number, what in ((NUMBER_OF[Status.INSUFFICIENT_FUNDS], What.ANSWERED), (0, What.UNAVAILABLE)):
        records["what"][answer], records["number"][answer] = what, number
        found = case.audit()
        assert found.violations == 1, what
        assert "refused or said to be not applied" in found.details[0]
        records[:] = untouched

    records["what"][answer] = What.UNKNOWN
    found = case.audit()
    assert (total(found), found.unknown_applied, found.unknown_not_applied) == ((0, 0, 0), 1, 0)
    records[:] = untouched
    found = case.audit(records=np.delete(records, [answer]))
    assert (total(found), found.unknown_applied) == ((0, 0, 0), 1)


def test_what_is_gone_is_lost_unless_a_fault_may_lose_it(case: Case) -> None:
    """One that was never decided is in the record as acknowledged."""
    _, like = case.posted(Kind.PAYMENT)
    ghost = case.records[like : like + 1].copy()
    ghost["id"] = np.void(b"\1" * 16)
    ghost["level"] = LEVELS.index(Durability.REPLICATED)
    asked = ghost.copy()
    asked["what"], asked["number"] = What.ASKED, Kind.PAYMENT
    records = np.concatenate([case.records, asked, ghost])
    asked_s, sequence = float(ghost["asked_s"][0]), int(ghost["sequence"][0])

    def audited(durability: Durability, until_s: float, after_sequence: int) -> tuple[int, int]:
        found = case.audit(Loss(durability, until_s, after_sequence), records=records)
        return found.lost, found.lost_rightly

    assert audited(Durability.REPLICATED, asked_s + 1, sequence - 1) == (0, 1)
    assert audited(Durability.ACCEPTED, asked_s + 1, sequence - 1) == (1, 0)
    assert audited(Durability.REPLICATED, asked_s - 1, sequence - 1) == (1, 0)
    assert audited(Durability.REPLICATED, asked_s + 1, sequence) == (1, 0)

    ghost["what"] = What.UNKNOWN
    found = case.audit(records=np.concatenate([case.records, asked, ghost]))
    assert (total(found), found.unknown_applied, found.unknown_not_applied) == ((0, 0, 0), 0, 1)


def test_what_happened_twice_is_found(case: Case) -> None:
    _, answer = case.posted(Kind.PAYMENT)
    id = UUID(bytes=case.records["id"][answer].tobytes())
    sequence, other = case.world.one("SELECT sequence, id FROM journal_event WHERE kind = 3 AND id <> %s LIMIT 1", id)
    case.world.tamper(f"UPDATE journal_event SET id = '{id}' WHERE sequence = {sequence}")
    found = case.audit()
    case.world.tamper(f"UPDATE journal_event SET id = '{other}' WHERE sequence = {sequence}")
    assert found.duplicated == 1
    assert f"duplicated: {id}" in "".join(found.details)


def test_the_engine_that_says_otherwise_is_found(case: Case) -> None:
    """Redis has another figure in one kept outcome."""
    _, answer = case.posted(Kind.CAPTURE)
    id, key = case.records["id"][answer].tobytes(), ShardKeys(0).idempotency(1)
    kept = case.world.redis.hget(key, id)
    changed = list(ANSWER.struct.unpack_from(kept))
    changed[[name for name, _ in ANSWER.fields].index("debit_available")] += 1
    case.world.redis.hset(key, id, ANSWER.struct.pack(*changed) + kept[ANSWER.size :])
    found = case.audit(at_rest=True)
    case.world.redis.hset(key, id, kept)
    assert found.violations == 1
    assert f"lookup: {UUID(bytes=id)}" in found.details[0]


def test_a_record_that_was_cut_short_is_left_out(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "client"
    path.write_bytes(case.records.tobytes()[:-1])
    assert len(read_records(path)) == len(case.records) - 1
