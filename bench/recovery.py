"""`python -m bench recovery`: how long it takes to make Redis anew from the ledger, and in how much memory.

How to read it. transfers_per_s counts what was loaded: wallets and outcomes, or the records that a feed forward
brought. The ledger is written by the persister's own code, batch by batch; Valkey is empty before a rebuild.

rebuild_*        `hotledger recover` as a process of its own: everything loaded and compared wallet by wallet, the
                 shard open. seconds is the command's, with its start; peak_memory_bytes the process's.
                 linear says how the time per wallet and outcome of the larger size compares with that of the smaller.
feed_forward     A shard that lacks the last records, as a replica that was promoted without them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from bench.measure import Case, Sample, Target, at_least, at_most
from bench.scene import CURRENCY, FUNDS_MINOR, SHARD, empty, fresh_servers, progress
from engine.domain.ids import key_fingerprint
from engine.domain.money import pack_currency
from engine.domain.transfer import Kind, RequestFlag
from engine.domain.wallet import external_wallet_id
from engine.wire import IDEMPOTENCY, LINK, ORIGIN, TIER_CHANGE
from gateway.embedded import EmbeddedServers
from persister.connection import connect
from persister.journal import RECORD, Batch, Entry, Place, microseconds, numpy_type
from persister.ledger import Ledger
from persister.migrate import migrate
from persister.rebuild import load_shard
from persister.redis_shard import RedisShard

DURABILITY = "appendfsync always, synchronous_commit on"
REBUILD_SECONDS, REBUILD_BYTES = 20.0, 10**9
FEED_PER_S = 20_000.0
PER_BATCH = 8192


class Sizes(NamedTuple):
    """Of the larger rebuild; the smaller has a quarter. fed: records of the feed forward."""

    wallets: int = 1_000_000
    outcomes: int = 1_000_000
    fed: int = 200_000


QUICK = Sizes(wallets=4000, outcomes=4000, fed=2000)


def cases(sizes: Sizes, directory: Path | None) -> Iterator[Case]:
    """Measure and yield one case after the other, each on servers of its own."""
    smaller = _rebuild("rebuild_quarter", sizes.wallets // 4, sizes.outcomes // 4, directory)
    yield smaller
    larger = _rebuild("rebuild", sizes.wallets, sizes.outcomes, directory)
    assert larger.transfers_per_s
    assert smaller.transfers_per_s
    larger.details["linear"] = smaller.transfers_per_s / larger.transfers_per_s
    yield larger.judged(
        Target(
            f"seconds <= {REBUILD_SECONDS:.0f} and peak_memory_bytes <= {REBUILD_BYTES:,}",
            lambda it: (
                at_most(it.details["seconds"], REBUILD_SECONDS)
                and at_most(it.details["peak_memory_bytes"], REBUILD_BYTES)
            ),
        )
    )
    yield _feed(sizes, directory)


def _rebuild(name: str, wallets: int, outcomes: int, directory: Path | None) -> Case:
    with fresh_servers(directory) as servers:
        progress(f"a ledger of {wallets:,} wallets and {outcomes:,} outcomes")
        with _Scribe(servers) as scribe:
            scribe.open_wallets(wallets)
            scribe.forget_outcomes()
            scribe.move(outcomes)
        empty(servers.redis_url)
        progress("recover")
        found = _recover(servers)
    loaded = found["loaded"]
    if (loaded["wallets"], loaded["verified"], loaded["outcomes"]) != (wallets + 1, wallets + 1, outcomes):
        raise RuntimeError(f"the load is not what the ledger has: {loaded}")
    details = {
        "wallets": wallets,
        "outcomes": outcomes,
        "seconds": found["seconds"],
        "load_seconds": loaded["seconds"],
        "peak_memory_bytes": found["peak_memory_bytes"],
    }
    return Case.of(name, DURABILITY, [Sample((wallets + outcomes) / found["seconds"])], details=details)


def _recover(servers: EmbeddedServers) -> dict[str, Any]:
    urls = {"HOTLEDGER_REDIS_URL": servers.redis_url, "HOTLEDGER_POSTGRES_URL": servers.postgres_url}
    command = [sys.executable, "-m", "gateway.cli", "recover", "--json"]
    done = subprocess.run(command, env=os.environ | urls, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"recover failed: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _feed(sizes: Sizes, directory: Path | None) -> Case:
    wallets = sizes.wallets // 10
    progress(f"a shard of {wallets:,} wallets that lacks {sizes.fed:,} records")
    with fresh_servers(directory) as servers, _Scribe(servers) as scribe:
        scribe.open_wallets(wallets)
        scribe.forget_outcomes()
        behind = scribe.place
        with RedisShard(servers.redis_url, SHARD) as shard:
            shard.load_library()
            scribe.load(shard, None)
            scribe.move(sizes.fed)
            began_s = time.perf_counter()
            scribe.load(shard, behind)
            seconds = time.perf_counter() - began_s
    case = Case.of(
        "feed_forward",
        DURABILITY,
        [Sample(sizes.fed / seconds)],
        details={"wallets": wallets, "records": sizes.fed, "seconds": seconds},
    )
    return case.judged(
        Target(f"transfers_per_s >= {FEED_PER_S:,.0f}", lambda it: at_least(it.transfers_per_s, FEED_PER_S))
    )


class _Scribe:
    """Writes a ledger as a persister would that reads a journal: plain payments of 1 between random wallets."""

    def __init__(self, servers: EmbeddedServers) -> None:
        migrate(servers.postgres_url)
        self._connection = connect(servers.postgres_url)
        self._ledger = Ledger(self._connection, SHARD)
        self._random = np.random.default_rng(1)
        self._generation = 1

    def __enter__(self) -> _Scribe:
        deployment = uuid4()
        self._ledger.begin_deployment(deployment, key_fingerprint(deployment.bytes))
        self._ledger.begin_shard(deployment)
        self.place = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.execute("VACUUM ANALYZE")
        self._connection.close()

    def open_wallets(self, count: int) -> None:
        """Wallets 1 to count, and the outside."""
        self._available = np.zeros(count + 1, np.int64)
        self._version = np.ones(count + 1, np.int64)
        outside = self._records(1, Kind.OPEN_WALLET, debit=external_wallet_id(CURRENCY), credit=0, amount=2)
        outside["flags"], outside["debit_version"] = RequestFlag.EXTERNAL, 1
        self._write_opening(outside)
        for start in range(1, count + 1, PER_BATCH):
            ids = np.arange(start, min(start + PER_BATCH, count + 1))
            opened = self._records(len(ids), Kind.OPEN_WALLET, debit=ids, credit=ids, amount=FUNDS_MINOR)
            opened["debit_version"] = 1
            self._write_opening(opened)

    def forget_outcomes(self) -> None:
        """Two idempotency generations end."""
        for _ in range(2):
            self._generation += 1
            self._write(self._records(1, Kind.END_GENERATION, debit=0, credit=0, amount=self._generation))

    def move(self, count: int) -> None:
        """count payments; a wallet has one per batch, as far as there are enough of them."""
        most = min(PER_BATCH, (len(self._available) - 1) // 2)
        for start in range(0, count, most):
            some = min(most, count - start)
            wallets = self._random.choice(len(self._available) - 1, 2 * some, replace=False) + 1
            debit, credit = wallets[:some], wallets[some:]
            self._available[debit] -= 1
            self._available[credit] += 1
            self._version[wallets] += 1
            made = self._records(some, Kind.PAYMENT, debit=debit, credit=credit, amount=1)
            for side, ids in (("debit", debit), ("credit", credit)):
                made[f"{side}_available"], made[f"{side}_version"] = self._available[ids], self._version[ids]
            self._write(made)

    def load(self, shard: RedisShard, after: Place | None) -> None:
        load_shard(
            self._connection,
            shard,
            SHARD,
            found=shard.state(),
            after=after,
            place=self.place,
            now_ms=shard.server_ms(),
            progress=lambda *_: None,
        )

    def _records(self, count: int, kind: Kind, **fields: Any) -> NDArray[np.void]:
        records = np.zeros(count, RECORD)
        records["id"] = np.frombuffer(self._random.bytes(16 * count), "V16")
        records["kind"] = kind
        for name, value in fields.items():
            records[name] = value
        return records

    def _write_opening(self, records: NDArray[np.void]) -> None:
        records["currency"] = np.void(pack_currency(CURRENCY))
        self._write(records)

    def _write(self, records: NDArray[np.void]) -> None:
        before, count = self.place, len(records)
        sequence = np.arange(before.sequence + 1, before.sequence + count + 1)
        at_us = microseconds(int(time.time() * 1000))
        hash = self._random.bytes(20).hex().encode()  # of a journal that nobody reads
        entry = Entry(before.epoch, before.sequence + 1, before.sequence + count, at_us, hash)
        nothing = (np.empty(0, numpy_type(layout)) for layout in (ORIGIN, LINK, TIER_CHANGE, IDEMPOTENCY))
        self._ledger.write(Batch(before, [entry], records, sequence, np.full(count, at_us), {}, *nothing))
        self.place = entry.place

    def _now(self) -> Place:
        state = self._ledger.state()
        if state is None or state.place is None:
            raise RuntimeError("the ledger has no shard")
        return state.place
