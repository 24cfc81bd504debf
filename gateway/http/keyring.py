"""API keys: `hl_<prefix>_<secret>`. The secret has 256 random bits and is shown once; the ledger has its sha256.

A worker holds every key in memory and asks the ledger a few times a second what changed, so a request costs no query,
an unknown key cannot be used to load Postgres, and a revocation works within a second everywhere. While Postgres is
away nobody can be revoked, and the keys that are known stay good for GRACE_S: payments go on.
"""

from __future__ import annotations

import asyncio
import getpass
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import psycopg
import structlog
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from engine import InvalidRequest
from gateway.http.problems import Refused
from persister.sql import sql

SCOPES = ("read", "write", "admin")
DEFAULT_RATE_PER_S = 10_000
MAX_RATE_PER_S = 1_000_000
POLL_S = 0.25
GRACE_S = 300.0
BURST_S = 1.0
MAX_NAME_CHARS = 64

_FORM = re.compile(r"hl_([0-9a-f]{16})_([A-Za-z0-9_-]{43})\Z")
log = structlog.get_logger(__name__)


class ApiKey(NamedTuple):
    """A key as the ledger has it. owner_id: whose wallets it is bound to; None for those of all."""

    prefix: str
    secret_hash: bytes
    name: str
    scopes: frozenset[str]
    owner_id: int | None
    rate_per_s: int
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    rotated_from: str | None
    change: int

    @property
    def id_scope(self) -> str:
        """What the ids of its requests are derived under: the owner, never the key, which rotates."""
        return "" if self.owner_id is None else f"owner:{self.owner_id}"


class Bucket:
    """A token bucket: rate_per_s, and as much at once as comes in BURST_S."""

    __slots__ = ("_at", "_rate", "_tokens")

    def __init__(self, rate_per_s: int, now: float) -> None:
        self._rate = rate_per_s
        self._tokens = rate_per_s * BURST_S
        self._at = now

    def take(self, count: int, now: float) -> float:
        """Seconds to wait; 0 if count tokens were taken. More than the bucket holds may be taken of a full one."""
        most = self._rate * BURST_S
        tokens = min(most, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if tokens < min(count, most):
            self._tokens = tokens
            return (min(count, most) - tokens) / self._rate
        self._tokens = tokens - count
        return 0.0


class _Known:
    """A usable key in memory."""

    __slots__ = ("bucket", "key", "seen")

    def __init__(self, key: ApiKey, bucket: Bucket) -> None:
        self.key = key
        self.bucket = bucket
        self.seen: bytes | None = None


class Keyring:
    """The keys of one worker process."""

    def __init__(self, pool: AsyncConnectionPool) -> None:
        self._pool = pool
        self._known: dict[str, _Known] = {}
        self._change = 0
        self._heard_s = 0.0

    @property
    def is_loaded(self) -> bool:
        return self._heard_s > 0

    def find(self, header: str | None) -> ApiKey:
        """The key of an Authorization header. Raises Refused: UNAUTHENTICATED, UNAVAILABLE."""
        if time.monotonic() - self._heard_s > GRACE_S:
            raise Refused("LEDGER_UNAVAILABLE", "the keys are not known", retry_after_s=1)
        if header is None or not header.startswith(("Bearer ", "bearer ")):
            raise Refused("UNAUTHENTICATED", "Authorization: Bearer <key> is missing")
        form = _FORM.match(header[7:])
        known = self._known.get(form[1]) if form else None
        digest = hashlib.sha256(form[2].encode() if form else b"").digest()
        # Compared in the same way for an unknown prefix, so that time tells nothing either.
        if not hmac.compare_digest(digest, known.key.secret_hash if known else _NOBODY) or known is None:
            raise Refused("UNAUTHENTICATED")
        expires_at = known.key.expires_at
        if expires_at is not None and expires_at.timestamp() <= time.time():
            raise Refused("UNAUTHENTICATED")
        return known.key

    def spend(self, key: ApiKey, count: int) -> None:
        """Count requests of a key. Raises Refused: RATE_LIMITED."""
        known = self._known.get(key.prefix)
        wait_s = known.bucket.take(count, time.monotonic()) if known else 0.0
        if wait_s:
            raise Refused("RATE_LIMITED", f"{key.rate_per_s} a second", retry_after_s=int(wait_s) + 1)

    async def keep_fresh(self) -> None:
        """Follow the ledger for ever."""
        while True:
            try:
                await self.refresh()
            except (psycopg.Error, PoolTimeout, OSError) as error:
                log.warning("keys.not_refreshed", error=type(error).__name__)
            await asyncio.sleep(POLL_S)

    async def refresh(self) -> None:
        """Take in what changed. Raises psycopg.Error, PoolTimeout."""
        began_s = time.monotonic()
        async with self._pool.connection(timeout=2) as connection:
            rows = await (await connection.execute(sql("api/keys_changed"), {"after": self._change})).fetchall()
        for row in rows:
            key = _key(row)
            if key.revoked_at is not None:
                self._known.pop(key.prefix, None)
            else:
                self._known[key.prefix] = _Known(key, Bucket(key.rate_per_s, began_s))
            self._change = key.change
        self._heard_s = began_s


_NOBODY = bytes(32)


# What `hotledger key` does


class NewKey(NamedTuple):
    """text: the whole key, which nothing can show again."""

    text: str
    prefix: str


def create_key(
    connection: psycopg.Connection,
    name: str,
    scopes: Sequence[str],
    *,
    owner_id: int | None = None,
    expires_in: timedelta | None = None,
    rate_per_s: int = DEFAULT_RATE_PER_S,
    rotated_from: str | None = None,
) -> NewKey:
    """Make a key and note who did. Raises InvalidRequest."""
    if not 1 <= len(name) <= MAX_NAME_CHARS:
        raise InvalidRequest("name", f"text of 1 to {MAX_NAME_CHARS} characters", name)
    if not scopes or set(scopes) - set(SCOPES):
        raise InvalidRequest("scopes", f"some of {', '.join(SCOPES)}", scopes)
    if owner_id is not None and "admin" in scopes:
        raise InvalidRequest("scopes", "without admin for a key that is bound to an owner", scopes)
    if owner_id is not None and not 0 <= owner_id < 2**63:
        raise InvalidRequest("owner", "an integer from 0 to 2^63-1", owner_id)
    if not 1 <= rate_per_s <= MAX_RATE_PER_S:
        raise InvalidRequest("rate", f"an integer from 1 to {MAX_RATE_PER_S}", rate_per_s)
    prefix, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    values = {
        "prefix": prefix,
        "secret_hash": hashlib.sha256(secret.encode()).digest(),
        "name": name,
        "scopes": sorted(set(scopes)),
        "owner_id": owner_id,
        "rate_per_s": rate_per_s,
        "expires_at": datetime.now(UTC) + expires_in if expires_in is not None else None,
        "rotated_from": rotated_from,
    }
    with connection.transaction():
        connection.execute(sql("api/add_key"), values)
        told = {name: values[name] for name in ("name", "scopes", "owner_id", "rate_per_s", "rotated_from")}
        _note(connection, "key.create", prefix, told)
    return NewKey(f"hl_{prefix}_{secret}", prefix)


def list_keys(connection: psycopg.Connection) -> list[ApiKey]:
    """All keys, the oldest first, those that are over too."""
    return [_key(row) for row in connection.execute(sql("api/keys_changed"), {"after": 0})]


def rotate_key(connection: psycopg.Connection, prefix: str, overlap: timedelta) -> NewKey:
    """A new key like an old one, which is good for the overlap only. Raises InvalidRequest."""
    with connection.transaction():
        old = _usable(connection, prefix)
        left = None if old.expires_at is None else old.expires_at - datetime.now(UTC)
        made = create_key(
            connection,
            old.name,
            sorted(old.scopes),
            owner_id=old.owner_id,
            expires_in=left,
            rate_per_s=old.rate_per_s,
            rotated_from=prefix,
        )
        ends_at = datetime.now(UTC) + overlap
        connection.execute(sql("api/end_key"), {"prefix": prefix, "ends_at": ends_at})
        _note(connection, "key.rotate", prefix, {"to": made.prefix, "ends_at": ends_at.isoformat()})
    return made


def revoke_key(connection: psycopg.Connection, prefix: str) -> None:
    """End a key now. Raises InvalidRequest if there is none, or it is revoked already."""
    with connection.transaction():
        _usable(connection, prefix)
        connection.execute(sql("api/revoke_key"), {"prefix": prefix})
        _note(connection, "key.revoke", prefix, {})


def _usable(connection: psycopg.Connection, prefix: str) -> ApiKey:
    row = connection.execute(sql("api/key"), {"prefix": prefix}).fetchone()
    if row is None or row[8] is not None:
        raise InvalidRequest("prefix", "of a key that is not revoked", prefix)
    return _key(row)


def _note(connection: psycopg.Connection, action: str, subject: str, details: dict[str, Any]) -> None:
    actor = f"user:{getpass.getuser()}"
    values = {"actor": actor, "request_id": None, "action": action, "subject": subject, "details": Jsonb(details)}
    connection.execute(sql("api/note_action"), values)


def _key(row: tuple[Any, ...]) -> ApiKey:
    return ApiKey(row[0], bytes(row[1]), row[2], frozenset(row[3]), *row[4:])
