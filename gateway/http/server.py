"""The processes that serve: workers that share a port, each with its own loop, engine and keys.

Granian keeps the workers: it restarts one that dies, and on SIGTERM has them answer what is under way. It bounds what
comes before a request is one: the size of headers, and how long they may take.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from engine import InvalidRequest
from gateway.http.service import Settings

MAX_HEADER_BYTES = 32 * 1024
HEADER_TIMEOUT_MS = 10_000
MAX_CONNECTIONS = 16_384
BACKLOG = 2048
DRAIN_S = 30


class Listen(NamedTuple):
    """A TCP address, or the path of a Unix socket."""

    host: str
    port: int
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Listen:
        """host:port, [v6]:port, :port, or unix:/path. Raises InvalidRequest."""
        if text.startswith("unix:/"):
            return cls("", 0, Path(text[5:]))
        host, _, port = text.rpartition(":")
        if not port.isdigit() or not 1 <= int(port) <= 65535:
            raise InvalidRequest("--listen", "host:port or unix:/path", text)
        return cls(host.strip("[]") or "0.0.0.0", int(port))  # noqa: S104  as asked for

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"unix:{self.path}" if self.path else f"http://{host}:{self.port}"


class Tls(NamedTuple):
    certificate: Path
    key: Path


def serve(settings: Settings, listen: Listen, workers: int, tls: Tls | None = None) -> None:
    """Serve until SIGINT or SIGTERM; then answer what is under way, DRAIN_S at most."""
    from granian.constants import HTTPModes, Interfaces, Loops
    from granian.http import HTTP1Settings
    from granian.server import Server

    # No fork: this process may have threads, and modules that read the environment when they were imported.
    multiprocessing.set_start_method("spawn", force=True)
    with _environment(settings):
        Server(
            "gateway.http.app:worker",
            factory=True,
            address=listen.host,
            port=listen.port,
            uds=listen.path,
            interface=Interfaces.ASGI,
            workers=workers,
            loop=Loops.uvloop,
            http=HTTPModes.http1,
            websockets=False,
            backlog=BACKLOG,
            backpressure=max(1, MAX_CONNECTIONS // workers),
            http1_settings=HTTP1Settings(
                header_read_timeout=HEADER_TIMEOUT_MS, keep_alive=True, max_buffer_size=MAX_HEADER_BYTES
            ),
            ssl_cert=tls.certificate if tls else None,
            ssl_key=tls.key if tls else None,
            log_enabled=False,
            respawn_failed_workers=True,
            respawn_interval=0.5,
            workers_kill_timeout=DRAIN_S,
        ).serve()


@contextmanager
def _environment(settings: Settings) -> Iterator[None]:
    """What the workers read: not a command line, which every user of the machine sees."""
    with TemporaryDirectory(prefix="hotledger-metrics-") as metrics:
        os.environ["HOTLEDGER_REDIS_URL"] = settings.redis_url
        os.environ["HOTLEDGER_POSTGRES_URL"] = settings.postgres_url
        os.environ["SERVE_TIMEOUT_MS"] = str(settings.timeout_ms)
        os.environ["SERVE_LOG_REQUESTS"] = "1" if settings.log_requests else "0"
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics
        if settings.digest_key is not None:
            os.environ["HOTLEDGER_DIGEST_KEY"] = settings.digest_key.decode()
        yield
