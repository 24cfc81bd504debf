"""A child process that is killed, stopped and started again on purpose, and never outlives the torture."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from gateway.embedded import EmbeddedServerError
from gateway.postgres import Account

KILL_TIMEOUT_S = 20.0
POLL_S = 0.01
LOG_TAIL_BYTES = 2000
PLAIN_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}

_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


class TortureError(EmbeddedServerError):
    """The torture itself cannot go on; its message says why."""


class Process:
    """One program under a name; each start is a new child in a session of its own.

    wanted: whether it ought to run now; of one that ought to and does not, somebody has to find out why.
    started_s: when the last child was started, by the monotonic clock.
    Start it from the main thread: the kernel ends the child when the thread that started it ends.
    """

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.wanted = False
        self.log_path = directory / f"{name}.log"
        self.started_s = float("-inf")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the last child; 0 if there was none."""
        return self._process.pid if self._process else 0

    @property
    def status(self) -> int | None:
        """How the last child ended; None while it runs."""
        return self._process.poll() if self._process else None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def spawn(
        self,
        command: Sequence[str],
        descriptors: Sequence[int] = (),
        account: Account | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        restore_signals: bool = True,
    ) -> subprocess.Popen[bytes]:
        """Run the command; its output is appended to the log. environment: None for PLAIN_ENVIRONMENT."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  our own programs, no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=PLAIN_ENVIRONMENT if environment is None else environment,
                start_new_session=True,
                restore_signals=restore_signals,
                pass_fds=descriptors,
                preexec_fn=partial(_die_with_parent, os.getpid()),
                user=account and account.uid,
                group=account and account.gid,
                extra_groups=account and [],
            )
        self.wanted, self.started_s = True, time.monotonic()
        return self._process

    def send(self, number: signal.Signals) -> None:
        """To the whole group, so that what the child forked gets it too."""
        if self.is_running:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, frozen or not, and wait until it is gone."""
        self.wanted = False
        self.send(signal.SIGKILL)
        self.ends_within(KILL_TIMEOUT_S)

    def log_tail(self) -> str:
        if not self.log_path.exists():
            return ""
        with self.log_path.open("rb") as log:
            log.seek(max(0, self.log_path.stat().st_size - LOG_TAIL_BYTES))
            return log.read().decode(errors="replace").strip()

    def ends_within(self, timeout_s: float) -> bool:
        if self._process is None:
            return True
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True


def descendants(pid: int) -> list[int]:
    """The processes below pid, by /proc; [] where there is none."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        _, parent = _state_and_parent(int(entry.name))
        children.setdefault(parent, []).append(int(entry.name))
    found, at = [pid], 0
    while at < len(found):
        found += children.get(found[at], [])
        at += 1
    return found[1:]


def _state_and_parent(pid: int) -> tuple[str, int]:
    """By /proc; ("", 0) for none."""
    try:
        # The name before them may have spaces and parentheses in it.
        state, parent = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return "", 0
    return state, int(parent)


def signal_all(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def wait_until_gone(pids: Sequence[int], timeout_s: float) -> None:
    """Until none of them is left, or timeout_s passes. Others' children may be dead for long before they are gone."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and any(_state_and_parent(pid)[0] not in ("", "Z", "X") for pid in pids):
        time.sleep(POLL_S)


def _die_with_parent(parent_pid: int) -> None:
    """Between fork and exec: system calls only."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent_pid:
            os._exit(1)
