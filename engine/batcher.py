"""Gathers concurrent calls into one call of `post`, and carries them through lost connections to an answer.

Calls that arrive while a batch is in flight wait for the next one: no timer, so no added latency when idle, and
under load the batch grows by itself. A call ends in exactly one of: its reply; Unavailable, when it surely was not
applied; OutcomeUnknown, when it may have been; or the Fatal error that the server gave.

This file owns the rule of when an outcome is known. A call is *in doubt* while it is in flight. When a flight ends
without a reply it may still be decided, but only until the server time that it carried (post refuses it after that):
so the doubt lasts until an answer that Redis has recorded, or an answer that was given after that time.
Calls are sent again in the order in which they were made, and only when no other flight is out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import structlog

from engine.domain.status import ACCEPTED, NUMBER_OF, STATUS_RULES, Kept, Status
from engine.errors import CorruptRecord, Fatal, OutcomeUnknown, Overloaded, ShardNotOpen, Unavailable
from engine.wire import ANSWER, MAX_BATCH, REPLY_HEADER, request_ids

DEPTH = 2
"""Batches in flight at once: while the server decides one, the other is on its way. More only delays answers."""

EAGER = 32
"""Waiting requests that leave at once instead of at the end of the loop's turn, so that server and client overlap."""

MAX_QUEUED = 65_536

_FIRST_BACKOFF_S = 0.005
_LAST_BACKOFF_S = 0.25

_SETTLING = frozenset(rule.number for rule in STATUS_RULES if rule.status in ACCEPTED or rule.kept is Kept.CONTENT)
"""Answers that are the last word although they are no replay: what was done, and what is true of the content. Another
refusal may not have been kept; if it was, asking again gets it as a replay."""

_SHARD_NOT_OPEN = NUMBER_OF[Status.SHARD_NOT_OPEN]
_DEADLINE_PASSED = NUMBER_OF[Status.DEADLINE_PASSED]


class NotApplied(Exception):
    """A transport's word that the server did not decide the batch, and that sending it again may work."""

    def __init__(self, reason: Unavailable) -> None:
        self.reason = reason


class NoReply(Exception):
    """A transport's word that the connection ended between send and reply: the batch may have been decided."""


Transport = Callable[[bytes, bytes, bytes, int], asyncio.Future[bytes]]
"""(requests, details, attachments, not_after_ms) -> a future of the reply of `post`.

The future raises NotApplied, NoReply or Fatal.

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
    """number: the order in which calls were made. doubt_until_ms: the server time up to which a lost flight of this
    call may still be decided; 0 for none."""

    __slots__ = (
        "alone",
        "attachments",
        "count",
        "deadline_s",
        "details",
        "doubt_until_ms",
        "flying",
        "future",
        "number",
        "records",
        "refusal",
    )

    def __init__(
        self,
        number: int,
        records: bytes,
        details: bytes,
        attachments: bytes,
        count: int,
        deadline_s: float,
        future: asyncio.Future[bytes],
    ) -> None:
        self.number = number
        self.records = records
        self.details = details
        self.attachments = attachments
        self.count = count
        self.deadline_s = deadline_s
        self.future = future
        self.doubt_until_ms = 0
        self.flying = False
        self.alone = False
        self.refusal: Unavailable | None = None

    def unknown(self) -> OutcomeUnknown:
        return OutcomeUnknown(request_ids(self.records))

    def expire(self) -> None:
        if self.flying or self.doubt_until_ms:
            self.future.set_exception(self.unknown())
        else:
            self.future.set_exception(self.refusal or Unavailable("the deadline passed before the request was sent"))

    def is_settled_by(self, answers: bytes, server_ms: float) -> bool:
        """Whether these answers are the outcome although a lost flight may be on its way.

        An answer that Redis does not record would not stop that flight from being decided otherwise.
        """
        return server_ms > self.doubt_until_ms or not any(
            answers[at] not in _SETTLING and not answers[at + ANSWER.size - 1]
            for at in range(0, len(answers), ANSWER.size)
        )


class _Flight(NamedTuple):
    """A batch that was sent. not_after_ms: the server time after which the server will not decide it."""

    batch: list[_Call]
    not_after_ms: int


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
        self._flights: dict[asyncio.Future[bytes], _Flight] = {}
        self._calls = 0
        self._resending = False
        self._eager = EAGER
        self._flush_soon = False
        self._closing = False
        self._backoff_s = 0.0
        self._pause: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._expiry_at_s = 0.0
        self.batches_sent = 0

    def submit(
        self, records: bytes, details: bytes, attachments: bytes, count: int, deadline_s: float
    ) -> asyncio.Future[bytes]:
        """Queue `count` packed requests that belong into one batch.

        deadline_s: the loop's time at which the caller stops waiting.
        The future gives count ANSWER records, or raises Unavailable, OutcomeUnknown or Fatal.
        Raises Overloaded, and Unavailable once the batcher drains.
        """
        if self._closing:
            raise Unavailable("this engine is closed")
        if self._queued + count > self._max_queued:
            self._purge()
            if self._queued + count > self._max_queued:
                raise Overloaded(f"{self._queued} requests are queued in this process already, of {self._max_queued}")
        self._calls += 1
        call = _Call(self._calls, records, details, attachments, count, deadline_s, self._loop.create_future())
        self._queue.append(call)
        self._queued += count
        if self._expiry is None or deadline_s < self._expiry_at_s:
            self._expire_at(deadline_s)
        if len(self._flights) < self._depth:
            if self._queued >= self._eager:
                self._flush()
            elif not self._flush_soon:
                self._flush_soon = True
                self._loop.call_soon(self._flush)
        return call.future

    async def drain(self) -> None:
        """Take no more calls, and wait until each one under way has ended by its answer or its deadline."""
        self._closing = True
        while waiting := self._waiting():
            await asyncio.wait([call.future for call in waiting])
        for timer in (self._expiry, self._pause):
            if timer is not None:
                timer.cancel()

    def _waiting(self) -> list[_Call]:
        """The calls that have not ended."""
        flying = [call for flight in self._flights.values() for call in flight.batch]
        return [call for call in (*self._queue, *flying) if not call.future.done()]

    def _purge(self) -> None:
        """Forget the calls in the queue that have ended: they expired, or their callers gave up."""
        self._queue = deque(call for call in self._queue if not call.future.done())
        self._queued = sum(call.count for call in self._queue)

    def _flush(self) -> None:
        self._flush_soon = False
        if self._resending and self._flights:
            return
        self._resending = False
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
            if call.future.done():
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
        not_after_ms = self._clock.at(min([call.deadline_s for call in batch]))
        future = self._transport(
            b"".join([call.records for call in batch]),
            b"".join([call.details for call in batch]),
            b"".join([call.attachments for call in batch]),
            not_after_ms,
        )
        self._flights[future] = _Flight(batch, not_after_ms)
        future.add_done_callback(self._landed)

    def _landed(self, future: asyncio.Future[bytes]) -> None:
        """See each call of a flight answered, failed or queued again, and send the next batch."""
        batch, not_after_ms = self._flights.pop(future)
        error = future.exception()
        try:
            if error is None:
                self._settle(batch, future.result())
            elif isinstance(error, NoReply):
                self._again(batch, doubt_until_ms=not_after_ms)
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
                raise error
        except Exception as broken:
            # No word of the transport, or a reply that is none: what the flight did is not known.
            structlog.get_logger().error("batcher.broken", error=repr(broken))
            for call in batch:
                if not call.future.done():
                    call.future.set_exception(call.unknown())
        flying = sum(len(flight.batch) for flight in self._flights.values())
        self._eager = max(EAGER, (self._queued + flying) // self._depth)
        self._flush()

    def _settle(self, batch: list[_Call], reply: bytes) -> None:
        [server_ms] = REPLY_HEADER.struct.unpack_from(reply)
        if len(reply) != REPLY_HEADER.size + ANSWER.size * sum([call.count for call in batch]):
            raise ValueError(f"a reply of {len(reply)} bytes")
        self._clock.observe(server_ms, self._loop.time())
        status = reply[REPLY_HEADER.size]
        if status == _SHARD_NOT_OPEN:
            self._again(batch, refusal=ShardNotOpen("the shard waits for its persister to check its history"))
        elif status == _DEADLINE_PASSED:
            self._again(batch, refusal=Unavailable("the deadline passed before the server decided"), pause=False)
        else:
            self._answer(batch, reply, server_ms)

    def _answer(self, batch: list[_Call], reply: bytes, server_ms: float) -> None:
        self._backoff_s = 0.0
        position = REPLY_HEADER.size
        unsettled = []
        for call in batch:
            end = position + call.count * ANSWER.size
            answers = reply[position:end]
            position = end
            if call.future.done():
                continue
            if not call.doubt_until_ms or call.is_settled_by(answers, server_ms):
                call.future.set_result(answers)
            else:
                unsettled.append(call)
        if unsettled:
            self._again(unsettled)

    def _fail(self, batch: list[_Call], error: Fatal) -> None:
        for call in batch:
            if call.future.done():
                continue
            if call.doubt_until_ms:
                unknown = call.unknown()
                unknown.__cause__ = error
                call.future.set_exception(unknown)
            else:
                call.future.set_exception(error)

    def _again(
        self,
        batch: list[_Call],
        *,
        doubt_until_ms: int = 0,
        refusal: Unavailable | None = None,
        pause: bool = True,
    ) -> None:
        """Put the calls back into the queue, in the order in which they were made, and let the server breathe."""
        for call in batch:
            call.flying = False
            call.doubt_until_ms = max(call.doubt_until_ms, doubt_until_ms)
            call.refusal = refusal
        self._queue = deque(sorted([*batch, *self._queue], key=lambda call: call.number))
        self._purge()
        self._resending = True
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
        self._expiry_at_s = when_s  # not asked of the handle: uvloop's has no when() if it is due at once

    def _expire(self) -> None:
        """End the calls whose deadline has passed; look again at the next one's."""
        now = self._loop.time()
        self._expiry = None
        waiting = self._waiting()
        for call in waiting:
            if call.deadline_s <= now:
                call.expire()
        self._purge()
        left = [call.deadline_s for call in waiting if call.deadline_s > now]
        if left:
            self._expire_at(min(left))
