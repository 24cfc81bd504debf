"""The faults: each is a small function that makes it, waits at its `yield` for as long as it lasts, and ends it.

The table at the end says of each what it may lose. An outcome that was acknowledged at one of those levels, and that
the ledger did not have when the fault began, may be gone afterwards; every other one has to be there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

import redis

from engine.domain.durability import Durability
from gateway.torture.world import CLIENTS, LINKS, PERSISTERS, NotMade, World

Making = Callable[[World, str, Random], Iterator[None]]


class Fault(NamedTuple):
    """make: called with the world, the target and what decides on sizes. lasts_s: between its beginning and its end.

    claims: what no other fault may touch meanwhile, and for rest_s after it; of targets it claims the one it is for.
    may_lose: see above. lingers: whether it may lose what is acknowledged up to its end, not only up to its beginning.
    weight: how often it comes, against the others.
    """

    make: Making
    lasts_s: tuple[float, float]
    claims: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    rest_s: float = 0.0
    may_lose: frozenset[Durability] = frozenset()
    lingers: bool = False
    weight: int = 1


# The Valkey that is the primary, or its replica


def kill_primary(world: World, _: str, __: Random) -> Iterator[None]:
    world.primary.kill()
    yield
    world.primary.start()


def freeze_primary(world: World, _: str, __: Random) -> Iterator[None]:
    world.primary.freeze()
    yield
    world.primary.thaw()


def kill_replica(world: World, _: str, __: Random) -> Iterator[None]:
    world.replica.kill()
    yield
    world.replica.start(replica_of=world.primary)


def freeze_replica(world: World, _: str, __: Random) -> Iterator[None]:
    world.replica.freeze()
    yield
    world.replica.thaw()


def flush_library(world: World, _: str, __: Random) -> Iterator[None]:
    world.primary.command("FUNCTION", "FLUSH")
    yield


def fill_disk(world: World, _: str, chance: Random) -> Iterator[None]:
    """The journal cannot be written: with appendfsync always the server ends itself rather than answer."""
    node = world.primary
    node.wanted = False
    node.fill_disk(chance.randrange(0, 200_000))
    yield
    node.empty_disk()
    if node.is_running:
        node.wanted = True
    else:
        node.start()


def fill_memory(world: World, _: str, chance: Random) -> Iterator[None]:
    used = world.primary.info()["used_memory"]
    world.primary.command("CONFIG", "SET", "maxmemory", str(used + chance.randrange(0, 1_000_000)))
    yield
    world.primary.command("CONFIG", "SET", "maxmemory", "0")


def step_clock(world: World, _: str, chance: Random) -> Iterator[None]:
    """The nodes' time of day leaps and leaps back; one of the two is backwards."""
    if not world.clock.is_there:
        raise NotMade("no C compiler, or none whose library loads")
    world.clock.step(chance.choice([-1, 1]) * chance.randrange(50, 5_000))
    yield
    world.clock.step(0)


# Failovers


def switch_over(world: World, _: str, __: Random) -> Iterator[None]:
    """The planned way: the primary waits until its replica has everything, then they change places."""
    world.wait_until_in_sync()
    _fail_over(world)
    yield


def _fail_over(world: World) -> None:
    world.primary.command("FAILOVER", "TIMEOUT", "3000")
    deadline = time.monotonic() + 5.0
    while world.replica.info()["role"] != "master":
        if time.monotonic() > deadline:
            raise NotMade("the primary called the failover off")
        time.sleep(0.005)
    world.exchange()


def kill_and_promote(world: World, _: str, __: Random) -> Iterator[None]:
    world.wait_until_in_sync()
    world.primary.kill()
    world.replica.promote()
    world.exchange()
    yield
    world.replica.start(replica_of=world.primary)


def freeze_and_promote(world: World, _: str, __: Random) -> Iterator[None]:
    """The old primary wakes up as one, with requests in its sockets, and is demoted: a partial resync if it can be."""
    world.wait_until_in_sync()
    world.primary.freeze()
    world.replica.promote()
    world.exchange()
    yield
    world.replica.thaw()
    world.replica.follow(world.primary)


def promote_and_back(world: World, _: str, __: Random) -> Iterator[None]:
    """The old primary is demoted, sleeps through what the new one takes, and is promoted again without it.

    It has nothing that the new one has not: where both sides of a fork took payments, only a person can choose one.
    """
    world.wait_until_in_sync()
    _fail_over(world)
    world.wait_until_in_sync()
    world.replica.freeze()
    yield
    world.primary.freeze()
    world.replica.thaw()
    world.replica.promote()
    world.exchange()
    world.replica.thaw()
    world.replica.follow(world.primary)


def split_brain(world: World, _: str, __: Random) -> Iterator[None]:
    """The replica is promoted while clients that are connected to the old primary stay there."""
    world.wait_until_in_sync()
    world.replica.promote()
    world.exchange(leaving="link_clients")
    yield
    world.links["link_clients"].cut()
    world.replica.follow(world.primary)


def lose_primary(world: World, _: str, __: Random) -> Iterator[None]:
    """Its disk is gone with it: the replica takes over, and an empty node becomes its replica."""
    world.wait_until_in_sync()
    world.primary.kill()
    world.primary.forget_everything()
    world.replica.promote()
    world.exchange()
    yield
    world.replica.start(replica_of=world.primary)


def cut_journal(world: World, _: str, chance: Random) -> Iterator[None]:
    """The end of the append-only file is gone, and the server comes back as the primary that it was."""
    world.primary.kill()
    world.primary.cut_journal(chance.choice([chance.randrange(1, 2_000), chance.randrange(1, 300_000)]))
    yield
    world.primary.start()


def lose_redis(world: World, _: str, __: Random) -> Iterator[None]:
    """Both nodes and their disks."""
    for node in world.nodes:
        node.kill()
        node.forget_everything()
    yield
    world.primary.start()
    world.replica.start(replica_of=world.primary)


# Postgres


def crash_postgres(world: World, _: str, __: Random) -> Iterator[None]:
    world.postgres.crash()
    yield
    world.postgres.start()


def kill_postgres(world: World, _: str, __: Random) -> Iterator[None]:
    world.postgres.kill_postmaster()
    yield
    world.postgres.start()


def freeze_postgres(world: World, _: str, __: Random) -> Iterator[None]:
    world.postgres.freeze()
    yield
    world.postgres.thaw()


# Programs


def kill_persister(world: World, target: str, __: Random) -> Iterator[None]:
    world.persisters[target].kill()
    yield
    world.persisters[target].start()


def freeze_persister(world: World, target: str, __: Random) -> Iterator[None]:
    world.persisters[target].freeze()
    yield
    world.persisters[target].thaw()


def kill_client(world: World, target: str, __: Random) -> Iterator[None]:
    world.clients[target].kill()
    yield
    world.clients[target].start()


def freeze_client(world: World, target: str, __: Random) -> Iterator[None]:
    world.clients[target].freeze()
    yield
    world.clients[target].thaw()


def kill_everything(world: World, _: str, __: Random) -> Iterator[None]:
    programs = (*world.nodes, *world.persisters.values())
    for program in programs:
        program.kill()
    world.postgres.kill_postmaster()
    yield
    world.postgres.start()
    world.primary.start()
    world.replica.start(replica_of=world.primary)
    for persister in world.persisters.values():
        persister.start()


# Connections


def cut_connections(world: World, target: str, __: Random) -> Iterator[None]:
    world.links[target].cut()
    yield


def cut_reply(world: World, target: str, __: Random) -> Iterator[None]:
    world.links[target].cut_next_reply()
    yield
    world.links[target].flow()


def stall_replies(world: World, target: str, __: Random) -> Iterator[None]:
    world.links[target].stall_replies()
    yield
    world.links[target].flow()


def stall_requests(world: World, target: str, __: Random) -> Iterator[None]:
    world.links[target].stall_requests()
    yield
    world.links[target].flow()


def swallow_replies(world: World, target: str, __: Random) -> Iterator[None]:
    """What was asked is done, and nobody hears of it."""
    world.links[target].swallow_replies()
    yield
    world.links[target].flow()


REDIS, POSTGRES = ("redis",), ("postgres",)
EVERYTHING = ("redis", "postgres", *PERSISTERS)

ACCEPTED = frozenset({Durability.ACCEPTED})
BUT_PERSISTED = frozenset({Durability.ACCEPTED, Durability.REPLICATED})

FAULTS: dict[str, Fault] = {
    "kill_primary": Fault(kill_primary, (0.1, 1.0), REDIS, rest_s=1.2, weight=2),
    "freeze_primary": Fault(freeze_primary, (0.2, 1.5), REDIS, rest_s=0.3),
    "kill_replica": Fault(kill_replica, (0.1, 1.0), REDIS, rest_s=0.3),
    "freeze_replica": Fault(freeze_replica, (0.2, 1.5), REDIS),
    "flush_library": Fault(flush_library, (0.1, 0.2), REDIS, rest_s=0.3),
    "fill_disk": Fault(fill_disk, (0.3, 0.8), REDIS, rest_s=1.2),
    "fill_memory": Fault(fill_memory, (0.3, 1.0), REDIS),
    "step_clock": Fault(step_clock, (0.3, 1.5), REDIS),
    "switch_over": Fault(switch_over, (0.2, 0.3), REDIS, rest_s=1.2),
    "kill_and_promote": Fault(kill_and_promote, (0.3, 1.0), REDIS, rest_s=1.2, may_lose=ACCEPTED, weight=2),
    "freeze_and_promote": Fault(freeze_and_promote, (0.3, 1.0), REDIS, rest_s=1.2, may_lose=ACCEPTED),
    "promote_and_back": Fault(promote_and_back, (0.5, 1.5), REDIS, rest_s=1.2, may_lose=ACCEPTED, lingers=True),
    "split_brain": Fault(split_brain, (0.3, 1.0), REDIS, rest_s=1.2, may_lose=ACCEPTED, lingers=True),
    "lose_primary": Fault(lose_primary, (0.3, 1.0), REDIS, rest_s=1.2, may_lose=ACCEPTED),
    "cut_journal": Fault(cut_journal, (0.1, 0.5), REDIS, rest_s=1.2, may_lose=BUT_PERSISTED, weight=2),
    "lose_redis": Fault(lose_redis, (0.1, 0.5), REDIS, rest_s=1.5, may_lose=BUT_PERSISTED),
    "crash_postgres": Fault(crash_postgres, (0.1, 1.5), POSTGRES, rest_s=0.5, weight=2),
    "kill_postgres": Fault(kill_postgres, (0.1, 1.0), POSTGRES, rest_s=0.5),
    "freeze_postgres": Fault(freeze_postgres, (0.2, 1.5), POSTGRES),
    "kill_persister": Fault(kill_persister, (0.1, 1.0), targets=PERSISTERS, rest_s=1.0, weight=2),
    "freeze_persister": Fault(freeze_persister, (0.3, 2.0), targets=PERSISTERS, rest_s=0.3),
    "kill_client": Fault(kill_client, (0.1, 1.0), targets=CLIENTS, rest_s=2.0),
    "freeze_client": Fault(freeze_client, (0.3, 2.0), targets=CLIENTS),
    "kill_everything": Fault(kill_everything, (0.1, 0.5), EVERYTHING, rest_s=1.5),
    "cut_connections": Fault(cut_connections, (0.0, 0.1), targets=LINKS),
    "cut_reply": Fault(cut_reply, (0.1, 0.3), targets=LINKS, weight=2),
    "stall_replies": Fault(stall_replies, (0.1, 1.5), targets=LINKS),
    "stall_requests": Fault(stall_requests, (0.1, 1.5), targets=LINKS),
    "swallow_replies": Fault(swallow_replies, (0.1, 1.0), targets=LINKS),
}

ERRORS = (redis.RedisError, OSError, TimeoutError)
"""What making a fault may raise besides NotMade: a server that is slower than it was thought to be."""
