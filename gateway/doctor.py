"""What `hotledger doctor` looks at, and what it makes of it. It changes nothing, and works when either server is away.

examine() asks both servers; everything after it is a judgement on what was found, without I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

import psycopg
import redis
from psycopg import errors
from psycopg.rows import dict_row
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from redis.retry import Retry

from engine.domain.durability import Durability
from engine.domain.ids import key_fingerprint
from engine.errors import Fatal, HistoryMismatch
from engine.guarantee import Guarantee, PostgresSettings, guarantee_of
from engine.library import LIBRARY_VERSION, VERSION_KEY
from engine.servers import CONFIG_NAMES, RedisServer, check_redis, redact_url
from engine.shard import ShardState
from persister import drift
from persister.connection import connect
from persister.drift import Drift, Kind, Run
from persister.follower import header_of
from persister.ledger import LEADER_LOCK, Ledger, LedgerState
from persister.opening import Seen, Step, next_step, place_of
from persister.recover import only_in_redis
from persister.redis_shard import LibraryMissing, RedisAway, RedisShard
from persister.sql import sql
from persister.watch import RECONCILER_LOCK

TIMEOUT_S = 5.0
BACKLOG_AMBER, BACKLOG_RED = 0.25, 0.9
"""Shares of max_backlog."""

MEMORY_AMBER, MEMORY_RED = 0.75, 0.9
"""Shares of maxmemory."""

LAG_AMBER_S = 30.0
RECONCILED_WITHIN_S = 86_400.0
SHOWN_DRIFT = 10

_AWAY = (redis.RedisError, OSError, RedisAway)
_SETTINGS = """
SELECT current_setting('fsync')::boolean, current_setting('synchronous_commit'),
    current_setting('full_page_writes')::boolean, current_setting('synchronous_standby_names')
"""


class Level(IntEnum):
    """How bad it is."""

    GREEN = 0
    AMBER = 1
    RED = 2


class Finding(NamedTuple):
    """Something that is not as it should be, and what to do about it."""

    level: Level
    about: str
    what: str
    remedy: str


@dataclass
class RedisSide:
    """What Redis says. problem: why it says nothing, or not all of it."""

    problem: str | None = None
    info: dict[str, Any] = field(default_factory=dict)
    server: RedisServer | None = None
    library: int | None = None
    state: ShardState | None = None
    lag_ms: int | None = None


@dataclass
class PostgresSide:
    """What Postgres says, likewise."""

    problem: str | None = None
    settings: PostgresSettings | None = None
    health: dict[str, Any] = field(default_factory=dict)
    state: LedgerState | None = None
    last_full: Run | None = None
    last_recent: Run | None = None
    open_drift: int = 0
    drift: list[Drift] = field(default_factory=list)


@dataclass
class Diagnosis:
    """step: what a persister would do now; mismatch: why it would stop instead. only_in_redis: records that Redis has
    and the ledger has not, in a history that stopped; None if they cannot be counted. other_key: whether the digest key
    given here is not the deployment's."""

    shard: int
    redis: RedisSide
    postgres: PostgresSide
    step: Step | None = None
    mismatch: str | None = None
    only_in_redis: int | None = None
    other_key: bool = False
    findings: list[Finding] = field(default_factory=list)

    @property
    def level(self) -> Level:
        return max((finding.level for finding in self.findings), default=Level.GREEN)

    @property
    def guarantee(self) -> Guarantee | None:
        server = self.redis.server
        return guarantee_of(server, self.postgres.settings, Durability.ACCEPTED, 1) if server else None


def examine(
    redis_url: str, postgres_url: str, shard: int, digest_key: bytes | None, *, started_here: bool = False
) -> Diagnosis:
    """Ask both servers and judge. started_here: they run for this command alone, so a closed shard is no finding."""
    here = _ask_redis(redis_url, shard)
    found = Diagnosis(shard, here, PostgresSide())
    try:
        with closing(connect(postgres_url, application_name="hotledger doctor")) as connection:
            found.postgres = _ask_postgres(connection, shard)
            if here.state and found.postgres.problem is None:
                _compare(found, connection, redis_url, digest_key)
    except (psycopg.Error, Fatal) as error:
        found.postgres.problem = found.postgres.problem or _said(error)
    found.findings = sorted(_judge(found, started_here), key=lambda finding: -finding.level)
    return found


# Asking


def _ask_redis(url: str, shard: int) -> RedisSide:
    side = RedisSide()
    try:
        client = redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 0), protocol=2
        )
        with closing(client):
            info: Any = client.info()
            side.info = info
            config: Any = _unless_refused(lambda: client.config_get(*CONFIG_NAMES))
            library: Any = _unless_refused(lambda: client.get(VERSION_KEY))
            side.library = int(library) if library else None
        side.server = check_redis(info, config)
        with RedisShard(url, shard) as of_shard:
            side.state = of_shard.state()
            meta = side.state.meta
            if meta and meta["sequence"] > meta["persisted"]:
                header = header_of(of_shard.read_one(meta["persisted"]))
                side.lag_ms = max(0, of_shard.server_ms() - int(header["time_ms"])) if header else None
            elif meta:
                side.lag_ms = 0
    except LibraryMissing:
        side.problem = "it has no function library: a persister loads it, and opens the shard"
    except (*_AWAY, Fatal) as error:
        side.problem = _said(error)
    return side


def _unless_refused(ask: Callable[[], Any]) -> Any:
    """None where this user may not ask."""
    try:
        return ask()
    except ResponseError:
        return None


def _ask_postgres(connection: psycopg.Connection, shard: int) -> PostgresSide:
    side = PostgresSide()
    row = connection.execute(_SETTINGS).fetchone()
    side.settings = PostgresSettings._make(row) if row else None
    try:
        with connection.cursor(row_factory=dict_row) as cursor:
            values = {"shard": shard, "leader": LEADER_LOCK, "reconciler": RECONCILER_LOCK}
            side.health = cursor.execute(sql("health"), values).fetchone() or {}
        side.state = Ledger(connection, shard).state()
        side.last_full = drift.last_run(connection, shard, Kind.FULL)
        side.last_recent = drift.last_run(connection, shard, Kind.RECENT)
        side.open_drift = drift.count_open(connection, shard)
        side.drift = drift.open_drift(connection, shard, SHOWN_DRIFT)
    except errors.UndefinedTable as error:
        side.problem = f"the ledger's schema is not there, or older than this program ({_said(error)})"
    return side


def _compare(found: Diagnosis, connection: psycopg.Connection, redis_url: str, digest_key: bytes | None) -> None:
    """What a persister would do with the two."""
    state, ledger_state = found.redis.state, found.postgres.state
    assert state is not None
    ledger = Ledger(connection, found.shard)
    there = ledger.place_at(place_of(state).sequence) if ledger_state and ledger_state.place else None
    seen = Seen(state, ledger_state, there)
    if ledger_state:
        key = ledger_state.deployment_id.bytes if digest_key is None else digest_key
        found.other_key = key_fingerprint(key) != ledger_state.key_fingerprint
    try:
        found.step = next_step(seen, digest_key)
    except HistoryMismatch as error:
        found.mismatch = str(error)
        try:
            with RedisShard(redis_url, found.shard) as of_shard:
                found.only_in_redis = only_in_redis(ledger, of_shard, seen)
        except (*_AWAY, LibraryMissing, Fatal):
            pass


def _said(error: BaseException) -> str:
    return redact_url(" ".join(str(error).split())) or type(error).__name__


# Judging


def _judge(found: Diagnosis, started_here: bool) -> Iterator[Finding]:
    yield from _about_redis(found.redis)
    yield from _about_postgres(found.postgres)
    yield from _about_the_shard(found, started_here)
    yield from _about_the_ledger(found.postgres)
    guarantee = found.guarantee
    for warning in guarantee.warnings if guarantee else ():
        yield Finding(Level.AMBER, "guarantee", warning, "see GUARANTEES.md for what each level survives")


def _about_redis(side: RedisSide) -> Iterator[Finding]:
    if not side.info:
        what = f"Redis cannot be asked: {side.problem}"
        yield Finding(Level.RED, "redis", what, "start it, or correct --redis-url; no payment is taken until then")
        return
    if side.problem:
        yield Finding(Level.RED, "redis", side.problem, "see RUNBOOK.md; nothing was changed")
    if side.library is not None and side.library > LIBRARY_VERSION:
        what = f"its function library is version {side.library}, this program has {LIBRARY_VERSION}"
        yield Finding(Level.AMBER, "library", what, "upgrade this program")
    used, most = int(side.info.get("used_memory", 0)), int(side.info.get("maxmemory", 0))
    if most and used > MEMORY_AMBER * most:
        level = Level.RED if used > MEMORY_RED * most else Level.AMBER
        what = f"memory: {used:,} of {most:,} bytes"
        yield Finding(level, "memory", what, "raise maxmemory: when it is full, payments are refused")


def _about_postgres(side: PostgresSide) -> Iterator[Finding]:
    if side.settings is None:
        what = f"Postgres cannot be asked: {side.problem}"
        remedy = "start it, or correct --postgres-url; open shards take payments until max_backlog, closed ones stay so"
        yield Finding(Level.RED, "postgres", what, remedy)
    elif side.problem:
        yield Finding(Level.RED, "postgres", side.problem, "hotledger migrate")


def _about_the_shard(found: Diagnosis, started_here: bool) -> Iterator[Finding]:
    state, leads = found.redis.state, found.postgres.health.get("leader")
    if found.mismatch:
        yield Finding(Level.RED, "shard", found.mismatch, " ".join(_choices(found)))
    elif state and not state.is_open and not started_here:
        why = "a load is under way, or was cut short" if state.loading else "no persister has opened it"
        would = f"; a persister would now: {found.step.name.lower().replace('_', ' ')}" if found.step else ""
        remedy = "wait for the persister, or read its log" if leads else "start a persister: hotledger persist"
        yield Finding(Level.RED, "shard", f"it is closed: {why}{would}", remedy)
    if found.postgres.health and not leads and not started_here and not found.mismatch:
        yield Finding(Level.AMBER, "persister", "no persister leads the shard", "start one: hotledger persist")
    if state is None or state.meta is None:
        return
    backlog = state.meta["sequence"] - state.meta["persisted"]
    if state.max_backlog and backlog > BACKLOG_AMBER * state.max_backlog:
        level = Level.RED if backlog > BACKLOG_RED * state.max_backlog else Level.AMBER
        what = f"the ledger lacks {backlog:,} records of at most {state.max_backlog:,}"
        yield Finding(level, "backlog", what, "look at Postgres and the persister; at the bound payments are refused")
    elif (found.redis.lag_ms or 0) > LAG_AMBER_S * 1000 and not started_here:
        what = (
            f"the oldest of {backlog:,} records that the ledger lacks is {(found.redis.lag_ms or 0) / 1000:.0f} s old"
        )
        yield Finding(Level.AMBER, "lag", what, "look at Postgres and the persister")


def _choices(found: Diagnosis) -> Iterator[str]:
    """For a history that stopped: what each way out would lose."""
    ledger = found.postgres.state
    meta = found.redis.state and found.redis.state.meta
    if found.other_key:
        yield "Give everybody the digest key that this deployment began with (HOTLEDGER_DIGEST_KEY): nothing is lost."
        return
    if ledger and meta and meta["deployment"] != ledger.deployment_id.bytes:
        yield "Connect the Redis and the Postgres that belong together: nothing is lost."
        return
    lost = "a number that cannot be counted" if found.only_in_redis is None else f"{found.only_in_redis:,}"
    if found.only_in_redis == 0:
        yield "`hotledger recover`: keeps the ledger, rebuilds Redis from it; loses nothing."
    else:
        yield "`hotledger recover`: drains what continues the ledger, rebuilds Redis; stops if something would be lost."
        yield f"`hotledger recover --discard-redis`: keeps the ledger; loses what only Redis has: records: {lost}."
    yield (
        "Restoring Postgres from a backup: if its place is still in Redis' journal, the records after it are read from "
        "there; what the ledger has and that journal has not is lost."
    )


def _about_the_ledger(side: PostgresSide) -> Iterator[Finding]:
    if side.open_drift:
        first = "; ".join(f"{it.check_name}: {it.subject}: {it.found}, expected {it.expected}" for it in side.drift[:3])
        what = f"{side.open_drift:,} differences are open: {first}"
        yield Finding(Level.RED, "drift", what, "see RUNBOOK.md; nothing repairs it by itself")
    health = side.health
    if not health or side.problem:
        return
    if side.state and side.state.place and side.state.place.sequence:
        yield from _about_reconciliation(side)
    if health["duplicates"]:
        what = f"{health['duplicates']:,} transfers were paid twice, and not refunded"
        yield Finding(Level.AMBER, "duplicates", what, "look at the table transfer_duplicate; refund what is wrong")
    if health["overdue"]:
        what = f"{health['overdue']:,} open holds whose time is over were not ended"
        yield Finding(Level.AMBER, "holds", what, "a persister ends them: see whether one leads")
    if health["waiting"]:
        what = f"{health['waiting']:,} top-ups and withdrawals wait for their provider for more than a day"
        yield Finding(Level.AMBER, "pending", what, "hotledger pending list; confirm or fail them")


def _about_reconciliation(side: PostgresSide) -> Iterator[Finding]:
    remedy = "hotledger reconcile, or let `hotledger reconcile --watch` run"
    if side.last_full is None:
        yield Finding(Level.AMBER, "reconciliation", "never was everything reconciled", remedy)
    elif side.last_full.age_s > RECONCILED_WITHIN_S:
        hours = side.last_full.age_s / 3600
        yield Finding(Level.AMBER, "reconciliation", f"the last full one was {hours:.0f} hours ago", remedy)
    elif side.last_full.incomplete:
        what = f"the last full one could not look at everything: {side.last_full.incomplete}"
        yield Finding(Level.AMBER, "reconciliation", what, remedy)
