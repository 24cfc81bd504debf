"""Proxies between programs and servers: they cut and stall connections, and decide which server is reached.

All of them run in one thread with an event loop of its own; the methods here are called from another.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, cast

_T = TypeVar("_T")


class _End(asyncio.Protocol):
    """One end of a proxied connection; what comes in here leaves at the other."""

    def __init__(self, link: Link, *, is_server: bool) -> None:
        self.link = link
        self.is_server = is_server
        self.other: _End | None = None
        self.transport: asyncio.Transport | None = None
        self._crowded = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.link.ends.add(self)
        if not self.is_server:
            self.transport.pause_reading()
            self.link.connect(self)

    def data_received(self, data: bytes) -> None:
        other = self.other
        if other is None or other.transport is None or (self.is_server and self.link.swallows):
            return
        if self.is_server and self.link.cuts_next_reply:
            self.link.cuts_next_reply = False
            other.transport.write(data[: len(data) // 2])
            other.transport.close()  # what was written still arrives
            self.abort()
        else:
            other.transport.write(data)

    def connection_lost(self, _: Exception | None) -> None:
        self.link.ends.discard(self)
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()

    def pause_writing(self) -> None:
        self._crowded = True
        if self.other is not None:
            self.other.look()

    def resume_writing(self) -> None:
        self._crowded = False
        if self.other is not None:
            self.other.look()

    def look(self) -> None:
        """Read, or leave what comes with its sender: the link stalls, or the other end is behind."""
        if self.transport is None or self.transport.is_closing():
            return
        stalled = self.link.stalls_replies if self.is_server else self.link.stalls_requests
        if stalled or self.other is None or self.other._crowded:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Link:
    """A socket at `path`, behind which is the server whose socket target() names when a connection is made."""

    def __init__(self, switchboard: Switchboard, path: Path, target: Callable[[], Path]) -> None:
        self.path = path
        self.target = target
        self.ends: set[_End] = set()
        self.stalls_requests = self.stalls_replies = False
        self.swallows = self.cuts_next_reply = False
        self._switchboard = switchboard
        self._connecting: set[asyncio.Task[None]] = set()

    # From the torture's thread

    def cut(self) -> None:
        """End every connection at once."""
        self._switchboard.call(self._cut)

    def cut_next_reply(self) -> None:
        """Let half of the next thing that the server says through, and end that connection."""
        self._switchboard.call(lambda: self._disturb(cuts_next_reply=True))

    def stall_replies(self) -> None:
        self._switchboard.call(lambda: self._disturb(stalls_replies=True))

    def stall_requests(self) -> None:
        self._switchboard.call(lambda: self._disturb(stalls_requests=True))

    def swallow_replies(self) -> None:
        """Requests reach the server, what it answers is lost, until the connections are cut by flow()."""
        self._switchboard.call(lambda: self._disturb(swallows=True))

    def flow(self) -> None:
        """End of every disturbance."""
        self._switchboard.call(self._disturb)

    # In the loop

    def connect(self, client: _End) -> None:
        task = asyncio.ensure_future(self._connect(client))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, client: _End) -> None:
        server = _End(self, is_server=True)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: server, str(self.target()))
        except OSError:
            client.abort()
            return
        client.other, server.other = server, client
        client.look()
        server.look()
        if client.transport is None or client.transport.is_closing():
            server.abort()

    def _cut(self) -> None:
        for end in list(self.ends):
            end.abort()

    def _disturb(
        self,
        *,
        stalls_requests: bool = False,
        stalls_replies: bool = False,
        swallows: bool = False,
        cuts_next_reply: bool = False,
    ) -> None:
        """These disturbances and no others from now on."""
        if self.swallows:
            self._cut()  # at once: no connection may lose something and go on
        self.stalls_requests, self.stalls_replies = stalls_requests, stalls_replies
        self.swallows, self.cuts_next_reply = swallows, cuts_next_reply
        for end in list(self.ends):
            end.look()

    async def listen(self) -> asyncio.Server:
        return await asyncio.get_running_loop().create_unix_server(lambda: _End(self, is_server=False), str(self.path))


class Switchboard:
    """The thread that the links run in, for as long as the block runs."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="links", daemon=True)
        self._servers: list[asyncio.Server] = []
        self.links: list[Link] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.call(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def link(self, path: Path, target: Callable[[], Path]) -> Link:
        """A new link that listens at path."""
        made = Link(self, path, target)
        self._servers.append(asyncio.run_coroutine_threadsafe(made.listen(), self._loop).result())
        self.links.append(made)
        return made

    def call(self, function: Callable[[], _T]) -> _T:
        """Run the function in the loop's thread and wait for it."""

        async def run() -> _T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def _close(self) -> None:
        for server in self._servers:
            server.close()
        for link in self.links:
            for task in list(link._connecting):
                task.cancel()
            for end in list(link.ends):
                with suppress(RuntimeError):
                    end.abort()
