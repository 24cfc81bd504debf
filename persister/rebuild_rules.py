"""What the fraud rules know, read back for a rebuild: usage, known devices, attempts. See lua/lib/rules.lua.

What wallets used of their limits and the devices they know follow exactly from the ledger; only counters whose time is
over are not looked for. Attempts follow as far as declined_attempt goes, and by the tiers as they are now.
Where no tier ever had limits, none of this reads anything.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray

from engine.domain.limits import DAY_MS, HOUR_MS, KNOWN_DEVICES, MAX_DEVICE_WALLETS, NO_LIMIT
from engine.keys import ShardKeys
from engine.wire import ATTEMPTS, KNOWN_DEVICE, USAGE, WALLET
from persister.copy_binary import BigintArray, RowFormat, Rows
from persister.formats import LIMITS
from persister.journal import Numbers, milliseconds, numpy_type
from persister.packed_query import PackedQuery
from persister.redis_shard import RedisShard
from persister.sql import sql
from persister.usage import USAGE_TYPE, Events, Tiers, advance, slide

SEQUENCES_AT_ONCE = 131_072
ROWS_AT_ONCE = 65_536

_TIER_CHANGES = PackedQuery("rebuild/tier_changes", tier="int4", sequence="int8", **LIMITS)
_WALLET_TIERS = PackedQuery("rebuild/wallet_tiers", wallet_id="int8", sequence="int8", tier="int8")
_WALLETS_IN_TIER = PackedQuery("rebuild/wallets_in_tier", wallet_id="int8")
_COUNTED = PackedQuery("rebuild/counted", wallet_id="int8", sequence="int8", at="timestamptz", amount="int8")
_DEBTS = PackedQuery("rebuild/debts", wallet_id="int8", sequence="int8", debt="int8")
_DEVICE_USES = PackedQuery("rebuild/device_uses", wallet_id="int8", sequence="int8", device="digest", at="timestamptz")
_ORIGINS = PackedQuery("rebuild/origins", digest="digest")
_ATTEMPTS = PackedQuery(
    "rebuild/attempts",
    kind="int2",
    digest="digest",
    window_ms="int8",
    number="int8",
    count="int8",
    last="timestamptz",
)
_DEVICE_WALLETS = PackedQuery(
    "rebuild/device_wallets", digest="digest", window_ms="int8", wallet_id="int8", most="int8"
)
_KNOWN_DEVICES = RowFormat(
    f"({sql('rebuild/known_devices')}) AS known", wallet_id="int8", device="digest", since="timestamptz", last="int8"
)
_DEVICE = b"d"
_WINDOW = struct.Struct("<d")
_KNOWN_TYPE = numpy_type(KNOWN_DEVICE)


class RuleState:
    """Of one shard where its ledger is, at sequence `upto`."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        redis: RedisShard,
        shard: int,
        upto: int,
        now_ms: int,
        *,
        after: int,
        changed: Numbers | None,
    ) -> None:
        """changed: the wallets that changed after a sequence, what Redis has of them is gone on from; None for all
        wallets, from nothing."""
        self._connection = connection
        self._redis = redis
        self._keys = ShardKeys(shard)
        self._shard = shard
        self._after = after
        self._upto = upto
        self._now_ms = now_ms
        self._changed = changed
        self._limits = self._fetch(_TIER_CHANGES)

    def limits_since(self, after: int) -> Rows:
        """The limits in force of each tier that changed after a sequence: rows of rebuild/tier_changes.sql."""
        limits = self._limits
        is_last = np.append(limits["tier"][1:] != limits["tier"][:-1], True)[: len(limits)]
        return limits[is_last & (limits["sequence"] > after)]

    # Usage

    def usage_of(self, wallets: Numbers) -> NDArray[np.void]:
        """The USAGE of wallets that are in a tier, by ascending id."""
        if self._changed is None:
            known, of_all = self._usage_of_all
            return of_all[np.searchsorted(known, wallets)]
        usage = self._usage_in_redis(wallets)
        self._count(wallets, usage, self._after)
        return usage

    @cached_property
    def _tiers(self) -> Tiers:
        wallets = None if self._changed is None else BigintArray(self._changed)
        return Tiers(self._limits, self._fetch(_WALLET_TIERS, wallets=wallets))

    @cached_property
    def _usage_of_all(self) -> tuple[Numbers, NDArray[np.void]]:
        wallets = self._fetch(_WALLETS_IN_TIER)["wallet_id"].astype(np.int64)
        usage = np.zeros(len(wallets), USAGE_TYPE)
        windows = np.unique(self._limits["window_ms"]).tolist()
        self._count(wallets, usage, self._sequence_at(self._still_counts_since(HOUR_MS, *windows)))
        return wallets, usage

    def _usage_in_redis(self, wallets: Numbers) -> NDArray[np.void]:
        usage = np.zeros(len(wallets), USAGE_TYPE)
        stored = self._redis.stored_strings([self._keys.wallet(wallet) for wallet in wallets.tolist()])
        goes_on = self._tiers.counted_since(wallets) <= self._after
        for at, packed in enumerate(stored):
            if goes_on[at] and packed and len(packed) == WALLET.size + USAGE.size:
                usage[at] = np.frombuffer(packed, USAGE_TYPE, offset=WALLET.size)[0]
        return usage

    def _count(self, wallets: Numbers, usage: NDArray[np.void], after: int) -> None:
        """Count into usage, of these wallets, what was accepted after a sequence; and what chargebacks left."""
        for start in range(after, self._upto, SEQUENCES_AT_ONCE):
            rows = self._fetch(_COUNTED, after=start, upto=min(start + SEQUENCES_AT_ONCE, self._upto))
            events = Events(
                rows["wallet_id"].astype(np.int64),
                rows["sequence"].astype(np.int64),
                milliseconds(rows["at"].astype(np.int64)),
                rows["amount"].astype(np.int64),
            )
            limits = self._tiers.limits_at(events.wallet, events.sequence)
            slot, known = _slots(wallets, events.wallet)
            known &= (limits >= 0) & (events.sequence > self._tiers.counted_since(events.wallet))
            window_ms = self._limits["window_ms"][limits[known]].astype(np.int64)
            advance(usage, slot[known], events.select(known), window_ms)
        usage["debt"] = self._debts_of(wallets)

    def _debts_of(self, wallets: Numbers) -> Numbers:
        """What the largest chargeback that is not paid back yet left each wallet, where its tier sets that aside."""
        rows = self._fetch(_DEBTS)
        debts = np.zeros(len(wallets), np.int64)
        wallet, sequence = rows["wallet_id"].astype(np.int64), rows["sequence"].astype(np.int64)
        limits = self._tiers.limits_at(wallet, sequence)
        slot, known = _slots(wallets, wallet)
        known &= (limits >= 0) & (sequence > self._tiers.counted_since(wallet))
        known[known] &= self._limits["debt_first"][limits[known]] == 0
        np.maximum.at(debts, slot[known], rows["debt"][known].astype(np.int64))
        return debts

    # Known devices

    def known_devices(self) -> Iterator[NDArray[np.void]]:
        """What hotledger_load writes as `known`, all of one width at a time."""
        if not (self._limits["new_device_amount"] < NO_LIMIT).any():
            return
        if self._changed is not None:
            uses = self._fetch(_DEVICE_USES, after=self._after, wallets=None)
            yield from self._simulate(uses, self._devices_in_redis(np.unique(uses["wallet_id"].astype(np.int64))))
            return
        many: list[Numbers] = []
        for rows in self._devices_by_wallet():
            wallets, starts, counts = np.unique(rows["wallet_id"], return_index=True, return_counts=True)
            many.append(wallets[counts > KNOWN_DEVICES].astype(np.int64))
            for count in range(1, KNOWN_DEVICES + 1):
                these = starts[counts == count]
                if len(these):
                    of_these = rows[(these[:, None] + np.arange(count)).ravel()]
                    since_ms = milliseconds(of_these["since"].astype(np.int64))
                    yield _known_items(rows["wallet_id"][these], of_these["device"], since_ms, count)
        # Of more devices than are remembered, some may have been forgotten and come again: so in order, one by one.
        wallets = np.concatenate([*many, np.empty(0, np.int64)])
        for start in range(0, len(wallets), ROWS_AT_ONCE // 64):
            some = BigintArray(wallets[start : start + ROWS_AT_ONCE // 64])
            yield from self._simulate(self._fetch(_DEVICE_USES, after=0, wallets=some), {})

    def _devices_by_wallet(self) -> Iterator[Rows]:
        """Rows of rebuild/known_devices.sql in blocks, all of a wallet in one."""
        kept: list[Rows] = []
        with self._connection.cursor() as cursor:
            for block in _KNOWN_DEVICES.copy_out(cursor, "", ROWS_AT_ONCE, {"shard": self._shard}):
                rows = np.concatenate([*kept, block])
                whole = int(np.searchsorted(rows["wallet_id"], rows["wallet_id"][-1])) if len(rows) else 0
                kept = [rows[whole:]]
                yield rows[:whole]
        yield from kept

    def _devices_in_redis(self, wallets: Numbers) -> dict[int, dict[bytes, float]]:
        ids = wallets.tolist()
        stored = self._redis.stored_strings([self._keys.known_devices(wallet) for wallet in ids])
        return {
            wallet: dict(KNOWN_DEVICE.struct.iter_unpack(packed or b""))
            for wallet, packed in zip(ids, stored, strict=True)
        }

    def _simulate(self, uses: Rows, devices: dict[int, dict[bytes, float]]) -> Iterator[NDArray[np.void]]:
        """Go on from what wallets know (device -> since, the one used last at the end), in order."""
        wallet, sequence = uses["wallet_id"].astype(np.int64), uses["sequence"].astype(np.int64)
        limits = self._tiers.limits_at(wallet, sequence)
        asked = limits >= 0
        asked[asked] &= self._limits["new_device_amount"][limits[asked]] < NO_LIMIT
        since_ms = milliseconds(uses["at"].astype(np.int64))
        for id, device, now_ms in zip(
            wallet[asked].tolist(), uses["device"][asked].tolist(), since_ms[asked].tolist(), strict=True
        ):
            known = devices.setdefault(id, {})
            known[device] = known.pop(device, now_ms)
            if len(known) > KNOWN_DEVICES:
                del known[next(iter(known))]
        for count in range(1, KNOWN_DEVICES + 1):
            these = {id: known for id, known in devices.items() if len(known) == count}
            if these:
                names = np.frombuffer(b"".join(device for known in these.values() for device in known), "V8")
                times = np.array([since for known in these.values() for since in known.values()])
                yield _known_items(np.array(list(these), np.int64), names, times, count)

    # Attempts

    def attempts(self) -> Iterator[tuple[int, NDArray[np.void]]]:
        """What hotledger_load writes as `attempts`, all of one day and width at a time."""
        if not len(self._limits):
            return
        rows, wallets = self._attempts_in_ledger()
        if not len(rows):
            return
        new = np.append(True, np.any([rows[n][1:] != rows[n][:-1] for n in ("kind", "digest", "window_ms")], axis=0))
        first, zeros = np.flatnonzero(new), np.zeros(int(new.sum()))
        counted = slide(
            np.cumsum(new) - 1, rows["number"].astype(np.int64), rows["count"].astype(float), zeros, zeros, zeros
        )
        last = np.append(first[1:], len(rows)) - 1
        days = milliseconds(rows["last"][last].astype(np.int64)) // DAY_MS
        parts: dict[tuple[int, int], list[bytes]] = {}
        for at, row in enumerate(rows[first]):
            kind, digest, window_ms = bytes([row["kind"]]), row["digest"].tobytes(), float(row["window_ms"])
            ids = wallets.get((digest, window_ms), b"") if kind == _DEVICE else b""
            name = kind + digest + _WINDOW.pack(window_ms)
            value = ATTEMPTS.struct.pack(counted.number[at], counted.before[at], counted.counted[at]) + ids
            parts.setdefault((int(days[at]), len(name) + len(value)), []).append(name + value)
        for (day, width), packed in parts.items():
            yield day, np.frombuffer(b"".join(packed), f"V{width}")

    def _attempts_in_ledger(self) -> tuple[Rows, dict[tuple[bytes, float], bytes]]:
        """Rows of rebuild/attempts.sql; and, by device and window, the packed ids of its wallets today."""
        windows = np.unique(self._limits["attempts_window_ms"]).tolist()
        since_ms = self._still_counts_since(*windows)
        digests = None
        if self._changed is not None:
            digests = [row.tobytes() for row in self._fetch(_ORIGINS, after=self._after)["digest"]]
        values = {
            "after": self._sequence_at(since_ms),
            "since_ms": since_ms,
            "now_ms": self._now_ms,
            "today_ms": self._now_ms // DAY_MS * DAY_MS,
            "digests": digests,
        }
        wallets: dict[tuple[bytes, float], bytes] = {}
        for row in self._fetch(_DEVICE_WALLETS, **values):
            device = row["digest"].tobytes(), float(row["window_ms"])
            ids = wallets.setdefault(device, b"")
            if len(ids) < 8 * min(row["most"], MAX_DEVICE_WALLETS):
                wallets[device] = ids + int(row["wallet_id"]).to_bytes(8, "little", signed=True)
        return self._fetch(_ATTEMPTS, **values), wallets

    # Time

    def _still_counts_since(self, *windows_ms: int) -> int:
        """Before this no counter of a day, or of this window or the one before it, looks."""
        now_ms = self._now_ms
        return max(min([now_ms // DAY_MS * DAY_MS, *((now_ms // ms - 1) * ms for ms in windows_ms)]), 0)

    def _sequence_at(self, time_ms: int) -> int:
        """The last sequence of before a time; journal entries are ordered by it."""
        low, high = 0, self._upto
        while low < high:
            values = {"shard": self._shard, "time_ms": time_ms, "sequence": (low + high) // 2 + 1}
            row = self._connection.execute(sql("rebuild/entry_at"), values).fetchone()
            if row is None:
                break
            first, last, is_later = row
            low, high = (low, first - 1) if is_later else (last, high)
        return low

    def _fetch(self, query: PackedQuery, **values: Any) -> Rows:
        return query.fetch(self._connection, **{"shard": self._shard, "upto": self._upto} | values)


def _slots(wallets: Numbers, wanted: Numbers) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Where each wanted wallet is among wallets, which ascend; and whether it is there."""
    at = np.searchsorted(wallets, wanted)
    return at, np.append(wallets, 0)[at] == wanted


def _known_items(
    wallets: NDArray[Any], devices: NDArray[np.void], since_ms: NDArray[Any], count: int
) -> NDArray[np.void]:
    """Items of wallets with `count` devices each, one wallet's after the other's."""
    known = np.zeros(len(devices), _KNOWN_TYPE)
    known["device"], known["since_ms"] = devices, since_ms
    items = np.zeros(len(wallets), [("wallet", "<i8"), ("known", f"V{count * KNOWN_DEVICE.size}")])
    items["wallet"], items["known"] = wallets, np.frombuffer(known.tobytes(), items.dtype["known"])
    return items
