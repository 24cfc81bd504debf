"""The persister as a child process: its own interpreter lock, its own death, and always restarted but when broken.

The child is `hotledger persist`, told of its parent so that it never outlives it. Its logs go to our stderr.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from types import TracebackType
from typing import Self

import structlog

from engine.errors import Fatal
from gateway.exits import Exit

STOP_TIMEOUT_S = 30.0
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.1, 5.0
HEALTHY_AFTER_S = 30.0
MAX_CRASHES_AT_START = 5
PARENT_INTERVAL_S = 0.25

log = structlog.get_logger(__name__)


class PersisterProcess:
    """A persister for as long as the block runs. A crash is answered with a new one; a Fatal is not."""

    def __init__(
        self, redis_url: str, postgres_url: str, digest_key: bytes | None, *, log_level: str = "warning"
    ) -> None:
        """digest_key: of UTF-8. log_level: the child's, unless the environment has one."""
        # By the environment: a command line is seen by every user of the machine.
        self._environment = os.environ | {"HOTLEDGER_REDIS_URL": redis_url, "HOTLEDGER_POSTGRES_URL": postgres_url}
        self._environment.setdefault("HOTLEDGER_LOG_LEVEL", log_level)
        if digest_key is not None:
            self._environment["HOTLEDGER_DIGEST_KEY"] = digest_key.decode()
        self._stopping = threading.Event()
        self._status: int | None = None
        self._crashes = 0
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep_running, name="persister", daemon=True)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def check(self) -> None:
        """Raises Fatal if the persister stopped for good; what it found is on stderr."""
        if self._status is not None:
            raise Fatal(f"the persister stopped with status {self._status}; its reason is above")

    def check_start(self) -> None:
        """As check, and Fatal too if it only ever crashed: there is no use in waiting for a first success."""
        self.check()
        if self._crashes >= MAX_CRASHES_AT_START:
            raise Fatal(f"the persister crashed {self._crashes} times in a row; its reasons are above")

    def __enter__(self) -> Self:
        self._process = self._spawn()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._stopping.set()
            process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                # Safe at any instant: what it has not committed is still in the journal.
                process.kill()
                process.wait()
        self._thread.join()

    def _keep_running(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while True:
            assert self._process is not None  # __enter__ comes first
            began_at = time.monotonic()
            status = self._process.wait()
            if self._stopping.is_set():
                return
            if status == Exit.FATAL:
                self._status = status
                return
            lived_s = time.monotonic() - began_at
            backoff_s = FIRST_BACKOFF_S if lived_s > HEALTHY_AFTER_S else min(backoff_s * 2, MAX_BACKOFF_S)
            self._crashes += 1
            log.error("persister.crashed", status=status, again_in_s=backoff_s)
            if self._stopping.wait(backoff_s):
                return
            with self._lock:
                if self._stopping.is_set():
                    return
                self._process = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "gateway.cli", "persist", "--parent-pid", str(os.getpid())]
        return subprocess.Popen(  # noqa: S603  our own program, no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            env=self._environment,
            start_new_session=True,  # Ctrl-C reaches this process, which stops the child when it is done with it
        )


def watch_parent(parent_pid: int, stop: threading.Event) -> None:
    """Set stop when this process' parent is no longer parent_pid; from a thread of its own."""

    def watch() -> None:
        while os.getppid() == parent_pid:
            if stop.wait(PARENT_INTERVAL_S):
                return
        stop.set()

    threading.Thread(target=watch, name="parent", daemon=True).start()
