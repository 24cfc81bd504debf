"""Gathers concurrent calls into one call of `post`, and carries them through lost connections to an answer.

Calls that arrive while a batch is in flight wait for the next one: no timer, so no added latency when idle, and
under load the batch grows by itself. A call ends in exactly one of: its reply; Unavailable, when it surely was not
applied; OutcomeUnknown, when it may have been; or the Fatal error that the server gave.

This file owns the rule of when an outcome is known. A call is *in doubt* while it is in flight, and from the moment
a flight ended without a reply until a later answer settles it. Every batch carries the server time after which the
server will not decide it, so a request cannot be applied later than its caller was told.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import structlog

from engine.domain.status import NUMBER_OF, Status
from engine.errors import CorruptRecord, Fatal, OutcomeUnknown, Overloaded, ShardNotOpen, Unavailable
from engine.wire import ANSWER, MAX_BATCH, REPLY_HEADER, request_ids

DEPTH = 2
"""Batches in flight at once: while the server decides one, the other is on its way. More only delays answers."""

EAGER = 32
"""Waiting requests that leave at once instead of at the end of the loop's turn, so that server and client overlap."""

MAX_QUEUED = 65_536

_FIRST_BACKOFF_S = 0.005
_LAST_BACKOFF_S = 0.25

_SHARD_NOT_OPEN = NUMBER_OF[Status.SHARD_NOT_OPEN]
_DEADLINE_PASSED = NUMBER_OF[Status.DEADLINE_PASSED]


class NotApplied(Exception):
    """A transport's word that the server did not decide the batch, and that sending it again may work."""

    def __init__(self, reason: Unavailable) -> None:
        self.reason = reason


class NoReply(Exception):
    """A transport's word that the connection ended between send and reply: the batch may have been decided."""


Transport = Callable[[bytes, bytes, int], asyncio.Future[bytes]]
"""(requests, details, not_after_ms) -> a future of the reply of `post`, which raises NotApplied, NoReply or Fatal.

The batch is on its way when this returns: the server decides it while this process gathers the next one.
"""


class ServerClock:
    """What the server's clock says, in terms of this process's; never ahead of it by more than a clock step."""

    def __init__(self) -> None:
        self._offset_ms = 0.0

    def observe(self, server_ms: float, now_s: float) -> None:
        self._offset_ms = server_ms - now_s * 1000

    def at(self, local_s: float) -> int:
        return int(self._offset_ms + local_s * 1000)


class _Call:
    __slots__ = ("alone", "count", "deadline_s", "details", "flying", "future", "lost", "records", "refusal")

    def __init__(self, records: bytes, details: bytes, count: int, deadline_s: float, future: asyncio.Future[bytes]):
        self.records = records
        self.details = details
        self.count = count
        self.deadline_s = deadline_s
        self.future = future
        self.flying = False
        self.lost = False
        self.alone = False
        self.refusal: Unavailable | None = None

    def expire(self) -> None:
        if self.flying or self.lost:
            self.future.set_exception(OutcomeUnknown(request_ids(self.records)))
        else:
            self.future.set_exception(self.refusal or Unavailable("the deadline passed before the request was sent"))


class Batcher:
    """The queue in front of one shard. Belongs to the event loop that it was made in."""

    def __init__(
        self,
        transport: Transport,
        clock: ServerClock,
        *,
        max_queued: int = MAX_QUEUED,
        max_batch: int = MAX_BATCH,
        depth: int = DEPTH,
    ) -> None:
        self._transport = transport
        self._clock = clock
        self._max_queued = max_queued
        self._max_batch = max_batch
        self._depth = depth
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Call] = deque()
        self._queued = 0
        self._flights: dict[asyncio.Future[bytes], list[_Call]] = {}
        self._eager = EAGER
        self._flush_soon = False
        self._closing = False
        self._backoff_s = 0.0
        self._pause: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self.batches_sent = 0

    def submit(self, records: bytes, details: bytes, count: int, deadline_s: float) -> asyncio.Future[bytes]:
        """Queue `count` packed requests that belong into one batch.

        deadline_s: the loop's time at which the caller stops waiting.
        The future gives count ANSWER records, or raises Unavailable, OutcomeUnknown or Fatal.
        Raises Overloaded, and Unavailable once the batcher drains.
        """
        if self._closing:
            raise Unavailable("this engine is closed")
        if self._queued + count > self._max_queued:
            raise Overloaded(f"{self._queued} requests are queued in this process already, of {self._max_queued}")
        call = _Call(records, details, count, deadline_s, self._loop.create_future())
        self._queue.append(call)
        self._queued += count
        if len(self._flights) < self._depth:
            if self._queued >= self._eager:
                self._flush()
            elif not self._flush_soon:
                self._flush_soon = True
                self._loop.call_soon(self._flush)
        if self._expiry is None or deadline_s < self._expiry.when():
            self._expire_at(deadline_s)
        return call.future

    async def drain(self) -> None:
        """Take no more calls, and wait until each one under way has ended by its answer or its deadline."""
        self._closing = True
        while self._queue or self._flights:
            await asyncio.wait([*self._flights, *(call.future for call in self._queue)])
        for timer in (self._expiry, self._pause):
            if timer is not None:
                timer.cancel()

    def _flush(self) -> None:
        self._flush_soon = False
        while self._queue and self._pause is None and len(self._flights) < self._depth:
            batch = self._take()
            if batch:
                self._send(batch)

    def _take(self) -> list[_Call]:
        batch: list[_Call] = []
        queue, room = self._queue, self._max_batch
        while queue and queue[0].count <= room:
            call = queue.popleft()
            self._queued -= call.count
            if call.future.done():  # it expired, or its caller gave up
                continue
            if call.alone and batch:
                queue.appendleft(call)
                self._queued += call.count
                break
            call.flying = True
            batch.append(call)
            room = 0 if call.alone else room - call.count
        return batch

    def _send(self, batch: list[_Call]) -> None:
        self.batches_sent += 1
        flight = self._transport(
            b"".join([call.records for call in batch]),
            b"".join([call.details for call in batch]),
            self._clock.at(min([call.deadline_s for call in batch])),
        )
        self._flights[flight] = batch
        flight.add_done_callback(self._landed)

    def _landed(self, flight: asyncio.Future[bytes]) -> None:
        """See each call of a flight answered, failed or queued again, and send the next batch."""
        batch = self._flights.pop(flight)
        error = flight.exception()
        if error is None:
            self._settle(batch, flight.result())
        elif isinstance(error, NoReply):
            self._again(batch, in_doubt=True)
        elif isinstance(error, NotApplied):
            self._again(batch, refusal=error.reason)
        elif isinstance(error, CorruptRecord) and len(batch) > 1:
            # One damaged record fails a whole batch, with nothing written: find the calls that it concerns.
            for call in batch:
                call.alone = True
            self._again(batch, pause=False)
        elif isinstance(error, Fatal):
            self._fail(batch, error)
        else:
            structlog.get_logger().error("batcher.broken", error=repr(error))
            for call in batch:
                self._fail([call], OutcomeUnknown(request_ids(call.records)))
        self._eager = max(EAGER, (self._queued + sum(map(len, self._flights.values()))) // self._depth)
        self._flush()

    def _settle(self, batch: list[_Call], reply: bytes) -> None:
        self._clock.observe(REPLY_HEADER.struct.unpack_from(reply)[0], self._loop.time())
        status = reply[REPLY_HEADER.size]
        if status == _SHARD_NOT_OPEN:
            self._again(batch, refusal=ShardNotOpen("the shard waits for its persister to check its history"))
        elif status == _DEADLINE_PASSED:
            self._again(batch, refusal=Unavailable("the deadline passed before the server decided"), pause=False)
        else:
            self._answer(batch, reply)

    def _answer(self, batch: list[_Call], reply: bytes) -> None:
        self._backoff_s = 0.0
        position = REPLY_HEADER.size
        for call in batch:
            end = position + call.count * ANSWER.size
            if not call.future.done():
                call.future.set_result(reply[position:end])
            position = end

    def _fail(self, batch: list[_Call], error: Fatal | OutcomeUnknown) -> None:
        for call in batch:
            if not call.future.done():
                call.future.set_exception(error)

    def _again(
        self,
        batch: list[_Call],
        *,
        in_doubt: bool = False,
        refusal: Unavailable | None = None,
        pause: bool = True,
    ) -> None:
        """Put the calls back at the head of the queue, in order, and let the server breathe."""
        for call in reversed(batch):
            call.flying = False
            call.lost = call.lost or in_doubt
            call.refusal = refusal
            if not call.future.done():
                self._queue.appendleft(call)
                self._queued += call.count
        if pause and self._pause is None:
            self._backoff_s = min(max(self._backoff_s * 2, _FIRST_BACKOFF_S), _LAST_BACKOFF_S)
            self._pause = self._loop.call_later(self._backoff_s, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self._flush()

    def _expire_at(self, when_s: float) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = self._loop.call_at(when_s, self._expire)

    def _expire(self) -> None:
        """End the calls whose deadline has passed; look again at the next one's."""
        now = self._loop.time()
        self._expiry = None
        waiting = [call for batch in (self._queue, *self._flights.values()) for call in batch if not call.future.done()]
        for call in waiting:
            if call.deadline_s <= now:
                call.expire()
        left = [call.deadline_s for call in waiting if call.deadline_s > now]
        if left:
            self._expire_at(min(left))
