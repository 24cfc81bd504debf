"""The prototype beside ours: its own scripts, run as they are, on a server of its own with the same settings.

The scripts print one line each, which is parsed here:
  drive_batches.py PORT SIZE COUNT PAIRS DEPTH   ready batches, DEPTH in one pipeline, whose latency is that of all
  coalesce.py PORT CALLERS COUNT                 concurrent callers of a coalescing client
They lack most of the rules that ours keeps, so they say what the machine gives today, not what to beat.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from bench.measure import Sample
from bench.scene import Pairs, empty, fresh_servers

DEFAULT_DIRECTORY = Path(__file__).parents[2] / "shared" / "prototype"
SCRIPTS = ("post_batch.lua", "drive_batches.py", "coalesce.py")
DEPTH = 2
RUN_TIMEOUT_S = 600.0

_HOST = "127.0.0.1"
_NUMBER = r"([\d,.]+)"
_BATCHES = re.compile(
    rf"{_NUMBER} op/s; server {_NUMBER} us/op -> {_NUMBER} op/s ceiling; lat p50 {_NUMBER} ms p99 {_NUMBER} ms"
)
_CALLERS = re.compile(rf"{_NUMBER}/s +p50 {_NUMBER} p99 {_NUMBER} ms avg batch {_NUMBER} py cpu {_NUMBER} us/op")


class PrototypeError(RuntimeError):
    """A script of the prototype is missing, failed, or printed something else than expected."""


class Prototype:
    """The prototype's scripts against the server on a port of this machine."""

    def __init__(self, directory: Path, port: int) -> None:
        self._directory = directory
        self._port = port

    def batches(self, seconds: float, *, size: int, pairs: Pairs) -> Sample:
        """Ready batches, as many as take about `seconds`."""
        count = max(DEPTH, int(seconds * 100_000) // size) * size
        return parse_batches(self._run("drive_batches.py", size, count, pairs.value, DEPTH), size)

    def callers(self, seconds: float, *, callers: int) -> Sample:
        """Single calls of `callers` concurrent callers, as many as take about `seconds`."""
        rate = min(2_000 * callers, 60_000)
        return parse_callers(self._run("coalesce.py", callers, max(callers, int(seconds * rate))))

    def _run(self, script: str, *arguments: object) -> str:
        empty(f"redis://{_HOST}:{self._port}")
        command = [sys.executable, script, str(self._port), *map(str, arguments)]
        done = subprocess.run(
            command, cwd=self._directory, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False
        )
        if done.returncode:
            raise PrototypeError(f"{script} ended with status {done.returncode}: {done.stderr.strip()}")
        return done.stdout


def parse_batches(printed: str, size: int) -> Sample:
    """The line of drive_batches.py. Raises PrototypeError."""
    rate, server_us, _, p50_ms, p99_ms = _numbers(_BATCHES, printed)
    return Sample(rate, p50_ms, p99_ms, size, server_us)


def parse_callers(printed: str) -> Sample:
    """The line of coalesce.py. Raises PrototypeError."""
    rate, p50_ms, p99_ms, batch, client_us = _numbers(_CALLERS, printed)
    return Sample(rate, p50_ms, p99_ms, batch, client_us=client_us)


def _numbers(pattern: re.Pattern[str], printed: str) -> tuple[float, ...]:
    found = pattern.search(printed)
    if found is None:
        raise PrototypeError(f"not the line that was expected: {printed!r}")
    return tuple(float(number.replace(",", "")) for number in found.groups())


def find(given: Path | None) -> Path | None:
    """The directory to use: the one given, or the default if it is there. Raises PrototypeError."""
    directory = given or DEFAULT_DIRECTORY
    if all((directory / name).is_file() for name in SCRIPTS):
        return directory
    if given is not None:
        raise PrototypeError(f"{given} lacks one of {', '.join(SCRIPTS)}")
    return None


@contextmanager
def running(directory: Path | None, data_directory: Path | None) -> Iterator[Prototype | None]:
    """The prototype with its server; None without a directory."""
    if directory is None:
        yield None
        return
    with fresh_servers(data_directory, postgres=False) as servers:
        port = _free_port()
        with redis.Redis.from_url(servers.redis_url) as client:
            client.config_set("bind", _HOST)
            client.config_set("port", port)
        yield Prototype(directory, port)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])
