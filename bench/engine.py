"""`python -m bench engine`: how fast payments are decided, how far that is from the ceiling and from the prototype.

How to read it. Everything runs on one machine: Valkey, and this one process as its only client, on a unix socket;
each measurement begins with an empty shard, 10,000 funded payers and one hot merchant.

ceiling_*   Batches packed beforehand and sent straight to `post`, two in flight: no Engine, hardly any Python. So
            transfers_per_s is what the server and its disk give at best; server_us_per_transfer is the time in the
            Lua function alone, and server_transfers_per_s the rate if nothing else were needed. _random pays from
            any wallet to any other, so that a batch touches twice the wallets.
singles_N   N callers that each await engine.transfer with a text key, again and again. p50_ms and p99_ms are of
            one call. batch is what the client gathered by itself.
bulk_*      engine.post of 1,024 ready Transfers by one or two callers; p50_ms and p99_ms are of a whole list.
rules_256   A ceiling with every fraud rule on, and a device and an IP on each payment.
holds_1024  A ceiling of which half is holds and captures. chains_of_3: of chains of three payments.
retries_1024: of which a fifth was sent before.
memory_*    Bytes of used_memory per wallet that was opened and left alone, and per remembered outcome.

ratio_to_ceiling is to ceiling_1024. ratio_to_prototype compares like with like, run in turns with ours: for a
ceiling the rates by server time (ratio_to_prototype_by_wall is by the clock), for singles the rates of as many callers.
It is the median over the rounds; ratio_to_prototype_of_best takes either side's best round instead, which is the
better one to read where transfers_per_s_range is wide: other programs only ever slow a round down.
ratio_to_earlier, with --against COMMIT, is to that commit's own measurement on a server of its own, likewise.
The prototype's client is called with ready ids and checks nothing; ours derives an id from a key, checks its input,
keeps deadlines and builds an Outcome.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import redis

import engine
from bench import earlier, prototype
from bench.earlier import Earlier
from bench.loads import ALL_RULES, CHAIN, CHAINS_OF_3, HALF_HOLDS, PLAIN, PLAIN_RANDOM, RETRIES, Load, packed_batches
from bench.measure import Case, Sample, Target, at_least, at_most, middle, percentiles_ms, ratio, sync_us
from bench.prototype import Prototype
from bench.scene import (
    AMOUNT_MINOR,
    DEPLOYMENT,
    MERCHANT,
    PAYERS,
    SHARD,
    Meter,
    Pairs,
    begin_shard,
    check,
    fresh_servers,
    funded_engine,
    in_batches,
    payments,
    progress,
)
from engine import Engine, OpenWallet
from engine.batcher import DEPTH
from engine.domain.status import NUMBER_OF, Status
from engine.keys import ShardKeys
from engine.requests import Packed
from engine.shard import Shard, connect_redis
from engine.wire import ANSWER, MAX_BATCH, REPLY_HEADER

DURABILITY = "accepted, appendfsync always"
MEMORY_ITEMS = 100_000

CEILING_PER_S, BULK_PER_S = 120_000, 80_000
"""Roughly what is expected: how many transfers are prepared for a second of measuring."""

_DEADLINE_MS = 600_000
_POSTED = NUMBER_OF[Status.POSTED]
_DRAWN = 1 << 16

Measurement = Callable[[str, float], Sample]
"""(Redis URL, about how many seconds) -> one sample, on a shard that is begun anew."""


# What is measured


def ceiling(redis_url: str, seconds: float, *, size: int, pairs: Pairs) -> Sample:
    """The same batches as bulk's, packed beforehand, sent straight to `post`."""
    return ceiling_of(redis_url, seconds, size=size, load=PLAIN if pairs is Pairs.HOT else PLAIN_RANDOM)


def ceiling_of(redis_url: str, seconds: float, *, size: int, load: Load) -> Sample:
    """The load's batches, packed beforehand, sent straight to `post`."""
    begin_shard(redis_url)
    return engine.run(_ceiling(redis_url, _whole_batches(seconds * CEILING_PER_S, size), size, load))


async def _ceiling(redis_url: str, transfers: int, size: int, load: Load) -> Sample:
    async with funded_engine(redis_url) as paying:
        await load.prepare(paying)
        batches = [_joined(batch) for batch in packed_batches(load, transfers, size)]
    client = connect_redis(redis_url)
    shard = Shard(client, SHARD)
    await shard.connect(DEPLOYMENT)
    latencies_s: list[float] = []
    waiting = iter(batches)

    async def sender() -> None:
        for requests, records, attachments in waiting:
            began_s = time.perf_counter()
            reply = await shard.post(records, b"", attachments, int(time.time() * 1000) + _DEADLINE_MS)
            latencies_s.append(time.perf_counter() - began_s)
            _check_reply(reply, requests)

    with Meter(redis_url) as meter:
        await asyncio.gather(*(sender() for _ in range(DEPTH)))
    await shard.close()
    await client.aclose()
    return _sample(sum(requests for requests, _, _ in batches), latencies_s, meter)


def _joined(batch: list[Packed]) -> tuple[int, bytes, bytes]:
    """(requests, their records, their attachments)."""
    return len(batch), b"".join(one.record for one in batch), b"".join(one.attachment for one in batch)


def _check_reply(reply: bytes, size: int) -> None:
    if reply[REPLY_HEADER.size :: ANSWER.size].count(_POSTED) != size:
        raise RuntimeError("the load was refused")


def singles(redis_url: str, seconds: float, *, callers: int) -> Sample:
    """Concurrent callers of engine.transfer, each waiting for its answer before it calls again."""
    begin_shard(redis_url)
    return engine.run(_singles(redis_url, seconds, callers))


async def _singles(redis_url: str, seconds: float, callers: int) -> Sample:
    payers = [random.randrange(1, PAYERS + 1) for _ in range(_DRAWN)]
    numbers = count()
    latencies_s: list[float] = []
    async with funded_engine(redis_url) as paying:

        async def caller(until_s: float) -> None:
            began_s = time.perf_counter()
            while began_s < until_s:
                number = next(numbers)
                outcome = await paying.transfer(payers[number % _DRAWN], MERCHANT, AMOUNT_MINOR, key=f"pay:{number}")
                ended_s = time.perf_counter()
                latencies_s.append(ended_s - began_s)
                if not outcome.posted:
                    check([outcome])
                began_s = ended_s

        with Meter(redis_url) as meter:
            until_s = time.perf_counter() + seconds
            await asyncio.gather(*(caller(until_s) for _ in range(callers)))
    return _sample(len(latencies_s), latencies_s, meter)


def bulk(redis_url: str, seconds: float, *, callers: int) -> Sample:
    """engine.post of full batches by one caller or more."""
    begin_shard(redis_url)
    return engine.run(_bulk(redis_url, _whole_batches(seconds * BULK_PER_S, MAX_BATCH), callers))


async def _bulk(redis_url: str, transfers: int, callers: int) -> Sample:
    batches = in_batches(payments(transfers, Pairs.HOT, "pay"), MAX_BATCH)
    latencies_s: list[float] = []
    async with funded_engine(redis_url) as paying:

        async def caller() -> None:
            for batch in batches:
                began_s = time.perf_counter()
                outcomes = await paying.post(batch)
                latencies_s.append(time.perf_counter() - began_s)
                check(outcomes)

        with Meter(redis_url) as meter:
            await asyncio.gather(*(caller() for _ in range(callers)))
    return _sample(transfers, latencies_s, meter)


def _whole_batches(transfers: float, size: int) -> int:
    """About so many transfers: at least as many full batches as are in flight."""
    return max(DEPTH, int(transfers) // size) * size


def _sample(transfers: int, latencies_s: list[float], meter: Meter) -> Sample:
    usage = meter.usage
    p50_ms, p99_ms = percentiles_ms(latencies_s)
    return Sample(
        transfers_per_s=transfers / usage.seconds,
        p50_ms=p50_ms,
        p99_ms=p99_ms,
        batch=transfers / usage.calls,
        server_us=usage.server_s / transfers * 1e6,
        client_us=usage.client_s / transfers * 1e6,
    )


# Memory


def memory(redis_url: str, items: int) -> dict[str, float]:
    """Bytes of used_memory per item: memory_wallet, memory_idempotency_record."""
    begin_shard(redis_url)
    with redis.Redis.from_url(redis_url) as client:
        empty = _used_memory(client)
        engine.run(_open_wallets(redis_url, items))
        keys = ShardKeys(SHARD)
        _drop(client, keys.journal, keys.idempotency(1))
        wallets = _used_memory(client) - empty

        begin_shard(redis_url)
        engine.run(_pay(redis_url, items))
        _drop(client, keys.journal)
        with_records, records = _used_memory(client), int(client.hlen(keys.idempotency(1)))
        _drop(client, keys.idempotency(1))
        freed = with_records - _used_memory(client)
    return {"memory_wallet": wallets / (items + 1), "memory_idempotency_record": freed / records}


async def _open_wallets(redis_url: str, wallets: int) -> None:
    """wallets and, besides, the external one of their currency."""
    async with Engine.connect(redis_url, timeout_ms=60_000) as opening:
        check(await opening.open_wallets([OpenWallet(number, number, "USD") for number in range(1, wallets + 1)]))


async def _pay(redis_url: str, transfers: int) -> None:
    async with funded_engine(redis_url) as paying:
        check(await paying.post(payments(transfers, Pairs.HOT, "pay"), timeout_ms=60_000))


def _drop(client: redis.Redis, *keys: bytes) -> None:
    """Delete keys, and wait until their memory is free: the server does it in the background."""
    client.unlink(*keys)
    while _memory(client)["lazyfree_pending_objects"]:
        time.sleep(0.01)


def _used_memory(client: redis.Redis) -> int:
    return int(_memory(client)["used_memory"])


def _memory(client: redis.Redis) -> Any:
    return client.info("memory")


# The cases

HOT_CEILING = "ceiling_1024"

# In the order of measuring: what is compared comes one after the other.
OURS: Mapping[str, Measurement] = {
    HOT_CEILING: partial(ceiling, size=MAX_BATCH, pairs=Pairs.HOT),
    "bulk_1024_by_1": partial(bulk, callers=1),
    "bulk_1024_by_2": partial(bulk, callers=2),
    "singles_1": partial(singles, callers=1),
    "singles_8": partial(singles, callers=8),
    "singles_64": partial(singles, callers=64),
    "singles_512": partial(singles, callers=512),
    "ceiling_256": partial(ceiling, size=256, pairs=Pairs.HOT),
    "ceiling_1024_random": partial(ceiling, size=MAX_BATCH, pairs=Pairs.RANDOM),
    "rules_256": partial(ceiling_of, size=256, load=ALL_RULES),
    "holds_1024": partial(ceiling_of, size=MAX_BATCH, load=HALF_HOLDS),
    "chains_of_3": partial(ceiling_of, size=MAX_BATCH - MAX_BATCH % CHAIN, load=CHAINS_OF_3),
    "retries_1024": partial(ceiling_of, size=MAX_BATCH, load=RETRIES),
}

THEIRS: Mapping[str, Callable[[Prototype, float], Sample]] = {
    "rules_256": partial(Prototype.batches, size=256, pairs=Pairs.HOT),
    HOT_CEILING: partial(Prototype.batches, size=MAX_BATCH, pairs=Pairs.HOT),
    "ceiling_256": partial(Prototype.batches, size=256, pairs=Pairs.HOT),
    "ceiling_1024_random": partial(Prototype.batches, size=MAX_BATCH, pairs=Pairs.RANDOM),
    "singles_1": partial(Prototype.callers, callers=1),
    "singles_8": partial(Prototype.callers, callers=8),
    "singles_64": partial(Prototype.callers, callers=64),
    "singles_512": partial(Prototype.callers, callers=512),
}

_BULK = Target(
    "transfers_per_s >= 80,000 and ratio_to_ceiling >= 0.6",
    lambda case: at_least(case.transfers_per_s, 80_000) and at_least(case.ratio_to_ceiling, 0.6),
)
_NO_SLOWER = "; ratio_to_earlier, if any, >= 0.9"


def _not_slower(case: Case) -> bool:
    return case.details.get("ratio_to_earlier") is None or at_least(case.details["ratio_to_earlier"], 0.9)


TARGETS: Mapping[str, Target] = {
    HOT_CEILING: Target(
        "transfers_per_s >= 120,000, or ratio_to_prototype >= 0.75" + _NO_SLOWER,
        lambda case: (
            _not_slower(case) and (at_least(case.transfers_per_s, 120_000) or at_least(case.ratio_to_prototype, 0.75))
        ),
    ),
    "singles_1": Target("p50_ms <= 0.6", lambda case: at_most(case.p50_ms, 0.6)),
    "singles_64": Target(
        "transfers_per_s >= 35,000 and p99_ms <= 4, or ratio_to_prototype >= 0.8",
        lambda case: (
            (at_least(case.transfers_per_s, 35_000) and at_most(case.p99_ms, 4))
            or at_least(case.ratio_to_prototype, 0.8)
        ),
    ),
    "bulk_1024_by_1": _BULK,
    "bulk_1024_by_2": _BULK,
    "rules_256": Target(
        "transfers_per_s >= 60,000, or ratio_to_prototype >= 0.3: its 200,000 are where the target is from",
        lambda case: at_least(case.transfers_per_s, 60_000) or at_least(case.ratio_to_prototype, 0.3),
    ),
    "memory_wallet": Target("bytes_per_item <= 220", lambda case: at_most(case.details["bytes_per_item"], 220)),
    "memory_idempotency_record": Target(
        "bytes_per_item <= 180", lambda case: at_most(case.details["bytes_per_item"], 180)
    ),
}


class Turn(NamedTuple):
    """One round of one case: ours, and the prototype's and the earlier commit's where there is one to compare with."""

    ours: Sample
    theirs: Sample | None
    earlier: Sample | None


def cases(
    *,
    seconds: float,
    rounds: int,
    memory_items: int,
    prototype_directory: Path | None,
    earlier_commit: str | None,
    directory: Path | None,
) -> Iterator[Case]:
    """Measure everything, then yield the cases.

    seconds: about how long one run lasts. prototype_directory, earlier_commit: None for no comparison. directory:
    where the temporary data directories go, None for the system's temporary one.
    """
    progress(f"a small write and its fdatasync take {sync_us(directory):.0f} us here")
    with fresh_servers(directory, postgres=False) as servers:
        with (
            prototype.running(prototype_directory, directory) as other,
            earlier.running(earlier_commit, directory) as before,
        ):
            turns = _rounds(servers.redis_url, other, before, seconds, rounds)
        progress(f"memory of {memory_items:,} wallets and outcomes")
        bytes_per_item = memory(servers.redis_url, memory_items)
    for name, taken in turns.items():
        yield _case(name, taken, turns).judged(TARGETS.get(name))
    for name, size in bytes_per_item.items():
        details = {"bytes_per_item": size, "items": memory_items}
        yield Case(case=name, durability=DURABILITY, details=details).judged(TARGETS[name])


def _rounds(
    redis_url: str, other: Prototype | None, before: Earlier | None, seconds: float, rounds: int
) -> dict[str, list[Turn]]:
    turns: dict[str, list[Turn]] = {name: [] for name in OURS}
    for number in range(rounds):
        for name, taken in turns.items():
            progress(f"round {number + 1} of {rounds}: {name}")
            taken.append(_turn(name, redis_url, other, before, seconds, ours_first=number % 2 == 0))
    return turns


def _turn(
    name: str, redis_url: str, other: Prototype | None, before: Earlier | None, seconds: float, *, ours_first: bool
) -> Turn:
    def others() -> tuple[Sample | None, Sample | None]:
        return (
            THEIRS[name](other, seconds) if other and name in THEIRS else None,
            before.run(name, seconds) if before and name in earlier.CALLS else None,
        )

    compared = None if ours_first else others()
    ours = OURS[name](redis_url, seconds)
    return Turn(ours, *(compared or others()))


def _case(name: str, turns: list[Turn], all_turns: Mapping[str, list[Turn]]) -> Case:
    ours = [turn.ours for turn in turns]
    details: dict[str, Any] = {}
    if _is_ceiling(name):
        details["server_transfers_per_s"] = middle(sample.server_transfers_per_s for sample in ours)
    before = [turn.earlier for turn in turns if turn.earlier]
    if before:
        details["earlier_transfers_per_s"] = middle(sample.transfers_per_s for sample in before)
        details["ratio_to_earlier"] = ratio(_rates(name, ours), _rates(name, before))
    ratio_to_prototype, compared = _comparison(name, ours, [turn.theirs for turn in turns if turn.theirs])
    ceilings = [turn.ours.transfers_per_s for turn in all_turns[HOT_CEILING]]
    return Case.of(
        name,
        DURABILITY,
        ours,
        ratio_to_ceiling=ratio([sample.transfers_per_s for sample in ours], ceilings),
        ratio_to_prototype=ratio_to_prototype,
        details=details | compared,
    )


def _is_ceiling(name: str) -> bool:
    """Whether the batches were ready, so that the time in the server says most."""
    return not name.startswith(("singles", "bulk"))


def _rates(name: str, samples: Sequence[Sample]) -> list[float]:
    """What is compared of a case: of a ceiling the rates by server time, else by the clock."""
    if _is_ceiling(name):
        return [sample.server_transfers_per_s or 0.0 for sample in samples]
    return [sample.transfers_per_s for sample in samples]


def _comparison(name: str, ours: list[Sample], theirs: list[Sample]) -> tuple[float | None, dict[str, Any]]:
    """(ratio_to_prototype, the prototype's own figures); (None, {}) where there are none."""
    if not theirs:
        return None, {}
    other = Case.of(name, DURABILITY, theirs)
    figures: dict[str, Any] = {
        "prototype_transfers_per_s": other.transfers_per_s,
        "prototype_transfers_per_s_range": other.details["transfers_per_s_range"],
        "prototype_p50_ms": other.p50_ms,
        "prototype_p99_ms": other.p99_ms,
        "prototype_server_us_per_transfer": other.details["server_us_per_transfer"],
    }
    if _is_ceiling(name):
        by_wall = ([sample.transfers_per_s for sample in side] for side in (ours, theirs))
        figures["ratio_to_prototype_by_wall"] = ratio(*by_wall)
    our_rates, their_rates = _rates(name, ours), _rates(name, theirs)
    # Noise only ever slows down.
    figures["ratio_to_prototype_of_best"] = max(our_rates) / max(their_rates)
    return ratio(our_rates, their_rates), figures
