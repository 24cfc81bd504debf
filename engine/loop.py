"""The event loop that engines run fastest on, and how a task on it is ended for sure."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """As asyncio.run, on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


async def end(task: asyncio.Task[None] | None) -> None:
    """Cancel a task until it is over. A single cancellation may get lost in a client library that is connecting."""
    while task is not None and not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.02)
