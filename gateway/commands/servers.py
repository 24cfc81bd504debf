"""Servers and what runs beside them: up, persist, migrate."""

from __future__ import annotations

import signal
import threading
from typing import Annotated

import typer

from engine.servers import redact_url
from gateway.commands.bundles import bundled
from gateway.commands.options import Data, Place, PostgresUrl, RedisUrl
from gateway.embedded import EmbeddedServers
from gateway.logs import configure_logs
from gateway.output import note, print_json, say
from gateway.persister_process import PersisterProcess, watch_parent
from gateway.session import Origin, Servers, Settings, closing_servers, open_servers, publish, wait_until_open

LOOK_INTERVAL_S = 0.5


def up(data: Data = None) -> None:
    """Run the embedded servers and the persister until Ctrl-C.

    Other commands on the same data directory attach to it; programs use the URLs that it prints.

    \b
    Example: hotledger up --data ./money
    """
    configure_logs("info")
    settings = Settings(data)
    digest_key = settings.digest_key
    stop = stop_on_signals()
    embedded = EmbeddedServers(settings.directory)
    embedded.start()
    with closing_servers(embedded):
        servers = Servers(embedded.redis_url, embedded.postgres_url, Origin.STARTED)
        with PersisterProcess(servers.redis_url, servers.postgres_url, digest_key, log_level="info") as persister:
            wait_until_open(servers, persister, stop)
            if stop.is_set():
                return
            published = publish(embedded)
            try:
                _announce(embedded, servers)
                while not stop.wait(LOOK_INTERVAL_S):
                    persister.check()
            finally:
                published.unlink(missing_ok=True)


def _announce(embedded: EmbeddedServers, servers: Servers) -> None:
    say(f"HOTLEDGER_REDIS_URL={servers.redis_url}")
    say(f"HOTLEDGER_POSTGRES_URL={servers.postgres_url}")
    say(f"Ready on {embedded.data_dir}. Ctrl-C stops it; everything is kept.")


def persist(
    redis_url: RedisUrl = None,
    postgres_url: PostgresUrl = None,
    max_backlog: Annotated[
        int, typer.Option(min=1, help="Records the ledger may lack before payments are refused.")
    ] = 1_000_000,
    safety_tail: Annotated[int, typer.Option(min=0, help="Records kept in the journal behind the ledger.")] = 100_000,
    parent_pid: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run one persister against servers given by URL, until Ctrl-C or SIGTERM.

    Start as many as you like: one leads, the others stand by. The schema is brought up to date first.

    \b
    Example: hotledger persist --redis-url redis://cache:6379 --postgres-url postgresql://ledger/hotledger
    """
    from persister.drain import Persister
    from persister.migrate import migrate as apply_migrations

    if parent_pid is None:
        configure_logs("info")
    settings = Settings(None, redis_url, postgres_url)
    if not redis_url or not postgres_url:
        raise typer.BadParameter("needs --redis-url and --postgres-url, or their variables")
    stop = stop_on_signals()
    if parent_pid is not None:
        watch_parent(parent_pid, stop)
    apply_migrations(postgres_url)
    Persister(
        redis_url,
        postgres_url,
        max_backlog=max_backlog,
        safety_tail=safety_tail,
        digest_key=settings.digest_key,
    ).run(stop)


@bundled
def migrate(place: Place) -> None:
    """Bring the ledger's schema up to date, and set up its roles: hotledger_owner, hotledger_app, hotledger_reader.

    As a user who may do it: persisters, as members of hotledger_app, find it done. See SECURITY.md.

    \b
    Example: hotledger migrate --data ./money
    """
    from persister.migrate import grant_roles
    from persister.migrate import migrate as apply_migrations

    with open_servers(place.settings) as servers:
        applied = apply_migrations(servers.postgres_url)
        missing = grant_roles(servers.postgres_url)
    if place.as_json:
        print_json({"applied": applied, "missing": missing})
    else:
        say(
            f"{redact_url(servers.postgres_url)}: "
            + (f"applied {', '.join(applied)}" if applied else "nothing to apply")
        )
    for what in missing:
        note(f"Roles: {what}")


def stop_on_signals() -> threading.Event:
    """An event that SIGINT and SIGTERM set, instead of ending the process."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop
