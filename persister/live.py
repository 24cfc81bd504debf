"""Redis against the ledger, at the same sequence, while the traffic goes on: wallets, holds and tiers, one by one.

Each wallet has a version, so the two need not be read at one moment: what Redis has at version v must be what the
ledger's entry of version v says, once the ledger has come as far as Redis was. Versions are read from the ledger
first, so Redis may not be behind them. A hold or a tier has no version: it must be as the ledger has it at some moment
from when the ledger was first read up to where Redis was afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
from numpy.typing import NDArray

from engine.domain.transfer import HoldState
from engine.errors import CorruptRecord, ShardNotOpen
from engine.wire import HOLD, LAYOUT_VERSION, MAX_BATCH, TIER_LIMITS, USAGE, WALLET
from persister.copy_binary import BigintArray, RowFormat, Rows, UuidArray, register_arrays
from persister.formats import LIMITS, TIER_CHANGE
from persister.journal import numpy_type
from persister.redis_shard import RedisShard
from persister.report import Check
from persister.sql import sql

PERSISTED_TIMEOUT_S = 10.0
_POLL_S = 0.005
_BLOCK = 64 * MAX_BATCH

_LEDGER_WALLET = RowFormat(
    "(SELECT id, currency, version, shard FROM wallet JOIN wallet_balance ON wallet_id = id) AS w",
    id="int8",
    currency="char8",
    version="int8",
)
_REDIS_WALLET = numpy_type(WALLET)
_WALLET_SIZES = (WALLET.size, WALLET.size + USAGE.size)
_REDIS_HOLD = numpy_type(HOLD)
_WALLET_NUMBERS = ("version", "available", "locked", "flags", "tier", "overdraft_limit")
_HOLD_NUMBERS = ("remaining", "captured", "review", "purpose", "debit", "credit", "expires_at_ms")


def compare_with_redis(redis: RedisShard, connection: psycopg.Connection, shard: int, check: Check) -> None:
    """Add to check what differs. connection: in autocommit mode. Redis' errors come as RedisShard raises them."""
    register_arrays(connection)
    comparison = _Comparison(redis, connection, shard, check)
    try:
        known = comparison.compare_wallets()
        comparison.compare_ids(known)
        comparison.compare_holds()
        comparison.compare_tiers()
    except ShardNotOpen as error:
        check.differs("the shard", str(error), "an open shard")
    except _LedgerStands as error:
        check.differs(
            "the ledger", f"stands at {error.at}", f"sequence {error.wanted}, where Redis is: run a persister"
        )


class _LedgerStands(Exception):
    def __init__(self, at: int, wanted: int) -> None:
        self.at, self.wanted = at, wanted


class _Comparison:
    def __init__(self, redis: RedisShard, connection: psycopg.Connection, shard: int, check: Check) -> None:
        self._redis = redis
        self._connection = connection
        self._shard = shard
        self._check = check

    # Wallets

    def compare_wallets(self) -> NDArray[np.int64]:
        """Compare each wallet of the ledger; returns their ids."""
        tail = f"WHERE shard = {self._shard:d} ORDER BY id"
        with self._connection.cursor() as cursor:
            blocks = [block.copy() for block in _LEDGER_WALLET.copy_out(cursor, tail, _BLOCK)]
        for block in blocks:
            self._compare_block(block)
        return np.concatenate([block["id"] for block in blocks]).astype(np.int64)

    def compare_ids(self, known: NDArray[np.int64]) -> None:
        """Report wallets that Redis has and the ledger does not get."""
        found = np.fromiter(self._redis.wallet_ids(), np.int64)
        self._check.checked += len(found)
        unknown = np.setdiff1d(found, known)
        if not len(unknown):
            return
        # They may have been opened since; then the ledger knows them once it is where Redis is now.
        self._wait_for_redis()
        query = "SELECT id FROM unnest(%b::bigint[]) AS w (id) WHERE NOT EXISTS (SELECT FROM wallet WHERE id = w.id)"
        for (wallet_id,) in self._connection.execute(query, (BigintArray(unknown),)):
            self._check.differs(f"wallet {wallet_id}", "Redis has it", "the ledger does not know it")

    def _compare_block(self, ledger: Rows) -> None:
        sequence, packed = 0, []
        for start in range(0, len(ledger), MAX_BATCH):
            at, wallets = self._read(ledger["id"][start : start + MAX_BATCH])
            sequence = max(sequence, at)
            packed += wallets
        sizes = np.array([len(record) for record in packed])
        for wallet_id in ledger["id"][sizes == 0]:
            self._check.differs(f"wallet {wallet_id}", "Redis does not have it", "the ledger has it")
        there = np.isin(sizes, _WALLET_SIZES)
        self._check.checked += len(packed)
        found = b"".join(record[: WALLET.size] for record in packed if len(record) in _WALLET_SIZES)
        self._compare_records(ledger[there], np.frombuffer(found, _REDIS_WALLET), sequence)

    def _read(self, ids: NDArray[Any]) -> tuple[int, list[bytes]]:
        """The sequence that Redis was at, at most, and its record of each wallet, b'' where there is none."""
        try:
            return self._redis.wallets(ids.astype("<i8").tobytes())
        except CorruptRecord as error:
            if len(ids) == 1:
                self._check.differs(f"wallet {ids[0]}", f"Redis: {error}", "a readable record")
                return 0, [b"?"]
        # One damaged record hides the others in its call: ask again in halves.
        half = len(ids) // 2
        (first_at, first), (second_at, second) = self._read(ids[:half]), self._read(ids[half:])
        return max(first_at, second_at), first + second

    def _compare_records(self, ledger: Rows, redis: NDArray[np.void], sequence: int) -> None:
        def differ(what: str, found: NDArray[Any], expected: NDArray[Any], differs: NDArray[np.bool_]) -> None:
            for at in np.flatnonzero(differs):
                self._check.differs(
                    f"wallet {ledger['id'][at]}", f"Redis: {what} {found[at]}", f"{what} {expected[at]}"
                )

        currency = np.char.rstrip(np.frombuffer(ledger["currency"].tobytes(), "S8"))
        found = np.frombuffer(redis["currency"].tobytes(), "S8")
        differ("currency", found, currency, found != currency)
        differ("version", redis["version"], ledger["version"], redis["version"] < ledger["version"])
        self._wait_for(sequence)
        values = {name: BigintArray(redis[name].astype(np.int64)) for name in _WALLET_NUMBERS}
        values["wallet"] = BigintArray(ledger["id"].astype(np.int64))
        for difference in self._connection.execute(sql("checks/redis_balances"), values):
            self._check.differs(*difference)

    # Holds

    def compare_holds(self) -> None:
        """Report open holds that only one side has, that differ, or that will not be found when their time is over."""
        since = self._ledger_sequence()
        query = "SELECT id FROM open_hold WHERE shard = %s"
        known = {row[0].bytes for row in self._connection.execute(query, (self._shard,))}
        try:
            found = self._redis.open_holds()
            self._compare_deadlines(found)
        except CorruptRecord as error:
            self._check.differs("the holds", f"Redis: {error}", "readable holds")
            return
        self._wait_for_redis()
        self._check.checked += len(found)
        self._report_missing(known - found.keys())
        self._compare_found(found, since)

    def _report_missing(self, hold_ids: Iterable[bytes]) -> None:
        """hold_ids: of holds that the ledger had and Redis has not. They may have ended meanwhile."""
        query = "SELECT id FROM open_hold WHERE shard = %(shard)s AND id = ANY (%(ids)s)"
        values = {"shard": self._shard, "ids": [UUID(bytes=hold_id) for hold_id in hold_ids]}
        for (hold_id,) in self._connection.execute(query, values):
            self._check.differs(f"hold {hold_id}", "Redis does not have it", "the ledger has it")

    def _compare_found(self, found: dict[bytes, bytes], since: int) -> None:
        readable = {}
        for hold_id, packed in found.items():
            if len(hold_id) == 16 and len(packed) == HOLD.size and packed[:2] == _OPEN_HOLD_HEAD:
                readable[hold_id] = packed
            else:
                self._check.differs(f"hold {hold_id.hex()}", f"Redis: {packed.hex()}", "a readable, open hold")
        holds = np.frombuffer(b"".join(readable.values()), _REDIS_HOLD)
        values: dict[str, Any] = {name: BigintArray(holds[name].astype(np.int64)) for name in _HOLD_NUMBERS}
        values |= {"id": UuidArray(np.frombuffer(b"".join(readable), "V16")), "shard": self._shard, "since": since}
        for difference in self._connection.execute(sql("checks/redis_holds"), values):
            self._check.differs(*difference)

    def _compare_deadlines(self, found: dict[bytes, bytes]) -> None:
        """Each hold that expires is in the sweeper's list, under its time."""
        expiring = [hold_id for hold_id, packed in found.items() if packed[-8:] != bytes(8)]
        for hold_id, packed, deadline in self._redis.deadlines(expiring):
            if packed and len(packed) == HOLD.size and HOLD.unpack(packed)["expires_at_ms"] != deadline:
                self._check.differs(f"hold {hold_id.hex()}", f"Redis: due at {deadline}", "due when it expires")

    # Tiers

    def compare_tiers(self) -> None:
        """Report tiers whose limits are none that the ledger has since it was first read."""
        since = self._ledger_sequence()
        try:
            found = self._redis.tiers()
        except CorruptRecord as error:
            self._check.differs("the tiers", f"Redis: {error}", "readable tiers")
            return
        self._wait_for_redis()
        known, limits = self._limits_since(since)
        self._check.checked += len(found)
        for tier in known - found.keys():
            self._check.differs(f"tier {tier}", "Redis does not have it", "the ledger has it")
        for tier, packed in found.items():
            if packed not in limits.get(tier, ()):
                self._check.differs(f"tier {tier}", f"Redis: {packed.hex()}", "limits that the ledger has")

    def _limits_since(self, since: int) -> tuple[set[int], dict[int, list[bytes]]]:
        """The tiers that the ledger had at a sequence; and of each tier the packed TIER_LIMITS from then on."""
        known: set[int] = set()
        limits: dict[int, list[bytes]] = {}
        with self._connection.cursor() as cursor:
            for rows in TIER_CHANGE.copy_out(cursor, f"WHERE shard = {self._shard:d} ORDER BY sequence", _BLOCK):
                for row in rows:
                    tier = int(row["tier"])
                    if row["sequence"] <= since:
                        known.add(tier)
                        limits[tier] = []
                    packed = TIER_LIMITS.struct.pack(LAYOUT_VERSION, *(row[name] for name in LIMITS))
                    limits.setdefault(tier, []).append(packed)
        return known, limits

    # Time

    def _ledger_sequence(self) -> int:
        row = self._connection.execute("SELECT sequence FROM shard_state WHERE shard = %s", (self._shard,)).fetchone()
        return row[0] if row else 0

    def _wait_for_redis(self) -> None:
        """Until the ledger has come to where Redis is now."""
        meta = self._redis.state().meta
        self._wait_for(meta["sequence"] if meta else 0)

    def _wait_for(self, sequence: int) -> None:
        """Until the ledger has the sequence."""
        deadline = time.monotonic() + PERSISTED_TIMEOUT_S
        while (at := self._ledger_sequence()) < sequence:
            if time.monotonic() > deadline:
                raise _LedgerStands(at, sequence)
            time.sleep(_POLL_S)


_OPEN_HOLD_HEAD = bytes((LAYOUT_VERSION, HoldState.OPEN))
