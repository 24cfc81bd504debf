"""Redis against the ledger, wallet by wallet, at the same sequence, while the traffic goes on.

Each wallet has a version, so the two need not be read at one moment: what Redis has at version v must be what the
ledger's entry of version v says, once the ledger has come as far as Redis was. Versions are read from the ledger
first, so Redis may not be behind them.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray

from engine.errors import CorruptRecord, ShardNotOpen
from engine.wire import MAX_BATCH, WALLET
from persister.copy_binary import BigintArray, BigintArrayDumper, RowFormat, Rows
from persister.journal import numpy_type
from persister.redis_shard import RedisShard
from persister.report import Check
from persister.sql import sql

PERSISTED_TIMEOUT_S = 10.0
_POLL_S = 0.005
_BLOCK = 64 * MAX_BATCH

_LEDGER_WALLET = RowFormat(
    "wallet JOIN wallet_balance ON wallet_id = id",
    id="int8",
    currency="char8",
    flags="int2",
    overdraft_limit="int8",
    version="int8",
)
_REDIS_WALLET = numpy_type(WALLET)


def compare_with_redis(redis: RedisShard, connection: psycopg.Connection, shard: int, check: Check) -> None:
    """Add to check what differs. connection: in autocommit mode. Redis' errors come as RedisShard raises them."""
    connection.adapters.register_dumper(BigintArray, BigintArrayDumper)
    comparison = _Comparison(redis, connection, shard, check)
    try:
        known = comparison.compare_wallets()
        comparison.compare_ids(known)
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
        meta = self._redis.state().meta
        self._wait_for(meta["sequence"] if meta else 0)
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
        there = sizes == WALLET.size
        self._check.checked += len(packed)
        found = b"".join(record for record in packed if len(record) == WALLET.size)
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

        for name in ("flags", "overdraft_limit"):
            differ(name, redis[name], ledger[name], redis[name] != ledger[name])
        currency = np.char.rstrip(np.frombuffer(ledger["currency"].tobytes(), "S8"))
        found = np.frombuffer(redis["currency"].tobytes(), "S8")
        differ("currency", found, currency, found != currency)
        differ("version", redis["version"], ledger["version"], redis["version"] < ledger["version"])
        self._wait_for(sequence)
        columns = ("version", "available", "locked")
        values = {name: BigintArray(redis[name].astype(np.int64)) for name in columns}
        values["wallet"] = BigintArray(ledger["id"].astype(np.int64))
        for difference in self._connection.execute(sql("checks/redis_balances"), values):
            self._check.differs(*difference)

    def _wait_for(self, sequence: int) -> None:
        """Until the ledger has the sequence."""
        deadline = time.monotonic() + PERSISTED_TIMEOUT_S
        while True:
            row = self._connection.execute(
                "SELECT sequence FROM shard_state WHERE shard = %s", (self._shard,)
            ).fetchone()
            at = row[0] if row else 0
            if at >= sequence:
                return
            if time.monotonic() > deadline:
                raise _LedgerStands(at, sequence)
            time.sleep(_POLL_S)
