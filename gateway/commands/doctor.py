"""One screen of health: doctor."""

from __future__ import annotations

from typing import Any

import typer

from engine.library import LIBRARY_VERSION
from engine.servers import redact_url
from gateway.commands.bundles import bundled
from gateway.commands.options import Place
from gateway.doctor import Diagnosis, Level, examine
from gateway.exits import Exit
from gateway.output import age, print_json, say, table
from gateway.session import SHARD, Origin, Servers, open_servers
from persister.drift import Run

_EXITS = {Level.GREEN: Exit.DONE, Level.AMBER: Exit.AMBER, Level.RED: Exit.RED}


@bundled
def doctor(place: Place) -> None:
    """Say how both servers, the shard and the ledger are, and what to do about what is not well. Changes nothing.

    Works when either server is away. Exits with 0 if all is green, 7 if something is amber, 8 if something is red.

    \b
    Example: hotledger doctor --json
    """
    with open_servers(place.settings, reachable=False) as servers:
        started_here = servers.origin is Origin.STARTED
        urls = servers.redis_url, servers.postgres_url
        found = examine(*urls, SHARD, place.settings.digest_key, started_here=started_here)
    facts = _facts(found)
    if place.as_json:
        print_json(
            {
                "level": found.level.name.lower(),
                "shard": found.shard,
                "facts": facts,
                "findings": [finding._asdict() | {"level": finding.level.name.lower()} for finding in found.findings],
                "drift": [drift._asdict() for drift in found.postgres.drift],
            }
        )
    else:
        _print(found, facts, servers)
    if found.level:
        raise typer.Exit(_EXITS[found.level])


def _facts(found: Diagnosis) -> dict[str, Any]:
    here, there, guarantee = found.redis, found.postgres, found.guarantee
    info, server, state = here.info, here.server, here.state
    meta = state.meta if state else None
    ledger = there.state
    at = ledger.place if ledger else None
    return {
        "redis": f"{server.name} {server.version}" if server else None,
        "redis_role": info.get("role"),
        "append_only": server.append_only if server else None,
        "appendfsync": server.appendfsync if server else None,
        "replicas": server.replicas if server else None,
        "min_replicas_to_write": server.min_replicas if server else None,
        "maxmemory_policy": info.get("maxmemory_policy"),
        "used_memory": info.get("used_memory"),
        "maxmemory": info.get("maxmemory"),
        "library": here.library,
        "library_of_this_program": LIBRARY_VERSION,
        "postgres": there.health.get("version"),
        "schema": there.health.get("revision"),
        "fsync": there.settings.fsync if there.settings else None,
        "synchronous_commit": there.settings.synchronous_commit if there.settings else None,
        "full_page_writes": there.settings.full_page_writes if there.settings else None,
        "accepted_survives": guarantee.accepted if guarantee else None,
        "replicated_survives": guarantee.replicated if guarantee else None,
        "persisted_survives": guarantee.persisted if guarantee else None,
        "deployment": ledger.deployment_id if ledger else None,
        "open": state.is_open if state else None,
        "loading": state.loading if state else None,
        "a_persister_would": found.step.name.lower() if found.step else None,
        "persister_leads": there.health.get("leader"),
        "reconciler_runs": there.health.get("reconciler"),
        "redis_epoch": meta["epoch"] if meta else None,
        "redis_sequence": meta["sequence"] if meta else None,
        "ledger_epoch": at.epoch if at else None,
        "ledger_sequence": at.sequence if at else None,
        "lag_records": max(0, meta["sequence"] - (at.sequence if at else meta["persisted"])) if meta else None,
        "lag_ms": here.lag_ms,
        "max_backlog": (state.max_backlog or None) if state else None,
        "last_full_reconciliation": _run(there.last_full),
        "last_look": _run(there.last_recent),
        "open_drift": there.open_drift if there.settings else None,
        "duplicates": there.health.get("duplicates"),
        "holds_overdue": there.health.get("overdue"),
        "pending_over_a_day": there.health.get("waiting"),
        "only_in_redis": found.only_in_redis,
    }


def _run(run: Run | None) -> dict[str, Any] | None:
    if run is None:
        return None
    return {
        "age_s": round(run.age_s, 1),
        "sequence": run.sequence,
        "differences": run.differences,
        "incomplete": run.incomplete,
    }


def _print(found: Diagnosis, facts: dict[str, Any], servers: Servers) -> None:
    say(f"Redis {redact_url(servers.redis_url)}, Postgres {redact_url(servers.postgres_url)}, {servers.origin.value}")
    table(f"Shard {found.shard}", ("what", "is"), [(name.replace("_", " "), _words(it)) for name, it in facts.items()])
    for finding in found.findings:
        say(f"{finding.level.name}: {finding.about}: {finding.what}")
        say(f"    {finding.remedy}")
    say("GREEN: nothing to do." if not found.findings else f"{found.level.name}: see above.")


def _words(value: Any) -> str:
    if isinstance(value, dict):
        ended = f"{age(value['age_s'])} ago, sequence {value['sequence']:,}, {value['differences']:,} differences"
        return f"{ended}; incomplete: {value['incomplete']}" if value["incomplete"] else ended
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
