"""The addresses of servers, checked before anybody parses them: what is wrong with one is said without showing it.

An address holds a password. What a parser says about a bad one, or a resolver about a host that is none, shows pieces
of it: of `postgresql://me:a@b@ledger/x` libpq takes `b@ledger` for the host. So such an address is refused here.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

from engine.errors import InvalidRequest

REDIS_URL = "redis://, rediss:// or unix://, with : / ? # [ ] @ and % of a password percent-encoded"
POSTGRES_URL = "a Postgres URL, with : / ? # [ ] @ and % of a password percent-encoded, or a conninfo string"
HIDDEN = "***"


def check_redis_url(url: str, field: str = "redis_url") -> str:
    """The url. Raises InvalidRequest, which does not show it."""
    try:
        parts = urlsplit(url)
        found = parts.scheme in ("redis", "rediss", "unix") and (parts.port is None or parts.scheme != "unix")
    except ValueError:
        found = False
    if not found:
        raise InvalidRequest(field, REDIS_URL, HIDDEN) from None
    return url


def check_postgres_url(url: str, field: str = "postgres_url") -> str:
    """The url, or conninfo string. Raises InvalidRequest, which does not show it."""
    try:
        found = conninfo_to_dict(url)
    except psycopg.Error:
        raise InvalidRequest(field, POSTGRES_URL, HIDDEN) from None
    ports = str(found.get("port") or "5432").split(",")
    places = f"{found.get('host') or ''}{found.get('dbname') or ''}"
    if "@" in places or not all(port.isdigit() for port in ports if port):
        raise InvalidRequest(field, POSTGRES_URL, HIDDEN)
    return url
