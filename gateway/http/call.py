"""One call of an operation, as its handler sees it, and what a handler answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from uuid import UUID

from engine import Engine
from gateway.http.access import Access
from gateway.http.keyring import ApiKey
from gateway.http.ledger import Ledger
from gateway.http.problems import invalid

if TYPE_CHECKING:
    from gateway.http.service import ShardNow

JSON = "application/json"


class ServiceParts(Protocol):
    """What handlers need of a worker; gateway/http/service.py has it."""

    ledger: Ledger
    access: Access

    @property
    def engine(self) -> Engine: ...

    def derive(self, scope: str, key: str) -> bytes: ...

    async def shard_now(self) -> ShardNow: ...

    def is_ready(self, shard: ShardNow | None) -> str: ...

    async def metrics(self) -> bytes: ...


class Answer(NamedTuple):
    """body: a Struct for JSON, or bytes of content_type. sequence: what min_sequence of a later read should be."""

    status: int
    body: Any
    replayed: bool = False
    content_type: str = JSON


class Call:
    """key: that of the caller; operations without one never look at it. id_key: the Idempotency-Key, checked."""

    __slots__ = ("_id", "durable", "id_key", "key", "params", "query", "request_id", "service")

    def __init__(
        self,
        service: ServiceParts,
        key: ApiKey,
        request_id: str,
        params: dict[str, Any],
        query: Any,
        id_key: str | None,
        durable: dict[str, Any],
    ) -> None:
        self._id: UUID | None = None
        self.service = service
        self.key = key
        self.request_id = request_id
        self.params = params
        self.query = query
        self.id_key = id_key
        self.durable = durable

    @property
    def engine(self) -> Engine:
        return self.service.engine

    @property
    def id(self) -> UUID:
        """The id of the movement: of the owner scope and the Idempotency-Key, never of the API key, which rotates."""
        if self._id is None:
            assert self.id_key is not None  # the route table requires it
            self._id = UUID(bytes=self.service.derive(self.key.id_scope, self.id_key))
        return self._id

    def part_id(self, what: str, part: int) -> UUID:
        """The id of a part of the call. No single call meets it: engines refuse scopes that begin with NUL."""
        assert self.id_key is not None
        return UUID(bytes=self.service.derive(f"\0{what}:{self.key.id_scope}", f"{part}:{self.id_key}"))

    @property
    def wallet_id(self) -> int:
        return int(self.params["wallet_id"])

    @property
    def uuid(self) -> UUID:
        found = self.params["id"]
        assert isinstance(found, UUID)
        return found


Handler = Callable[[Call, Any], Awaitable[Answer]]
"""body is None where the operation has none."""


def number(value: int | str, field: str, least: int, most: int) -> int:
    """An integer that may have come as a string of digits; its pattern is checked already. Raises Refused."""
    if type(value) is int:
        return value
    found = int(value)
    if not least <= found <= most:
        raise invalid(field, f"an integer from {least} to {most}")
    return found
