"""Which Redis and Valkey servers can carry the guarantees, and what `accepted` means on the one at hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from engine.errors import ServerRefused

MIN_REDIS = (7, 2)
MIN_VALKEY = (8, 0)
CONFIG_NAMES = ("appendfsync", "no-appendfsync-on-rewrite", "min-replicas-to-write")

_SECRET_IN_HOST = re.compile(r"(?<=://)([^:@/]*):.*@")
_SECRET_IN_QUERY = re.compile(r"([?&])((?:ssl)?password)=[^&]*", re.IGNORECASE)
_SECRET_IN_CONNINFO = re.compile(
    r"(?<![?&])\b(password|sslpassword)\s*=\s*('(?:[^'\\]|\\.)*'(?=\s|$)|'.*|\S.*?(?=\s+\w+\s*=|$))",
    re.IGNORECASE | re.MULTILINE,
)


class RedisServer(NamedTuple):
    """A server that passed the checks.

    name: 'redis' or 'valkey'. append_only: it writes an append-only file. synced: each write is on disk before its
    answer (appendfsync always); False too where the settings may not be read. replicas: that are connected.
    Of the settings, None for one that this user may not read: appendfsync; no_fsync_on_rewrite: whether the syncs stop
    while the file is rewritten; min_replicas: without how many replicas (min-replicas-to-write) no write is taken.
    """

    name: str
    version: str
    append_only: bool
    synced: bool
    appendfsync: str | None = None
    no_fsync_on_rewrite: bool | None = None
    replicas: int = 0
    min_replicas: int | None = None

    @property
    def accepted_survives(self) -> str:
        """What an accepted payment survives on this server, in words."""
        if self.synced:
            return "the death of the server process and a power loss"
        return "the death of the server process at most" if self.append_only else "nothing: it is in memory only"


def check_redis(info: Mapping[str, Any], config: Mapping[str, Any] | None) -> RedisServer:
    """Judge a server by its replies.

    info: INFO's fields (sections server, memory, persistence, replication). config: CONFIG GET of CONFIG_NAMES, None
    if this user may not ask. Raises ServerRefused: too old, or it may evict keys.
    """
    is_valkey = info.get("server_name") == "valkey" or "valkey_version" in info
    name, version = ("valkey", info.get("valkey_version")) if is_valkey else ("redis", info.get("redis_version"))
    lowest = MIN_VALKEY if is_valkey else MIN_REDIS
    if _numbers(str(version)) < lowest:
        needed = f"Redis {MIN_REDIS[0]}.{MIN_REDIS[1]} or Valkey {MIN_VALKEY[0]}"
        raise ServerRefused(f"{name} {version} is too old: hotledger needs {needed} or newer")
    policy = info.get("maxmemory_policy", "unknown")
    if policy != "noeviction":
        raise ServerRefused(f"maxmemory-policy is {policy}, which may delete balances: set it to noeviction")
    append_only = int(info.get("aof_enabled", 0)) == 1
    settings = config or {}
    appendfsync, on_rewrite, min_replicas = map(settings.get, CONFIG_NAMES)
    return RedisServer(
        name,
        str(version),
        append_only,
        append_only and appendfsync == "always" and on_rewrite == "no",
        appendfsync,
        None if on_rewrite is None else on_rewrite == "yes",
        int(info.get("connected_slaves", 0)),
        None if min_replicas is None else int(min_replicas),
    )


async def check_redis_server(redis: Redis) -> RedisServer:
    """Ask the server and judge it: see check_redis. Raises ServerRefused, and redis' errors if it cannot be asked."""
    info = await redis.info()
    try:
        config: Any = await redis.config_get(*CONFIG_NAMES)
    except (NoPermissionError, ResponseError):  # some hosts rename or forbid CONFIG
        config = None
    return check_redis(info, config)


def redact_url(url: str) -> str:
    """A Redis or Postgres URL, or a libpq conninfo, with its secrets replaced by ***: the only form to log.

    Where an unescaped password makes it ambiguous, too much is hidden rather than too little.
    """
    return _SECRET_IN_CONNINFO.sub(r"\1=***", _SECRET_IN_QUERY.sub(r"\1\2=***", _SECRET_IN_HOST.sub(r"\1:***@", url)))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
