"""Redis against the ledger, at the same sequence, while the traffic goes on: wallets, holds and tiers, one by one.

Each wallet has a version, so the two need not be read at one moment: what Redis has at version v must be what the
ledger's entry of version v says, once the ledger has come as far as Redis was. Versions are read from the ledger
first, so Redis may not be behind them. A hold or a tier has no version: it must be as the ledger has it at some moment
from when the ledger was first read up to where Redis was afterwards.

What differs is looked at a second time before it is told: in between a shard may have failed over to a server without
its end, or been fed from the ledger, and that is no drift. Drift stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
import psycopg
from numpy.typing import NDArray

from engine.domain.money import MAX_AMOUNT_MINOR
from engine.domain.transfer import HoldState
from engine.errors import CorruptRecord
from engine.wire import HOLD, LAYOUT_VERSION, TIER_LIMITS, USAGE, WALLET
from persister.copy_binary import BigintArray, UuidArray, register_arrays
from persister.formats import LIMITS, TIER_CHANGE
from persister.journal import numpy_type
from persister.redis_shard import RedisShard
from persister.report import Check
from persister.sql import sql

PERSISTED_TIMEOUT_S = 10.0
"""How long the ledger may stand still while it is waited for."""

WALLETS_AT_ONCE = 32_768
_ROWS_AT_ONCE = 10_000
_POLL_S = 0.005

_NUMBERS = ("version", "available", "locked", "flags", "tier", "overdraft_limit")
_LEDGER_WALLET = np.dtype([("id", "i8"), *((name, "i8") for name in _NUMBERS), ("currency", "S8")])
_ARRAY_HEADER_SIZE = 20
_ARRAY_ITEM = np.dtype([("length", ">i4"), ("value", ">i8")])
_REDIS_WALLET = numpy_type(WALLET)
_WITH_USAGE = WALLET.size + USAGE.size
_SIZES = (WALLET.size, _WITH_USAGE)
_BLANK = bytes(WALLET.size)
_REDIS_HOLD = numpy_type(HOLD)
_HOLD_NUMBERS = ("remaining", "captured", "review", "purpose", "debit", "credit", "expires_at_ms")
_OPEN_HOLD_HEAD = bytes((LAYOUT_VERSION, HoldState.OPEN))


def compare_with_redis(
    redis: RedisShard,
    connection: psycopg.Connection,
    shard: int,
    check: Check,
    *,
    wallet_ids: NDArray[np.int64] | None = None,
    closed: bool = False,
) -> None:
    """Add to check what differs: of everything, or of the wallets in wallet_ids alone.

    connection: in autocommit mode. closed: whether a shard that takes no payments is compared too; nothing else may
    write to it meanwhile. Where the comparison cannot come to its end (a closed shard, a ledger that stands still)
    check.incomplete says why. Redis' errors come as RedisShard raises them.
    """
    register_arrays(connection)
    comparison = _Comparison(redis, connection, shard)
    try:
        if not closed:
            comparison.check_open()
        if wallet_ids is None:
            comparison.compare_everything(check)
        else:
            comparison.compare_some(wallet_ids, check)
    except _Incomplete as found:
        check.give_up(*found.difference)
    if not closed and not check.incomplete and not redis.state().is_open:
        # What differed may be a history that is being put right: it is compared again once it is open.
        check.forget()
        check.give_up(*_CLOSED)


class _Incomplete(Exception):
    """The comparison cannot go on. difference: subject, found, expected."""

    def __init__(self, *difference: str) -> None:
        self.difference = difference


_CLOSED = ("the shard", "it is closed: no persister has checked its history", "an open shard")


class _Wallets(NamedTuple):
    """Redis' records beside the ledger's, row by row. record: zeros where there is none that can be read."""

    ledger: NDArray[np.void]
    record: NDArray[np.void]
    missing: NDArray[np.bool_]
    readable: NDArray[np.bool_]
    sequence: int

    def select(self, rows: NDArray[Any]) -> _Wallets:
        return _Wallets(
            self.ledger[rows], self.record[rows], self.missing[rows], self.readable[rows], self.sequence
        )  # fmt: skip

    def version_is(self, compare: np.ufunc) -> NDArray[np.bool_]:
        """Of those that can be read: compare(Redis' version, the ledger's)."""
        found: NDArray[np.bool_] = compare(self.record["version"], self.ledger["version"].astype(np.float64))
        return self.readable & found

    def other_currency(self) -> NDArray[np.bool_]:
        differs: NDArray[np.bool_] = _currencies(self.record) != np.char.rstrip(_currencies(self.ledger))
        return self.readable & differs

    def other_numbers(self) -> NDArray[np.bool_]:
        """Of those at the same version."""
        differs = np.zeros(len(self.ledger), bool)
        for name in _NUMBERS:
            differs |= self.record[name] != self.ledger[name].astype(np.float64)
        return differs & self.version_is(np.equal)


class _Comparison:
    def __init__(self, redis: RedisShard, connection: psycopg.Connection, shard: int) -> None:
        self._redis = redis
        self._connection = connection
        self._shard = shard

    def check_open(self) -> None:
        if not self._redis.state().is_open:
            raise _Incomplete(*_CLOSED)

    def compare_everything(self, check: Check) -> None:
        known = self._compare_all_wallets(check)
        self._compare_ids(known, check)
        self._confirmed(self._compare_holds, check)
        self._confirmed(self._compare_tiers, check)

    def compare_some(self, wallet_ids: NDArray[np.int64], check: Check) -> None:
        starts = range(0, len(wallet_ids), WALLETS_AT_ONCE)
        blocks = (self._ledger_wallets(wallet_ids[start : start + WALLETS_AT_ONCE]) for start in starts)
        self._compare_blocks(blocks, check)

    @staticmethod
    def _confirmed(compare: Callable[[Check], None], check: Check) -> None:
        """Tell what two comparisons found, one after the other."""
        first, second = Check(check.name, ""), Check(check.name, "")
        compare(first)
        check.checked += first.checked
        if first.ok:
            return
        compare(second)
        suspected = {difference.subject for difference in first.differences}
        for difference in second.differences:
            if difference.subject in suspected:
                check.add(difference)

    # Wallets

    def _compare_all_wallets(self, check: Check) -> NDArray[np.int64]:
        """Compare each wallet of the ledger; returns their ids, in ascending order."""
        known: list[NDArray[np.int64]] = []

        def blocks() -> Iterator[NDArray[np.void]]:
            for first, last in self._ranges():
                ledger = self._ledger_wallets(None, first, last)
                known.append(ledger["id"])
                yield ledger

        self._compare_blocks(blocks(), check)
        return np.concatenate(known) if known else np.empty(0, np.int64)

    def _ranges(self) -> Iterator[tuple[int, int]]:
        """The ledger's wallets in blocks: first and last id. Each is read by itself, because versions get old."""
        block = "SELECT id FROM wallet WHERE shard = %s AND id > %s ORDER BY id LIMIT %s"
        query = f"SELECT min(id), max(id) FROM ({block}) AS block"  # noqa: S608  fixed text
        last = np.iinfo(np.int64).min
        while True:
            row = self._connection.execute(query, (self._shard, int(last), WALLETS_AT_ONCE)).fetchone()
            if row is None or row[0] is None:
                return
            first, last = row
            yield first, last

    def _ledger_wallets(
        self, ids: NDArray[np.int64] | None, first: int | None = None, last: int | None = None
    ) -> NDArray[np.void]:
        """Those with the ids, or all from first to last."""
        values: dict[str, Any] = {"shard": self._shard, "first": first, "last": last, "ids": None}
        if ids is not None:
            values |= {"ids": BigintArray(ids), "first": int(ids.min()), "last": int(ids.max())}
        with self._connection.transaction(), self._connection.cursor(binary=True) as cursor:
            # Where the tables were filled since they were last analysed, it would look up each balance by itself.
            cursor.execute("SET LOCAL enable_nestloop = off")
            # Prepared it would be planned without its values.
            cursor.execute(sql("checks/ledger_wallets"), values, prepare=False)
            assert cursor.pgresult is not None
            *columns, currencies = (cursor.pgresult.get_value(0, at) for at in range(len(_LEDGER_WALLET.names or ())))
        found = np.empty(len(currencies or b"") // 8, _LEDGER_WALLET)
        if currencies:
            found["currency"] = np.frombuffer(currencies, "S8")
            for name, column in zip(("id", *_NUMBERS), columns, strict=True):
                found[name] = np.frombuffer(column or b"", _ARRAY_ITEM, offset=_ARRAY_HEADER_SIZE)["value"]
        return found

    def _compare_blocks(self, blocks: Iterable[NDArray[np.void]], check: Check) -> None:
        moved_on = None
        for ledger in blocks:
            wallets = self._beside(ledger)
            check.checked += len(ledger)
            suspected = (
                ~wallets.readable | wallets.version_is(np.less) | wallets.other_currency() | wallets.other_numbers()
            )
            self._look_again(ledger["id"][suspected], check)
            # Settled a block later: by then the ledger has come to where Redis was, mostly.
            self._settle(moved_on, check)
            moved_on = wallets.select(wallets.version_is(np.greater) & ~suspected)
        self._settle(moved_on, check)

    def _settle(self, moved_on: _Wallets | None, check: Check) -> None:
        """moved_on: wallets at a later version in Redis than the ledger had."""
        if moved_on is not None:
            differing = [difference[0] for difference in self._against_entries(moved_on)]
            self._look_again(np.unique(np.array(differing, np.int64)), check)

    def _look_again(self, wallet_ids: NDArray[np.int64], check: Check) -> None:
        if not len(wallet_ids):
            return
        wallets = self._beside(self._ledger_wallets(wallet_ids))

        def differ(rows: NDArray[np.bool_], found: Callable[[int], str], expected: Callable[[int], str]) -> None:
            for at in np.flatnonzero(rows).tolist():
                versions = int(wallets.record["version"][at]) if wallets.readable[at] else None, ledger_version(at)
                check.differs(f"wallet {wallets.ledger['id'][at]}", found(at), expected(at), *versions)

        def ledger_version(at: int) -> int:
            return int(wallets.ledger["version"][at])

        differ(wallets.missing, lambda _: "Redis does not have it", lambda _: "the ledger has it")
        differ(~wallets.missing & ~wallets.readable, lambda _: "Redis: a damaged record", lambda _: "a readable record")
        behind, other = wallets.version_is(np.less), wallets.other_currency()
        differ(
            behind, lambda at: f"Redis: version {wallets.record['version'][at]:.0f}", lambda at: f"{ledger_version(at)}"
        )
        differ(
            other & ~behind,
            lambda at: f"Redis: currency {_currencies(wallets.record)[at].decode(errors='replace')}",
            lambda at: f"currency {_currencies(wallets.ledger)[at].decode().rstrip()}",
        )
        for wallet_id, *difference in self._against_entries(wallets.select(wallets.readable & ~behind & ~other)):
            check.differs(f"wallet {wallet_id}", *difference)

    def _beside(self, ledger: NDArray[np.void]) -> _Wallets:
        """What Redis has of the wallets, read after the ledger."""
        sequence, stored = self._redis.stored_wallets(ledger["id"])
        sizes = np.array([-1 if packed is None else len(packed) for packed in stored])
        whole: list[Any] = stored  # without a look at each, where no tier is in use
        packed = b"".join(whole if (sizes == WALLET.size).all() else [_fixed_part(record) for record in stored])
        record = np.frombuffer(packed, _REDIS_WALLET)
        return _Wallets(ledger, record, sizes < 0, _can_be_read(record, sizes), sequence)

    def _against_entries(self, wallets: _Wallets) -> list[tuple[Any, ...]]:
        """What differs from the ledger's entries: (wallet, found, expected, both versions), once it has them."""
        if not len(wallets.ledger):
            return []
        self._wait_for(wallets.sequence)
        values = {name: BigintArray(wallets.record[name].astype(np.int64)) for name in _NUMBERS}
        values["wallet"] = BigintArray(wallets.ledger["id"])
        return self._connection.execute(sql("checks/redis_balances"), values).fetchall()

    def _compare_ids(self, known: NDArray[np.int64], check: Check) -> None:
        """Report wallets that Redis has and the ledger does not get."""
        found = self._redis.wallet_ids()
        check.checked += len(found)
        at = np.minimum(np.searchsorted(known, found), len(known) - 1)
        unknown = np.unique(found if not len(known) else found[known[at] != found])
        if not len(unknown):
            return
        # They may have been opened since; then the ledger knows them once it is where Redis is now.
        self._wait_for_redis()
        query = "SELECT id FROM unnest(%b::bigint[]) AS w (id) WHERE NOT EXISTS (SELECT FROM wallet WHERE id = w.id)"
        strangers = [row[0] for row in self._connection.execute(query, (BigintArray(unknown),))]
        if strangers:
            _, stored = self._redis.stored_wallets(np.array(strangers))
            for wallet_id, packed in zip(strangers, stored, strict=True):
                if packed is not None:
                    check.differs(f"wallet {wallet_id}", "Redis has it", "the ledger does not know it")

    # Holds

    def _compare_holds(self, check: Check) -> None:
        """Report open holds that only one side has, that differ, or that will not be found when their time is over."""
        since = self._ledger_sequence()
        query = "SELECT id FROM open_hold WHERE shard = %s"
        known = {row[0].bytes for row in self._connection.execute(query, (self._shard,))}
        try:
            found = self._redis.open_holds()
            self._compare_deadlines(found, check)
        except CorruptRecord as error:
            check.differs("the holds", f"Redis: {error}", "readable holds")
            return
        self._wait_for_redis()
        check.checked += len(found)
        self._report_missing(known - found.keys(), check)
        self._compare_found(found, since, check)

    def _report_missing(self, hold_ids: Iterable[bytes], check: Check) -> None:
        """hold_ids: of holds that the ledger had and Redis has not. They may have ended meanwhile."""
        query = "SELECT id FROM open_hold WHERE shard = %(shard)s AND id = ANY (%(ids)s)"
        values = {"shard": self._shard, "ids": [UUID(bytes=hold_id) for hold_id in hold_ids]}
        for (hold_id,) in self._connection.execute(query, values):
            check.differs(f"hold {hold_id}", "Redis does not have it", "the ledger has it")

    def _compare_found(self, found: dict[bytes, bytes], since: int, check: Check) -> None:
        readable = {}
        for hold_id, packed in found.items():
            if len(hold_id) == 16 and len(packed) == HOLD.size and packed[:2] == _OPEN_HOLD_HEAD:
                readable[hold_id] = packed
            else:
                check.differs(f"hold {hold_id.hex()}", f"Redis: {packed.hex()}", "a readable, open hold")
        holds = np.frombuffer(b"".join(readable.values()), _REDIS_HOLD)
        values: dict[str, Any] = {name: BigintArray(holds[name].astype(np.int64)) for name in _HOLD_NUMBERS}
        values |= {"id": UuidArray(np.frombuffer(b"".join(readable), "V16")), "shard": self._shard, "since": since}
        for difference in self._connection.execute(sql("checks/redis_holds"), values):
            check.differs(*difference)

    def _compare_deadlines(self, found: dict[bytes, bytes], check: Check) -> None:
        """Each hold that expires is in the sweeper's list, under its time."""
        expiring = [hold_id for hold_id, packed in found.items() if packed[-8:] != bytes(8)]
        for hold_id, packed, deadline in self._redis.deadlines(expiring):
            if packed and len(packed) == HOLD.size and HOLD.unpack(packed)["expires_at_ms"] != deadline:
                check.differs(f"hold {hold_id.hex()}", f"Redis: due at {deadline}", "due when it expires")

    # Tiers

    def _compare_tiers(self, check: Check) -> None:
        """Report tiers whose limits are none that the ledger has since it was first read."""
        since = self._ledger_sequence()
        try:
            found = self._redis.tiers()
        except CorruptRecord as error:
            check.differs("the tiers", f"Redis: {error}", "readable tiers")
            return
        self._wait_for_redis()
        known, limits = self._limits_since(since)
        check.checked += len(found)
        for tier in known - found.keys():
            check.differs(f"tier {tier}", "Redis does not have it", "the ledger has it")
        for tier, packed in found.items():
            if packed not in limits.get(tier, ()):
                check.differs(f"tier {tier}", f"Redis: {packed.hex()}", "limits that the ledger has")

    def _limits_since(self, since: int) -> tuple[set[int], dict[int, list[bytes]]]:
        """The tiers that the ledger had at a sequence; and of each tier the packed TIER_LIMITS from then on."""
        known: set[int] = set()
        limits: dict[int, list[bytes]] = {}
        with self._connection.cursor() as cursor:
            for rows in TIER_CHANGE.copy_out(cursor, f"WHERE shard = {self._shard:d} ORDER BY sequence", _ROWS_AT_ONCE):
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
        """Until the ledger has the sequence. It may take long, but not stand still."""
        best, deadline = -1, 0.0
        while (at := self._ledger_sequence()) < sequence:
            if at > best:
                best, deadline = at, time.monotonic() + PERSISTED_TIMEOUT_S
            elif time.monotonic() > deadline:
                raise _Incomplete(
                    "the ledger", f"stands at {at}", f"sequence {sequence}, where Redis is: run a persister"
                )
            time.sleep(_POLL_S)


def _fixed_part(packed: bytes | None) -> bytes:
    """The WALLET, without the USAGE that may follow; zeros if it has another size."""
    return packed[: WALLET.size] if packed is not None and len(packed) in _SIZES else _BLANK


def _currencies(records: NDArray[np.void]) -> NDArray[np.bytes_]:
    return np.frombuffer(records["currency"].tobytes(), "S8")


def _can_be_read(record: NDArray[np.void], sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """As lua/lib/wallet.lua distrusts a wallet: whole numbers within their bounds. NaN is within none."""
    readable: NDArray[np.bool_] = (record["layout"] == LAYOUT_VERSION) & (
        (record["tier"] != 0) == (sizes == _WITH_USAGE)
    )
    for name in ("available", "locked", "version", "overdraft_limit"):
        lowest = {"available": -MAX_AMOUNT_MINOR, "version": 1}.get(name, 0)
        number = record[name]
        inside = (number >= lowest) & (number <= MAX_AMOUNT_MINOR)
        readable &= inside & (np.floor(np.where(inside, number, 0.5)) == number)
    return readable
