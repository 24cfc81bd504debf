"""An earlier commit beside ours: its own engine and library, from its own files, on a server of its own.

It is taken out of the repository into a temporary directory and run as a process there, through the measurements of
its own bench/engine.py; so both are measured in turns in one run, by the same rules.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.measure import Sample
from bench.scene import fresh_servers

ROOT = Path(__file__).parents[1]
RUN_TIMEOUT_S = 600.0

# What each compared case is called with there.
CALLS: Mapping[str, str] = {
    "ceiling_1024": "ceiling(url, seconds, size=1024, pairs=Pairs.HOT)",
    "ceiling_256": "ceiling(url, seconds, size=256, pairs=Pairs.HOT)",
    "ceiling_1024_random": "ceiling(url, seconds, size=1024, pairs=Pairs.RANDOM)",
    "singles_1": "singles(url, seconds, callers=1)",
    "singles_64": "singles(url, seconds, callers=64)",
}

_PROGRAM = """
import json, sys
from bench.engine import ceiling, singles
from bench.scene import Pairs
url, seconds = sys.argv[1], float(sys.argv[2])
print(json.dumps({call}))
"""


class EarlierError(RuntimeError):
    """The commit cannot be taken out of the repository, or its measurement failed."""


class Earlier:
    """The measurements of one commit, on a server of its own."""

    def __init__(self, directory: Path, redis_url: str) -> None:
        self._directory = directory
        self._redis_url = redis_url

    def run(self, case: str, seconds: float) -> Sample:
        """Raises EarlierError."""
        command = [sys.executable, "-c", _PROGRAM.format(call=CALLS[case]), self._redis_url, str(seconds)]
        done = subprocess.run(
            command,
            cwd=self._directory,
            env=os.environ | {"PYTHONPATH": str(self._directory)},
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise EarlierError(f"{case} of the earlier commit ended with {done.returncode}: {done.stderr.strip()}")
        values: list[Any] = json.loads(done.stdout.splitlines()[-1])
        return Sample(*values)


@contextmanager
def running(commit: str | None, data_directory: Path | None) -> Iterator[Earlier | None]:
    """The commit with its server; None without one. Raises EarlierError."""
    if commit is None:
        yield None
        return
    with TemporaryDirectory(prefix="hotledger-earlier-") as name:
        _take_out(commit, Path(name))
        with fresh_servers(data_directory, postgres=False) as servers:
            yield Earlier(Path(name), servers.redis_url)


def _take_out(commit: str, directory: Path) -> None:
    done = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        raise EarlierError(f"no commit {commit} here: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as files:
        files.extractall(directory, filter="data")
