"""What each durability level is said to survive, from what the servers do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine import Durability, Unavailable
from engine.guarantee import Guarantee, GuaranteeWatch, PostgresSettings, guarantee_of
from engine.servers import RedisServer, check_redis

SAFE = RedisServer("valkey", "9.1.2", True, True, "always", False, 0, 0)
POSTGRES = PostgresSettings(True, "on", True, "")
INFO = {
    "redis_version": "7.4.0", "server_name": "redis", "maxmemory_policy": "noeviction", "aof_enabled": 1,
    "connected_slaves": 2,
}  # fmt: skip
CONFIG = {"appendfsync": "always", "no-appendfsync-on-rewrite": "no", "min-replicas-to-write": "1"}


def guarantee(postgres: PostgresSettings | None = POSTGRES, **redis: Any) -> Guarantee:
    return guarantee_of(SAFE._replace(**redis), postgres, Durability.ACCEPTED, 1)


def test_the_documented_settings_need_no_warning() -> None:
    assert guarantee().warnings == ()
    assert guarantee(replicas=3, min_replicas=1).warnings == ()
    assert guarantee(postgres=None).warnings == ()


@pytest.mark.parametrize(
    ("settings", "accepted", "warning"),
    [
        ({"append_only": False, "synced": False}, "nothing: it is in memory only", "set appendonly yes"),
        ({"synced": False, "appendfsync": "everysec"}, "the death of the server process at most", "last second or two"),
        ({"synced": False, "appendfsync": "no"}, "the death of the server process at most", "not written yet"),
        ({"synced": False, "appendfsync": None}, "the death of the server process at most", "may not be read"),
        ({"synced": False, "no_fsync_on_rewrite": True}, "the death of the server process at most", "is rewritten"),
        ({"synced": False, "no_fsync_on_rewrite": None}, "the death of the server process at most", "is rewritten"),
        ({"replicas": 1}, "the death of the server process and a power loss", "min-replicas-to-write is 0"),
        ({"replicas": 1, "min_replicas": None}, "the death of the server process and", "may not be read"),
    ],
)
def test_what_makes_accepted_less(settings: dict[str, Any], accepted: str, warning: str) -> None:
    found = guarantee(**settings)
    assert found.accepted.startswith(accepted)
    assert found.accepted.endswith("; not the loss of its machine")
    [told] = found.warnings
    assert warning in told


@pytest.mark.parametrize(
    ("settings", "persisted", "warning"),
    [
        ({"fsync": False}, "the loss of every Redis, but no power loss of Postgres' machine", "fsync is off"),
        ({"full_page_writes": False}, "the loss of every Redis, and a power loss", "full_page_writes is off"),
        ({"standbys": "ANY 1 (*)"}, "the loss of every Redis, and of Postgres' machine", None),
        ({"standbys": "*", "synchronous_commit": "local"}, "the loss of every Redis, and a power loss", None),
        ({"synchronous_commit": "off"}, "the loss of every Redis, and a power loss", None),
    ],
)
def test_what_persisted_rests_on(settings: dict[str, Any], persisted: str, warning: str | None) -> None:
    found = guarantee(POSTGRES._replace(**settings))
    assert found.persisted.startswith(persisted)
    assert [warning in told for told in found.warnings if warning] == ([True] if warning else [])
    assert bool(found.warnings) == bool(warning)


def test_replicated() -> None:
    def said(asked: int, default: Durability = Durability.ACCEPTED, **redis: Any) -> tuple[str, tuple[str, ...]]:
        found = guarantee_of(SAFE._replace(**redis), None, default, asked)
        return found.replicated, found.warnings

    machine = "the loss of the server's machine: it is on "
    assert said(1) == (machine + "its disk and the disk of 1 replica", ())
    assert said(2, replicas=2, min_replicas=1) == (machine + "its disk and the disks of 2 replicas", ())
    assert said(0) == ("a power loss: it is on the server's disk; no replica is waited for", ())
    assert said(1, append_only=False)[0] == machine + "the disk of 1 replica"
    assert said(0, append_only=False)[0] == "nothing: it is in memory only; no replica is waited for"
    assert said(2, Durability.REPLICATED, replicas=1, min_replicas=1)[1] == (
        "replicas that are connected: 1; that replicated waits for: 2",
    )


def test_what_a_server_says_of_itself() -> None:
    assert check_redis(INFO, CONFIG) == RedisServer("redis", "7.4.0", True, True, "always", False, 2, 1)
    assert check_redis(INFO, None) == RedisServer("redis", "7.4.0", True, False, None, None, 2, None)
    partly = check_redis(INFO, {"appendfsync": "always"})
    assert (partly.synced, partly.no_fsync_on_rewrite, partly.min_replicas) == (False, None, None)


async def test_it_is_renewed_with_each_server_that_is_met() -> None:
    answers: list[PostgresSettings | None] = [None, POSTGRES._replace(fsync=False)]

    async def ask() -> PostgresSettings:
        answer = answers.pop(0)
        if answer is None:
            raise Unavailable("it is away")
        return answer

    watch = GuaranteeWatch(SAFE, ask, POSTGRES, Durability.ACCEPTED, 1)
    assert watch.current == guarantee()
    weaker = {"synced": False, "appendfsync": "everysec"}
    for postgres in (POSTGRES, POSTGRES._replace(fsync=False)):
        watch.met(SAFE._replace(**weaker))
        await asyncio.sleep(0)
        assert watch.current == guarantee(postgres, **weaker)
    await watch.close()
