"""Waits until accepted outcomes are as durable as their callers asked.

This file owns the rule of when an outcome is replicated or persisted. A server's word counts only for what that very
server has: another one that took over in between may lack the payment, and would sync, replicate and persist without
it. So each answer is first asked for again (hotledger_confirm, behind the open fence, byte by byte), then
  replicated  WAITAOF on the same connection, after a small write there, because it speaks of its own connection's
              writes only;
  persisted   the sequence that the ledger has reached, as the same call says, must not be smaller.
An answer that the server does not have is asked for again until the deadline, since it may come back by a feed forward;
and one whose generation was dropped is in the ledger, which is asked too. Nothing here makes a payment fail: what is
not known by the deadline is OutcomeUnknown.

Callers wait together: those who come while a round is under way are in the next one.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any

import structlog
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from engine.domain.durability import Durability
from engine.domain.status import ACCEPTED, NUMBER_OF
from engine.domain.transfer import Outcome
from engine.errors import OutcomeUnknown, Overloaded, Unavailable
from engine.ledger_lookup import LedgerLookup
from engine.loop import end
from engine.shard import Confirmed, Shard, unpack_confirmed
from engine.wire import CONFIRMATION, MAX_BATCH

POLL_S = 0.25
"""How often is asked while somebody waits and no word comes: messages get lost."""

_FIRST_WAITAOF_MS, _LAST_WAITAOF_MS = 1, 128
"""A replica that is asked how far it is answers before it syncs what it has just got, and would say so unasked only
once a second: so it is asked again, soon at first."""

_LISTEN_S = 1.0
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.02, 0.25
_DEAF_POLLS = 4


class _Waiter:
    """At most MAX_BATCH answers of one call. items: packed CONFIRMATIONs. sequence: the highest of them.
    recorded: the ledger was seen to have all of them."""

    __slots__ = ("count", "future", "items", "recorded", "sequence")

    def __init__(self, outcomes: Sequence[Outcome], future: asyncio.Future[None]) -> None:
        self.items = b"".join(map(_confirmation, outcomes))
        self.count = len(outcomes)
        self.sequence = max(outcome.sequence for outcome in outcomes)
        self.future = future
        self.recorded = False

    def end(self) -> None:
        if not self.future.done():
            self.future.set_result(None)

    def places(self) -> list[tuple[int, bytes]]:
        """(sequence, id) of each answer."""
        return [(int(item[3]), item[0]) for item in CONFIRMATION.struct.iter_unpack(self.items)]


def _confirmation(outcome: Outcome) -> bytes:
    """Of an accepted one; that it was a replay does not matter."""
    return CONFIRMATION.struct.pack(
        outcome.id_bytes,
        NUMBER_OF[outcome.status],
        outcome.rule,
        outcome.sequence,
        outcome.debit_available_minor,
        outcome.credit_available_minor,
        outcome.amount_minor,
        0,
    )


def _groups(waiters: Sequence[_Waiter]) -> Iterator[list[_Waiter]]:
    """As many together as one call confirms."""
    group: list[_Waiter] = []
    room = MAX_BATCH
    for waiter in waiters:
        if waiter.count > room:
            yield group
            group, room = [], MAX_BATCH
        group.append(waiter)
        room -= waiter.count
    if group:
        yield group


def _open_ones(waiters: Sequence[_Waiter]) -> list[_Waiter]:
    """Those that still wait: a caller who gave up, or whose deadline passed, is done too."""
    return [waiter for waiter in waiters if not waiter.future.done()]


def _held_ones(group: Sequence[_Waiter], confirmed: Confirmed) -> tuple[list[_Waiter], list[_Waiter]]:
    """Those whose answers the server has, all of them; and the others."""
    held: list[_Waiter] = []
    lost: list[_Waiter] = []
    start = 0
    for waiter in group:
        end = start + waiter.count
        (held if all(confirmed.held[start:end]) else lost).append(waiter)
        start = end
    return held, lost


class DurabilityWaits:
    """The callers that wait, of one engine. Belongs to the event loop that it was made in.

    ledger: is asked about answers that Redis no longer has; None if there is none to ask. replicas: how many a
    replicated answer has to reach. max_calls: more at once are refused before they are sent.
    """

    def __init__(
        self, shard: Shard, shard_number: int, ledger: LedgerLookup | None, replicas: int, max_calls: int
    ) -> None:
        witness = _Witness(ledger, shard_number)
        self._replication = _Replication(shard, witness, replicas)
        self._persistence = _Persistence(shard, witness)
        self._witness = witness
        self._max_calls = max_calls
        self._calls = 0
        self._none_left = asyncio.Event()
        self._none_left.set()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around a call that will wait, from before it is sent. Raises Overloaded."""
        if self._calls >= self._max_calls:
            raise Overloaded(f"{self._calls} calls wait for durability in this process already")
        self._calls += 1
        self._none_left.clear()
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls:
                self._none_left.set()

    async def until(self, level: Durability, outcomes: Sequence[Outcome], deadline_s: float) -> None:
        """Wait until those of the outcomes that were accepted are replicated, or persisted.

        Raises OutcomeUnknown, naming all of the outcomes, at the deadline.
        """
        accepted = [outcome for outcome in outcomes if outcome.status in ACCEPTED]
        if not accepted:
            return
        rounds: _Rounds = self._replication if level is Durability.REPLICATED else self._persistence
        loop = asyncio.get_running_loop()
        waiters = [
            _Waiter(accepted[start : start + MAX_BATCH], loop.create_future())
            for start in range(0, len(accepted), MAX_BATCH)
        ]
        try:
            async with asyncio.timeout_at(deadline_s):
                for waiter in waiters:
                    rounds.add(waiter)
                for waiter in waiters:
                    await waiter.future
        except TimeoutError:
            ids = [outcome.transfer_id for outcome in outcomes]
            why = f" ({rounds.trouble})" if rounds.trouble else ""
            what = f"accepted, but not known to be {level} before the deadline{why}"
            raise OutcomeUnknown(ids, what, accepted=True) from rounds.trouble
        finally:
            for waiter in waiters:
                waiter.future.cancel()

    async def drain(self) -> None:
        """Wait until each call under way has ended; its deadline bounds that."""
        await self._none_left.wait()

    async def close(self) -> None:
        await self._replication.close()
        await self._persistence.close()
        await self._witness.close()


class _Witness:
    """Asks the ledger about answers that the server does not have: of a generation that was dropped, all are there."""

    def __init__(self, ledger: LedgerLookup | None, shard_number: int) -> None:
        self._ledger = ledger
        self._shard_number = shard_number
        self._asking: asyncio.Task[None] | None = None

    def ask(self, rounds: _Rounds, waiters: Sequence[_Waiter]) -> None:
        """See to it that waiters whose answers are in the ledger are marked, and rounds woken. One query at a time."""
        if self._ledger is not None and waiters and (self._asking is None or self._asking.done()):
            some = next(_groups(waiters))
            self._asking = asyncio.get_running_loop().create_task(self._ask(self._ledger, rounds, some))

    async def _ask(self, ledger: LedgerLookup, rounds: _Rounds, waiters: Sequence[_Waiter]) -> None:
        places = [place for waiter in waiters for place in waiter.places()]
        try:
            recorded = await ledger.recorded(self._shard_number, places)
        except Exception as error:
            structlog.get_logger().warning("durability.ledger_not_asked", error=str(error))
            return
        for waiter in _held_ones(waiters, Confirmed(0, recorded))[0]:
            waiter.recorded = True
        rounds.wake()

    async def close(self) -> None:
        await end(self._asking)


class _Rounds(ABC):
    """A loop that serves its waiters together, for as long as the engine lives, from the first waiter on. Whatever goes
    wrong in it is tried again: all that depends on it is how soon a caller knows.

    trouble: why the last attempt failed; None once one worked.
    """

    def __init__(self, shard: Shard, witness: _Witness) -> None:
        self._shard = shard
        self._witness = witness
        self._woken = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._pause_s = 0.0
        self.trouble: Exception | None = None

    @abstractmethod
    def add(self, waiter: _Waiter) -> None:
        """Take a waiter; its future ends when its answers are durable."""

    @abstractmethod
    def _loops(self) -> list[Coroutine[Any, Any, None]]:
        """What runs as long as the engine lives."""

    def wake(self) -> None:
        self._woken.set()

    async def close(self) -> None:
        for task in self._tasks:
            await end(task)

    def _begin(self) -> None:
        if not self._tasks:
            loop = asyncio.get_running_loop()
            self._tasks = [loop.create_task(run) for run in self._loops()]

    def _failed(self, error: Exception) -> None:
        """Note why an attempt failed, and for how long to let the server breathe."""
        if self.trouble is None:
            structlog.get_logger().warning("durability.not_known", kind=type(error).__name__, error=str(error))
        self.trouble = error
        self._pause_s = min(max(self._pause_s * 2, _FIRST_PAUSE_S), _LAST_PAUSE_S)

    def _worked(self) -> None:
        self.trouble, self._pause_s = None, 0.0


class _Replication(_Rounds):
    """Rounds of: are the answers there, write something, wait for this disk and those of the replicas."""

    def __init__(self, shard: Shard, witness: _Witness, replicas: int) -> None:
        super().__init__(shard, witness)
        self._loop = asyncio.get_running_loop()
        self._replicas = replicas
        self._waiting: list[_Waiter] = []
        self._again: list[_Waiter] = []
        self._again_at_s = 0.0
        self._connection: AbstractConnection | None = None
        self._disks = 0

    def add(self, waiter: _Waiter) -> None:
        self._waiting.append(waiter)
        self._begin()
        self._woken.set()

    def _loops(self) -> list[Coroutine[Any, Any, None]]:
        return [self._run()]

    async def close(self) -> None:
        await super().close()
        await self._disconnect()

    async def _run(self) -> None:
        while True:
            waiters = await self._next()
            try:
                await self._serve(waiters)
                self._worked()
            except Exception as error:
                self._failed(error)
                await self._disconnect()
            self._again += _open_ones(waiters)
            self._again_at_s = self._loop.time() + (self._pause_s or POLL_S)

    async def _next(self) -> list[_Waiter]:
        """Those who wait, without those that were tried just now."""
        while True:
            if self._again and self._loop.time() >= self._again_at_s:
                self._waiting += self._again
                self._again = []
            waiters, self._waiting = _open_ones(self._waiting), []
            if waiters:
                return waiters
            self._woken.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._again_at_s if self._again else None):
                    await self._woken.wait()

    async def _serve(self, waiters: Sequence[_Waiter]) -> None:
        """One round: ends the waiters whose answers are where they shall be."""
        connection = self._connection or await self._connect()
        groups = list(_groups(waiters))
        # All at once, and in this order: the write comes after the answers were found, WAITAOF after the write.
        commands = [
            self._shard.confirmation(b"".join([waiter.items for waiter in group]), write=group is groups[-1])
            for group in groups
        ]
        wait_ms = _FIRST_WAITAOF_MS
        await connection.send_packed_command(connection.pack_commands([*commands, self._wait_command(wait_ms)]))
        held: list[_Waiter] = []
        lost: list[_Waiter] = []
        for group in groups:
            here, gone = _held_ones(group, unpack_confirmed(await connection.read_response()))
            held += here
            lost += gone
        held += [waiter for waiter in lost if waiter.recorded]
        self._witness.ask(self, [waiter for waiter in lost if not waiter.recorded])
        while not await self._is_reached(connection):
            # The same write is waited for: a new one would have to be synced and sent in its turn.
            if not _open_ones(held):
                return
            self._waiting = _open_ones(self._waiting)
            wait_ms = min(2 * wait_ms, _LAST_WAITAOF_MS)
            await connection.send_packed_command(connection.pack_commands([self._wait_command(wait_ms)]))
        for waiter in held:
            waiter.end()

    def _wait_command(self, wait_ms: int) -> tuple[bytes | int, ...]:
        return (b"WAITAOF", self._disks, self._replicas, wait_ms)

    async def _is_reached(self, connection: AbstractConnection) -> bool:
        local, replicas = await connection.read_response()
        reached = bool(local >= self._disks and replicas >= self._replicas)
        if not reached:
            disk = "" if local >= self._disks else "not yet synced by the server itself, and "
            self.trouble = Unavailable(f"{disk}on {replicas} of {self._replicas} replicas")
        return reached

    async def _connect(self) -> AbstractConnection:
        connection = self._shard.own_connection()
        self._connection = connection
        await connection.connect()
        await connection.send_command("INFO", "persistence")
        info: bytes = await connection.read_response()
        # A server without an append-only file refuses to be waited for.
        self._disks = 1 if b"aof_enabled:1" in info else 0
        return connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)


class _Persistence(_Rounds):
    """Waits for the persister's word of how far the ledger is, by sequence; asks now and then in case it got lost."""

    def __init__(self, shard: Shard, witness: _Witness) -> None:
        super().__init__(shard, witness)
        self._loop = asyncio.get_running_loop()
        self._heap: list[tuple[int, int, _Waiter]] = []
        self._numbers = count()
        self._again: list[_Waiter] = []
        self._persisted = 0
        self._poll_at_s = 0.0
        self._polling = False
        self._deaf_polls = 0

    def add(self, waiter: _Waiter) -> None:
        if not self._heap or waiter.sequence <= self._persisted:
            self._woken.set()
        self._push(waiter)
        self._begin()

    def _loops(self) -> list[Coroutine[Any, Any, None]]:
        return [self._run(), self._listen()]

    async def _run(self) -> None:
        while True:
            for group in _groups(await self._next()):
                try:
                    confirmed = await self._shard.confirm(b"".join([waiter.items for waiter in group]))
                    self._worked()
                    self._settle(group, confirmed)
                except Exception as error:
                    self._failed(error)
                    self._poll_at_s = self._loop.time() + self._pause_s
                    self._ask_again(group)

    def _settle(self, group: Sequence[_Waiter], confirmed: Confirmed) -> None:
        if self._polling and confirmed.persisted > self._persisted:
            self._deaf_polls += 1
        # Not the greater of the two: a server that took over may be behind, and must not be asked in a circle.
        self._persisted = confirmed.persisted
        held, lost = _held_ones(group, confirmed)
        for waiter in held:
            if waiter.sequence <= confirmed.persisted:
                waiter.end()
            else:
                self._push(waiter)
        self._ask_again(lost)

    def _ask_again(self, waiters: list[_Waiter]) -> None:
        """At the next poll; and ask the ledger meanwhile."""
        self._again += waiters
        self._witness.ask(self, waiters)

    async def _next(self) -> list[_Waiter]:
        """Those whose answers are worth asking for now."""
        while True:
            for waiter in self._again:
                if waiter.recorded:
                    waiter.end()
            now = self._loop.time()
            self._polling = now >= self._poll_at_s
            if self._polling:
                self._poll_at_s = now + POLL_S
                self._forget_the_done()
            waiters = self._ready()
            if self._polling:
                waiters += self._again
                self._again = []
                if not waiters and self._heap:
                    waiters = [heappop(self._heap)[2]]  # only to learn how far the ledger is
            if waiters:
                return waiters
            self._woken.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._poll_at_s if self._heap or self._again else None):
                    await self._woken.wait()

    def _push(self, waiter: _Waiter) -> None:
        heappush(self._heap, (waiter.sequence, next(self._numbers), waiter))

    def _ready(self) -> list[_Waiter]:
        """Those that the ledger has, as far as was heard."""
        ready = []
        while self._heap and self._heap[0][0] <= self._persisted:
            waiter = heappop(self._heap)[2]
            if not waiter.future.done():
                ready.append(waiter)
        return ready

    def _forget_the_done(self) -> None:
        """So that calls that gave up do not fill the memory while no persister works."""
        self._again = _open_ones(self._again)
        self._heap = [entry for entry in self._heap if not entry[2].future.done()]
        heapify(self._heap)

    async def _listen(self) -> None:
        while True:
            subscriber = self._shard.subscriber()
            try:
                await subscriber.subscribe(self._shard.keys.persisted_channel)
                self._poll_at_s = self._deaf_polls = 0  # what was said before is asked for
                self._woken.set()
                while self._deaf_polls < _DEAF_POLLS:
                    message = await subscriber.get_message(ignore_subscribe_messages=True, timeout=_LISTEN_S)
                    if message:
                        self._hear(int(message["data"]))
            except Exception as error:
                structlog.get_logger().info("durability.not_listening", error=str(error))
            finally:
                with suppress(RedisError, OSError):
                    await subscriber.aclose()
            await asyncio.sleep(_LAST_PAUSE_S)

    def _hear(self, persisted: int) -> None:
        self._persisted, self._deaf_polls = persisted, 0
        if self._heap and self._heap[0][0] <= persisted:
            self._woken.set()
