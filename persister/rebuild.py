"""Fills a shard in Redis from its ledger: all of it, or what one that is behind lacks.

What Redis has then is what it had at that place of its history: a retry gets its answer, a late capture its hold, a
refund its total. What no ledger has is lost: refusals (they are decided anew), and attempts that were never collected.

The ledger is read in one snapshot, in blocks, and little of it is kept: memory does not grow with it. The caller has
the leadership, so the ledger does not move.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
import psycopg
from numpy.typing import NDArray

from engine.domain.transfer import HoldState
from engine.errors import CorruptRecord, HistoryMismatch
from engine.keys import ShardKeys
from engine.shard import ShardState
from engine.wire import CONTENT_REST, HOLD, IDEMPOTENCY, KEPT, LAYOUT_VERSION, TIER_LIMITS, USAGE, WALLET, Layout
from persister.copy_binary import BigintArray, Rows, register_arrays
from persister.formats import LIMITS
from persister.journal import Numbers, Place, numpy_type
from persister.live import compare_with_redis
from persister.loading import Load
from persister.outcomes import outcomes_of_movements, outcomes_of_openings, unpadded
from persister.packed_query import PackedQuery
from persister.rebuild_rules import RuleState
from persister.redis_shard import Moved, RedisShard
from persister.report import Check
from persister.sql import sql

Progress = Callable[[str, int, int], None]
"""Told what is being loaded, how many of them are, and how many there are in all. May raise: the load ends there."""

WALLETS_AT_ONCE = HOLDS_AT_ONCE = 65_536
SEQUENCES_AT_ONCE = 131_072

_SNAPSHOT = (
    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
    # Compiling a query costs more than to run it; sorting a block needs no disk.
    "SET LOCAL jit = off",
    "SET LOCAL work_mem = '64MB'",
    # To empty or look through a large Redis takes longer than a writer may stall.
    "SET LOCAL idle_in_transaction_session_timeout = '5min'",
)
_LOWEST_ID = -(2**63)

_HELD = {
    "id": "uuid",
    "purpose": "int2",
    "review": "int2",
    "debit_wallet_id": "int8",
    "credit_wallet_id": "int8",
    "captured": "int8",
    "expires_at_ms": "int8",
}
_BALANCES = {
    "wallet_id": "int8",
    "flags": "int2",
    "tier": "int4",
    "available": "int8",
    "locked": "int8",
    "version": "int8",
    "currency": "char8",
    "overdraft_limit": "int8",
}
_WALLETS = PackedQuery("rebuild/wallets", **_BALANCES)
_WALLETS_BY_ID = PackedQuery("rebuild/wallets_by_id", **_BALANCES)
_WALLETS_CHANGED = PackedQuery("rebuild/wallets_changed", wallet_id="int8")
_OPEN_HOLDS = PackedQuery("rebuild/open_holds", **_HELD, remaining="int8")
_HOLDS_CHANGED = PackedQuery("rebuild/holds_changed", **_HELD, remaining="int8")
_HOLDS_ENDED = PackedQuery("rebuild/holds_ended", **_HELD, sequence="int8", state="int2")
_REFUNDS = PackedQuery("rebuild/refunds", sequence="int8", original_id="uuid", total="int8")
_DUPLICATES = PackedQuery("rebuild/duplicates", sequence="int8", duplicate_of="uuid")
_OUTCOMES = PackedQuery("rebuild/outcomes", sequence="int8", id="uuid", kept="idempotency")
_ENTRIES = PackedQuery("rebuild/entries", sequence="int8", amount="int8", available_after="int8")
_MOVEMENTS = PackedQuery(
    "rebuild/movements",
    sequence="int8",
    id="uuid",
    kind="int2",
    debit_wallet_id="int8",
    credit_wallet_id="int8",
    amount="int8",
    details_digest="int8",
    details_size="int4",
)
_OPENINGS = PackedQuery(
    "rebuild/openings",
    sequence="int8",
    id="uuid",
    wallet_id="int8",
    owner_id="int8",
    currency="char8",
    flags="int2",
    overdraft_limit="int8",
)
_DUE = Layout("DUE", (("at_ms", "d"),))
_TOTAL = Layout("TOTAL", (("total", "d"),))
_WALLET_IN_TIER = Layout("WALLET_IN_TIER", (*WALLET.fields, *USAGE.fields))
_NOTHING = Layout("NOTHING", ())
_WITH_REST = np.dtype([("head", f"V{KEPT.size}"), ("rest", "u1", CONTENT_REST.size)])


class Loaded(NamedTuple):
    """What a load wrote: how many of each. verified: wallets that were compared with the ledger afterwards."""

    wallets: int
    outcomes: int
    holds: int
    ended_holds: int
    refunds: int
    tiers: int
    known_devices: int
    attempts: int
    verified: int
    seconds: float


class _Ledger(NamedTuple):
    """A row of rebuild/ledger.sql, and the shard."""

    deployment: UUID
    key_fingerprint: bytes
    place: Place
    generation: int
    generation_sequence: int
    previous_generation_sequence: int
    time_ms: int

    def generation_of(self, sequence: NDArray[Any]) -> Numbers:
        """Which generation outcomes, ended holds and refund totals of these requests are kept in."""
        of: Numbers = np.where(sequence > self.generation_sequence, self.generation, self.generation - 1)
        return of


def load_shard(
    connection: psycopg.Connection[Any],
    redis: RedisShard,
    shard: int,
    *,
    found: ShardState | None,
    after: Place | None,
    place: Place,
    now_ms: int,
    progress: Progress,
) -> Loaded:
    """Bring the shard in Redis to `place`, where the ledger is; it stays closed.

    connection: in autocommit mode, of the session that has the leadership. found: what was compared with the ledger,
    and must still be in Redis; None for whatever is there. after: where Redis is, if it only lacks what follows; None
    to fill it from nothing, which ends by comparing every wallet. now_ms: Redis' clock.
    Raises Moved if either side is not where it was, CorruptRecord if the comparison fails, and what Redis and Postgres
    raise. After an error the shard is half filled and closed: begin again from nothing.
    """
    began_at = time.monotonic()
    register_arrays(connection)
    with connection.transaction():
        for statement in _SNAPSHOT:
            connection.execute(statement)
        ledger = _ledger(connection, shard, place, now_ms)
        with Load(redis, found, full=after is None) as load:
            filling = _Filling(connection, redis, load, shard, ledger, after, max(now_ms, ledger.time_ms), progress)
            filling.fill()
            if after is None:
                filling.verify()
            load.end(
                deployment=ledger.deployment.bytes,
                key_fingerprint=ledger.key_fingerprint,
                epoch=place.epoch,
                sequence=place.sequence,
                hash=place.hash,
                time_ms=ledger.time_ms,
                persisted=place.sequence,
                generation=ledger.generation,
                generation_sequence=ledger.generation_sequence,
            )
    return Loaded(**filling.counts, seconds=time.monotonic() - began_at)


def _ledger(connection: psycopg.Connection[Any], shard: int, place: Place, now_ms: int) -> _Ledger:
    row = connection.execute(sql("rebuild/ledger"), {"shard": shard}).fetchone()
    if row is None:
        raise HistoryMismatch(f"the ledger does not know shard {shard}")
    deployment, fingerprint, epoch, sequence, journal_hash, generation, began, began_before, at = row
    there = Place(epoch, sequence, journal_hash.hex().encode())
    if there != place:
        raise Moved(f"the ledger is at {there}, not at {place}")
    time_ms = now_ms if at is None else round(at.timestamp() * 1000)
    return _Ledger(deployment, fingerprint, place, generation, began, began_before, time_ms)


class _Filling:
    """One load: reads what the ledger has after a sequence, and writes it."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        redis: RedisShard,
        load: Load,
        shard: int,
        ledger: _Ledger,
        after: Place | None,
        now_ms: int,
        progress: Progress,
    ) -> None:
        self._connection = connection
        self._redis = redis
        self._load = load
        self._shard = shard
        self._ledger = ledger
        self._full = after is None
        self._progress = progress
        self._after = 0 if after is None else after.sequence
        self._kept_after = max(self._after, ledger.previous_generation_sequence)
        """Outcomes, ended holds and refund totals of before are forgotten."""
        self._changed = (
            None if self._full else self._fetch(_WALLETS_CHANGED, after=self._after)["wallet_id"].astype(np.int64)
        )
        self._rules = RuleState(
            connection, redis, shard, ledger.place.sequence, now_ms, after=self._after, changed=self._changed
        )
        self.counts = dict.fromkeys(Loaded._fields[:-1], 0)

    def fill(self) -> None:
        if self._full:
            for gone in self._load.wipe(ShardKeys(self._shard)):
                self._progress("wipe", gone, gone)
        self._load_tiers()
        if self._changed is None:
            self._load_all_wallets()
            self._load_open_holds()
        else:
            self._load_changed_wallets(self._changed)
            self._load_changed_holds()
        self._load_ended_holds()
        self._load_refunds()
        self._load_rules()
        self._load_outcomes()

    def verify(self) -> None:
        """Raises CorruptRecord with the first difference."""
        self._load.settle()
        self._progress("verify", 0, self.counts["wallets"])
        check = Check("redis", "Redis has the ledger's balances, wallet by wallet")
        compare_with_redis(self._redis, self._connection, self._shard, check, closed=True)
        if not check.ok:
            first = check.differences[0]
            raise CorruptRecord(
                f"{check.total} differences after the load; {first.subject}: {first.found}, expected {first.expected}"
            )
        self.counts["verified"] = self.counts["wallets"]
        self._progress("verify", self.counts["wallets"], self.counts["wallets"])

    # Each of these reads one kind of thing

    def _load_tiers(self) -> None:
        limits = self._rules.limits_since(self._after)
        items = _items("<u2", limits["tier"], TIER_LIMITS, layout=LAYOUT_VERSION, **{n: limits[n] for n in LIMITS})
        self._write("tiers", "tiers", items)

    def _load_all_wallets(self) -> None:
        row = self._connection.execute("SELECT count(*) FROM wallet WHERE shard = %s", (self._shard,)).fetchone()
        total, above = row[0] if row else 0, _LOWEST_ID
        while len(wallets := self._fetch(_WALLETS, above=above, limit=WALLETS_AT_ONCE)):
            self._load_wallets(wallets)
            self._progress("wallets", self.counts["wallets"], total)
            above = int(wallets["wallet_id"][-1])

    def _load_changed_wallets(self, changed: Numbers) -> None:
        for start in range(0, len(changed), WALLETS_AT_ONCE):
            self._load_wallets(self._fetch(_WALLETS_BY_ID, ids=BigintArray(changed[start : start + WALLETS_AT_ONCE])))
            self._progress("wallets", self.counts["wallets"], len(changed))

    def _load_wallets(self, wallets: Rows) -> None:
        in_tier = wallets["tier"] != 0
        self._write("wallets", "wallets", _wallet_items(WALLET, wallets[~in_tier]))
        if in_tier.any():
            usage = self._rules.usage_of(wallets["wallet_id"][in_tier].astype(np.int64))
            values = {name: usage[name] for name, _ in USAGE.fields}
            self._write("wallets", "wallets", _wallet_items(_WALLET_IN_TIER, wallets[in_tier], **values))

    def _load_open_holds(self) -> None:
        above = UUID(int=0)
        while len(holds := self._fetch(_OPEN_HOLDS, above=above, limit=HOLDS_AT_ONCE)):
            self._load_holds(holds)
            above = UUID(bytes=holds["id"][-1].tobytes())

    def _load_changed_holds(self) -> None:
        ended = self._fetch(_HOLDS_ENDED, after=self._after)
        self._load.write("ended", _items("V16", ended["id"], _NOTHING))
        self._load_holds(self._fetch(_HOLDS_CHANGED, after=self._after))

    def _load_holds(self, holds: Rows) -> None:
        self._write("holds", "holds", _hold_items(holds, state=HoldState.OPEN, remaining=holds["remaining"]))
        expires = holds[holds["expires_at_ms"] > 0]
        self._load.write("due", _items("V16", expires["id"], _DUE, at_ms=expires["expires_at_ms"]))
        self._progress("holds", self.counts["holds"], self.counts["holds"])

    def _load_ended_holds(self) -> None:
        for after, upto in self._blocks(self._kept_after):
            ended = self._fetch(_HOLDS_ENDED, after=after, upto=upto)
            self._write_by_generation("ended_holds", "resolved", ended, _hold_items(ended, state=ended["state"]))

    def _load_refunds(self) -> None:
        for after, upto in self._blocks(self._kept_after):
            refunds = self._fetch(_REFUNDS, after=after, upto=upto)
            items = _items("V16", refunds["original_id"], _TOTAL, total=refunds["total"])
            self._write_by_generation("refunds", "refunded", refunds, items)

    def _load_rules(self) -> None:
        for items in self._rules.known_devices():
            self._write("known_devices", "known", items)
        for day, items in self._rules.attempts():
            self._write("attempts", "attempts", items, day)

    def _load_outcomes(self) -> None:
        total = self._ledger.place.sequence - self._kept_after
        duplicates = self._fetch(_DUPLICATES, after=self._kept_after)
        for after, upto in self._blocks(self._kept_after):
            kept = self._fetch(_OUTCOMES, after=after, upto=upto)
            movements = self._fetch(_MOVEMENTS, after=after, upto=upto)
            movements = movements[~np.isin(movements["sequence"], kept["sequence"])]
            openings = self._fetch(_OPENINGS, after=after, upto=upto)
            openings = openings[~np.isin(openings["sequence"], kept["sequence"])]
            entries = self._fetch(_ENTRIES, after=after, upto=upto)
            for rows, outcomes in (
                (kept, np.frombuffer(kept["kept"].tobytes(), numpy_type(IDEMPOTENCY))),
                (movements, outcomes_of_movements(movements, entries)),
                (openings, outcomes_of_openings(openings)),
            ):
                ids = _as_they_came(rows, duplicates)
                # Where nothing follows the head of the content, Redis has it without.
                short = (np.frombuffer(outcomes.tobytes(), _WITH_REST)["rest"] == 0).all(axis=1)
                for layout, which in ((KEPT, short), (IDEMPOTENCY, ~short)):
                    items = _items("V16", ids[which], layout, **{n: outcomes[n][which] for n, _ in layout.fields})
                    self._write_by_generation("outcomes", "outcomes", rows[which], items)
            self._progress("outcomes", upto - self._kept_after, total)

    # How

    def _blocks(self, after: int) -> Iterator[tuple[int, int]]:
        """Ranges of sequences, from behind one to where the ledger is."""
        end = self._ledger.place.sequence
        for start in range(after, end, SEQUENCES_AT_ONCE):
            yield start, min(start + SEQUENCES_AT_ONCE, end)

    def _fetch(self, query: PackedQuery, **values: Any) -> Rows:
        return query.fetch(self._connection, **{"shard": self._shard, "upto": self._ledger.place.sequence} | values)

    def _write(self, counted: str, what: str, items: NDArray[np.void], number: int | str = "") -> None:
        self._load.write(what, items, number)
        self.counts[counted] += len(items)

    def _write_by_generation(self, counted: str, what: str, rows: Rows, items: NDArray[np.void]) -> None:
        generation = self._ledger.generation_of(rows["sequence"])
        for number in (self._ledger.generation - 1, self._ledger.generation):
            self._write(counted, what, items[generation == number], number)


def _items(name_type: str, names: NDArray[Any], record: Layout, **values: Any) -> NDArray[np.void]:
    """What hotledger_load writes: each a name and the record under it. values: of its fields; the rest is 0."""
    items = np.zeros(len(names), [("a name", name_type), *numpy_type(record).descr])
    items["a name"] = names
    for field, value in values.items():
        items[field] = value
    return items


def _wallet_items(record: Layout, wallets: Rows, **usage: Any) -> NDArray[np.void]:
    same = {name: wallets[name] for name in _BALANCES if name not in ("wallet_id", "currency")}
    currency = unpadded(wallets["currency"])
    return _items("<i8", wallets["wallet_id"], record, layout=LAYOUT_VERSION, currency=currency, **same, **usage)


def _hold_items(holds: Rows, **values: Any) -> NDArray[np.void]:
    same = {name: holds[name] for name in ("purpose", "review", "captured", "expires_at_ms")}
    wallets = {"debit": holds["debit_wallet_id"], "credit": holds["credit_wallet_id"]}
    return _items("V16", holds["id"], HOLD, layout=LAYOUT_VERSION, **same, **wallets, **values)


def _as_they_came(rows: Rows, duplicates: Rows) -> NDArray[np.void]:
    """The ids of requests, as they came: a late duplicate has another one in the ledger."""
    ids = rows["id"].copy()
    if len(duplicates):
        at = np.searchsorted(duplicates["sequence"], rows["sequence"])
        at[at == len(duplicates)] = 0
        same = duplicates["sequence"][at] == rows["sequence"]
        ids[same] = duplicates["duplicate_of"][at[same]]
    return ids
