"""The HTTP service: serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engine import InvalidRequest
from gateway.commands.options import Data, PostgresUrl, RedisUrl
from gateway.http.server import Listen, Tls
from gateway.http.server import serve as run_server
from gateway.http.service import Settings as HttpSettings
from gateway.logs import configure_logs
from gateway.output import note
from gateway.session import Servers, Settings, open_session


def serve(
    listen: Annotated[str, typer.Option(metavar="ADDR", help="host:port, or unix:/path.")] = "127.0.0.1:8080",
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that share the address.")] = 1,
    timeout_ms: Annotated[int, typer.Option(min=100, max=60_000, help="Until an outcome is unknown.")] = 5_000,
    tls_cert: Annotated[Path | None, typer.Option(metavar="PEM", help="Certificates, for https.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="PEM", help="Their key.")] = None,
    log_requests: Annotated[bool, typer.Option("--log-requests", help="Log each request.")] = False,
    data: Data = None,
    redis_url: RedisUrl = None,
    postgres_url: PostgresUrl = None,
) -> None:
    """Serve the HTTP API until Ctrl-C or SIGTERM, which answer what is under way.

    With servers given by URL a persister (`hotledger persist`) runs elsewhere; on a data directory this attaches to a
    running `hotledger up`, or starts servers and a persister for as long as it runs. Keys: `hotledger key create`.

    \b
    Example: hotledger serve --listen 127.0.0.1:8080 --workers 2
    """
    configure_logs("info")
    address = Listen.parse(listen)
    tls = _tls(tls_cert, tls_key)
    settings = Settings(data, redis_url, postgres_url)

    def run(servers: Servers) -> None:
        note(f"Serving at {address}, {workers} workers")
        run_server(
            HttpSettings(servers.redis_url, servers.postgres_url, settings.digest_key, timeout_ms, log_requests),
            address,
            workers,
            tls,
        )

    if redis_url and postgres_url:
        from gateway.session import Origin

        run(Servers(redis_url, postgres_url, Origin.GIVEN))
        return
    with open_session(settings) as session:
        run(session.servers)


def _tls(certificate: Path | None, key: Path | None) -> Tls | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise InvalidRequest("--tls-cert", "given with --tls-key", certificate and str(certificate))
    for path, name in ((certificate, "--tls-cert"), (key, "--tls-key")):
        if not path.is_file():
            raise InvalidRequest(name, "a file", str(path))
    return Tls(certificate, key)
