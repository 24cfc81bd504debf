"""One load of a shard: what a rebuild writes into Redis, ahead of the replies.

It closes the shard, and holds a token that every write names: so a process that slept through the beginning of another
load writes nothing any more (lua/functions/load.lua).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from engine.keys import ShardKeys
from engine.shard import ShardState
from engine.wire import LAYOUT_VERSION, META
from persister.redis_shard import RedisShard

BYTES_AT_ONCE = 256 * 1024
AHEAD = 8
"""Calls that may wait for their answers: the server is kept busy while the next ones are made."""

_KEYS_AT_ONCE = 1000
_ANY = (b"*", b"", b"")
_NONE = (b"", b"", b"")


class Load:
    """A context. Its methods raise what RedisShard's do: Moved if another load has begun.

    Left by an error, the shard stays closed and half filled; the next load begins by emptying it.
    """

    def __init__(self, redis: RedisShard, found: ShardState | None, *, full: bool) -> None:
        """found: what was compared with the ledger and must still be there; None for whatever is there. full: meta
        and journal go at once, for a shard that is filled from nothing."""
        self._redis = redis
        self._token = secrets.token_bytes(16)
        self._full = full
        self._expected = _ANY if found is None else _place_in(found)

    def __enter__(self) -> Self:
        self._redis.call("hotledger_begin_load", self._token, b"full" if self._full else b"feed", *self._expected)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._redis.abandon_answers()

    def wipe(self, keys: ShardKeys) -> Iterable[int]:
        """Remove what is left of an earlier life, but for what is no part of the history; says how many are gone."""
        stay, gone = {keys.loading, keys.declined, keys.touch}, 0
        for found in self._redis.scan_keys(keys.tag + b":*"):
            leftover = [key for key in found if key not in stay]
            for start in range(0, len(leftover), _KEYS_AT_ONCE):
                self._ask("hotledger_wipe", *leftover[start : start + _KEYS_AT_ONCE])
            gone += len(leftover)
            if leftover:
                self.settle()  # the connection is the scan's too
                yield gone

    def write(self, what: str, items: NDArray[Any], number: int | str = "") -> None:
        """Write packed items, each a name and a value, as hotledger_load has them."""
        packed, width = memoryview(items.tobytes()), items.dtype.itemsize
        step = max(BYTES_AT_ONCE // width, 1) * width
        for start in range(0, len(packed), step):
            self._ask("hotledger_load", what.encode(), number, width, bytes(packed[start : start + step]))

    def settle(self) -> None:
        """Until all that was written is answered."""
        self._redis.take_answers(leave=0)

    def end(self, **meta: Any) -> None:
        """The shard is whole. meta: the fields of META but its layout."""
        self.settle()
        self._redis.call("hotledger_end_load", self._token, META.struct.pack(LAYOUT_VERSION, *_in_order(meta)))

    def _ask(self, function: str, *args: bytes | int | str) -> None:
        self._redis.ask(function, self._token, *args)
        self._redis.take_answers(leave=AHEAD)


def _place_in(found: ShardState) -> tuple[bytes, bytes, bytes]:
    if found.meta is None:
        return _NONE
    return b"%d" % found.meta["epoch"], b"%d" % found.meta["sequence"], found.meta["hash"]


def _in_order(meta: dict[str, Any]) -> list[Any]:
    return [meta[name] for name, _ in META.fields[1:]]
