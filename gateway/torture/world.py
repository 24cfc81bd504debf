"""The processes of one torture, how they reach each other, and what is put right again."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import redis

from engine.domain.durability import Durability
from engine.errors import HotledgerError
from engine.shard import ShardState
from gateway import postgres
from gateway.exits import Exit
from gateway.torture.links import Link, Switchboard
from gateway.torture.processes import POLL_S, Process
from gateway.torture.servers import PostgresServer, SteppedClock, ValkeyNode, redis_url
from persister.migrate import migrate
from persister.redis_shard import LibraryMissing, RedisAway, RedisShard

SHARD = 0
PERSISTERS = ("persister0", "persister1")
CLIENTS = ("client0", "client1", "client2")
LINKS = ("link_clients", "link_persisters", "link_ledger")

MAX_BACKLOG, SAFETY_TAIL = 5_000, 2_000
"""Of the persisters: small, so that both bounds are met."""

SYNC_TIMEOUT_S = 10.0
END_TIMEOUT_S = 40.0
RESTART_AFTER_S = 1.0
MOST_ENDS = 6
"""Of persisters that were started again and again; what they say will not change."""


class NotMade(Exception):
    """A fault that could not be made here or now; nothing was done, or it was put right."""


class Loss(NamedTuple):
    """Outcomes of this level that were asked for before until_s may be gone, if they came after that sequence."""

    durability: Durability
    until_s: float
    after_sequence: int


@dataclass(frozen=True)
class Programs:
    """The commands of the programs, ahead of their arguments; a torture of a planted bug has its own."""

    persist: Sequence[str] = (sys.executable, "-m", "gateway.cli", "persist")
    client: Sequence[str] = (sys.executable, "-m", "gateway.torture.client")


class Persister(Process):
    """One `hotledger persist`."""

    def __init__(self, name: str, directory: Path, command: Sequence[str], urls: Mapping[str, str]) -> None:
        super().__init__(name, directory)
        self._command = command
        self._environment = _environment(urls, log_level="info")

    def start(self) -> None:
        options = ["--max-backlog", str(MAX_BACKLOG), "--safety-tail", str(SAFETY_TAIL)]
        self.spawn([*self._command, *options, "--parent-pid", str(os.getpid())], environment=self._environment)


class Client(Process):
    """One process of the load. Each start is another incarnation, with ids and a record of its own."""

    def __init__(
        self, name: str, directory: Path, command: Sequence[str], urls: Mapping[str, str], records: Path, seed: int
    ) -> None:
        super().__init__(name, directory)
        self._number = CLIENTS.index(name)
        self._command = command
        self._environment = _environment(urls, log_level="warning")
        self._records = records
        self._seed = seed
        self._incarnation = 0

    def start(self) -> None:
        self._incarnation += 1
        record = self._records / f"{self.name}-{self._incarnation}"
        arguments = (record, self._seed, self._number, self._incarnation)
        self.spawn([*self._command, *map(str, arguments)], environment=self._environment)


class World:
    """Everything that runs. Call its methods from the main thread only; is_open() from any.

    primary, replica: which of the nodes is meant to be which. violations: what should never have happened, in words.
    """

    def __init__(self, directory: Path, sockets: Path, programs: Programs, seed: int) -> None:
        """directory: for data, logs and records. sockets: a short path, whose sockets fit their bound."""
        password = secrets.token_urlsafe(16)
        logs = directory / "logs"
        self.records = directory / "records"
        for made in (logs, self.records):
            made.mkdir(mode=0o700)
        self.clock = SteppedClock(directory)
        self.nodes = [ValkeyNode(name, directory, sockets, password, self.clock) for name in ("valkey0", "valkey1")]
        self.primary, self.replica = self.nodes
        self.postgres = PostgresServer(directory, sockets)
        self._switchboard = Switchboard()
        self._ledger_dir = sockets / "ledger"
        self._ledger_dir.mkdir(mode=0o700)
        self._paths = {
            "link_clients": sockets / "clients.sock",
            "link_persisters": sockets / "persisters.sock",
            "link_ledger": self._ledger_dir / postgres.SOCKET_NAME,
        }
        self.links: dict[str, Link] = {}
        urls = {name: self._urls(self._paths[f"link_{name}"], password) for name in ("clients", "persisters")}
        self.persisters = {name: Persister(name, logs, programs.persist, urls["persisters"]) for name in PERSISTERS}
        self.clients = {
            name: Client(name, logs, programs.client, urls["clients"], self.records, seed) for name in CLIENTS
        }
        self.losses: list[Loss] = []
        self.violations: list[str] = []
        self._persisted = 0
        self._exits = ExitStack()

    def _urls(self, redis_path: Path, password: str) -> dict[str, str]:
        return {
            "HOTLEDGER_REDIS_URL": redis_url(redis_path, password),
            "HOTLEDGER_POSTGRES_URL": postgres.url(self._ledger_dir),
        }

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def _start(self) -> None:
        """Servers and persisters; the clients come when there are wallets."""
        self._exits.enter_context(self._switchboard)
        targets = {
            "link_clients": lambda: self.primary.socket,
            "link_persisters": lambda: self.primary.socket,
            "link_ledger": lambda: self.postgres.socket,
        }
        for name, path in self._paths.items():
            self.links[name] = self._switchboard.link(path, targets[name])
        self.postgres.start()
        self.primary.start()
        self.replica.start(replica_of=self.primary)
        self.postgres.wait_until_it_answers()
        migrate(self.postgres.url)
        for node in self.nodes:
            node.wait_until_it_answers()
        for persister in self.persisters.values():
            persister.start()

    def _stop(self) -> None:
        for process in (*self.clients.values(), *self.persisters.values(), *self.nodes, self.postgres):
            process.kill()
        self._exits.close()

    # The state of the shard

    def state(self) -> ShardState | None:
        """What the primary says of the shard; None if it cannot be asked."""
        try:
            with RedisShard(self.primary.url, SHARD) as shard:
                return shard.state()
        except (RedisAway, LibraryMissing, HotledgerError):
            return None

    def persisted_sequence(self) -> int:
        """A sequence that the ledger has reached."""
        state = self.state()
        if state is not None and state.meta is not None:
            self._persisted = max(self._persisted, state.meta["persisted"])
        return self._persisted

    def wait_until_drained(self, timeout_s: float) -> bool:
        """Until the shard is open and the ledger has all of it; False if timeout_s passes, or persisters give it up."""
        deadline, before = time.monotonic() + timeout_s, len(self.violations)
        while time.monotonic() < deadline and len(self.violations) < before + MOST_ENDS:
            self.look_after()
            state = self.state()
            if state is not None and state.meta is not None and state.is_open:
                meta = state.meta
                if meta["persisted"] == meta["sequence"]:
                    return True
            time.sleep(10 * POLL_S)
        return False

    def clients_have_begun(self) -> bool:
        """Whether each has asked for something."""
        begun = [path.name for path in self.records.iterdir() if path.stat().st_size]
        return all(any(name.startswith(client) for name in begun) for client in self.clients)

    def is_open(self) -> bool:
        state = self.state()
        return state is not None and state.is_open

    # Which node is which

    def wait_until_in_sync(self) -> None:
        """Until the replica has the primary's data, and a file of its own that has it. Raises NotMade after a while."""
        deadline = time.monotonic() + SYNC_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                replica, primary = self.replica.info(), self.primary.info()
                if (
                    replica.get("master_link_status") == "up"
                    and not replica["aof_rewrite_in_progress"]
                    and not replica["aof_rewrite_scheduled"]
                    and not replica["loading"]
                    and primary["connected_slaves"] == 1
                ):
                    return
            except redis.RedisError:
                pass
            time.sleep(POLL_S)
        raise NotMade("the replica is not in sync")

    def exchange(self, leaving: str = "") -> None:
        """The replica is the primary from now on: connections are cut and made anew to it.

        leaving: a link whose connections stay where they are; only new ones reach the new primary.
        """
        self.primary, self.replica = self.replica, self.primary
        for name, link in self.links.items():
            if name not in ("link_ledger", leaving):
                link.cut()

    # Putting right

    def look_after(self) -> None:
        """Start again what ended by itself, and note what should not have ended, or not like that."""
        for persister in self.persisters.values():
            if _has_ended(persister):
                if persister.status != Exit.UNAVAILABLE:  # a server was away when it came up
                    self._note_end(persister)
                persister.start()
        for client in self.clients.values():
            if _has_ended(client):
                self._note_end(client)
                client.start()
        for node in self.nodes:
            if _has_ended(node):
                self._note_end(node)
                node.start(replica_of=self.primary if node is self.replica else None)
        if _has_ended(self.postgres):
            self.postgres.start()  # it met a process that its predecessor left behind

    def _note_end(self, process: Process) -> None:
        last = process.log_tail().splitlines()[-1:]
        self.violations.append(f"{process.name} ended with status {process.status}: {' '.join(last)}")

    def heal(self) -> None:
        """Whatever is hurt: let everything run and flow, with the nodes in their places."""
        for link in self.links.values():
            link.flow()
        self.clock.step(0)
        for process in (*self.persisters.values(), *self.clients.values(), *self.nodes):
            process.thaw()
        self.postgres.thaw()
        self.heal_redis()
        if not self.postgres.is_running:
            self.postgres.start()
        for program in self.persisters.values():
            if not program.is_running:
                program.start()

    def heal_redis(self) -> None:
        """The nodes alone."""
        for node in self.nodes:
            node.thaw()
            node.empty_disk()
            if not node.is_running:
                node.start(replica_of=self.primary if node is self.replica else None)
        for node in self.nodes:
            node.wait_until_it_answers()
        self.primary.command("CONFIG", "SET", "maxmemory", "0")
        if self.primary.info()["role"] != "master":
            self.primary.promote()
        self.replica.follow(self.primary)

    def end_clients(self) -> None:
        """Let the clients finish what they have begun."""
        self._end(list(self.clients.values()))

    def end_persisters(self) -> None:
        self._end(list(self.persisters.values()))

    def _end(self, processes: Sequence[Process]) -> None:
        for process in processes:
            process.wanted = False
            process.send(signal.SIGTERM)
        for process in processes:
            if not process.ends_within(END_TIMEOUT_S):
                self.violations.append(f"{process.name} did not end within {END_TIMEOUT_S:.0f} s")
                process.kill()


def _environment(urls: Mapping[str, str], log_level: str) -> dict[str, str]:
    """This process's, but for what it says of hotledger."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("HOTLEDGER_")}
    return {**others, **urls, "HOTLEDGER_LOG_LEVEL": log_level, "HOTLEDGER_LOG_FORMAT": "json"}


def _has_ended(process: Process) -> bool:
    """Whether it is to be started again; at once only if it had run for a while."""
    return process.wanted and not process.is_running and time.monotonic() - process.started_s > RESTART_AFTER_S
