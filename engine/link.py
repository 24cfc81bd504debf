"""The hot path's connection: one `post` after another on one socket, written at once and answered in order.

redis-py makes the connection (URL, TLS, authentication, database); after the handshake its transport is taken over
by the small protocol below, which costs a tenth of a client library's call. Everything else an engine asks goes
through redis-py as usual.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import hiredis
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from engine.errors import Fatal, Unavailable


class LinkLost(Exception):
    """The connection ended, or said nothing for too long, after the call was written."""


class ReplyError(Exception):
    """An error reply; its text is the server's."""


class _Wire(asyncio.Protocol):
    """Replies to futures, first come first served."""

    def __init__(self, connection: AbstractConnection) -> None:
        self.connection = connection  # kept alive: it closes its socket when it is collected
        assert connection._writer is not None  # it has just connected
        self.transport = connection._writer.transport
        self.lost = False
        self.waiting: deque[asyncio.Future[bytes]] = deque()
        self.heard_s = 0.0
        self._reader = hiredis.Reader(replyError=ReplyError, protocolError=ReplyError)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        self.heard_s = asyncio.get_running_loop().time()
        while self.waiting and (reply := self._reader.gets()) is not False:
            future = self.waiting.popleft()
            if future.done():
                continue
            if isinstance(reply, ReplyError):
                future.set_exception(reply)
            else:
                future.set_result(reply)

    def connection_lost(self, _: Exception | None) -> None:
        self.lost = True
        for future in self.waiting:
            if not future.done():
                future.set_exception(LinkLost())
        self.waiting.clear()


class Link:
    """A connection that is made when it is needed and made again when it was lost.

    prefix: the RESP head of every call, up to the first of its varying arguments.
    silence_s: how long a written call may go unanswered before the connection is given up.
    meet: looks at the server behind each new connection before anything is written to it; a Fatal of it is raised by
    the calls from then on, until a server is found that passes.
    """

    def __init__(self, redis: Redis, prefix: bytes, silence_s: float, meet: Callable[[], Awaitable[None]]) -> None:
        self._redis = redis
        self._prefix = prefix
        self._silence_s = silence_s
        self._meet = meet
        self._loop = asyncio.get_running_loop()
        self._wire: _Wire | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._failure = "not connected yet"
        self._refusal: Fatal | None = None

    def call(self, *arguments: bytes) -> asyncio.Future[bytes]:
        """Write a call now. The future gives its reply, or raises ReplyError or LinkLost.

        Raises Unavailable if there is no connection, or the Fatal of a server that did not pass; one is being made
        then, and nothing was written.
        """
        wire = self._wire
        if wire is None or wire.lost or wire.transport.is_closing():
            self.connect_soon()
            if self._refusal is not None:
                raise type(self._refusal)(str(self._refusal))
            raise Unavailable(f"the server cannot be reached: {self._failure}")
        future: asyncio.Future[bytes] = self._loop.create_future()
        if not wire.waiting:
            wire.heard_s = self._loop.time()
        wire.waiting.append(future)
        wire.transport.write(
            self._prefix + b"".join([b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments])
        )
        if self._watch is None:
            self._watch = self._loop.call_later(self._silence_s, self._look)
        return future

    def connect_soon(self) -> None:
        if self._connecting is None:
            self._connecting = self._loop.create_task(self._connect())

    async def connected(self) -> None:
        """Wait for the attempt under way; whether it worked is seen at the next call."""
        self.connect_soon()
        if self._connecting is not None:
            await asyncio.wait([self._connecting])

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        await self._drop()

    async def _drop(self) -> None:
        """Close what is left of the connection on redis-py's side too."""
        if self._wire is not None:
            self._wire.transport.abort()
            await self._wire.connection.disconnect(nowait=True)
            self._wire = None

    async def _connect(self) -> None:
        await self._drop()
        try:
            connection = await self._connection()
            # The stream pair that redis-py has just shaken hands over: empty of data, since nothing was asked since.
            wire = _Wire(connection)
            wire.transport.set_protocol(wire)
            self._wire = wire
            self._refusal = None
        except Fatal as refusal:
            self._refusal = refusal
        except (RedisError, OSError, Unavailable) as error:
            self._failure, self._refusal = str(error), None
        finally:
            self._connecting = None

    async def _connection(self) -> AbstractConnection:
        """One whose server passed."""
        connection: AbstractConnection = self._redis.connection_pool.make_connection()
        try:
            await connection.connect()
            await self._meet()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    def _look(self) -> None:
        """Give up a connection whose server is silent: a stopped process keeps its sockets open."""
        self._watch = None
        wire = self._wire
        if wire is None or wire.lost or not wire.waiting:
            return
        quiet_until_s = wire.heard_s + self._silence_s
        if self._loop.time() >= quiet_until_s:
            self._failure = f"the server said nothing for {self._silence_s:g} s"
            wire.transport.abort()
        else:
            self._watch = self._loop.call_at(quiet_until_s, self._look)
