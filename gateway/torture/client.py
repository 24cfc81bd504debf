"""`python -m gateway.torture.client RECORD SEED NUMBER INCARNATION`: one process of the load.

The servers are named by the environment, as for every program. It runs until SIGTERM, and then ends what it began.
A Fatal is a line of its log, an event client.fatal.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from random import Random

import structlog

from engine import Engine, Fatal, Outcome, OutcomeUnknown, Unavailable, run
from engine.domain.durability import Durability
from engine.domain.ids import id_deriver, origin_digester
from engine.ledger_lookup import LedgerLookup
from engine.requests import RequestPacker
from gateway.logs import configure_logs
from gateway.torture.load import Ask, Load
from gateway.torture.recorder import Recorder, What

CALLERS = 12
THINK_S = 0.02
TIMEOUTS_MS = (300, 1_000, 1_000, 1_000, 3_000)
LEVELS = {Durability.ACCEPTED: 6, Durability.REPLICATED: 2, Durability.PERSISTED: 2}
"""How often a call asks for each."""

MOST_ATTEMPTS = 8
RETRIED = 0.7
"""How often a call without an outcome is made again; the others stay as they are."""

NEW_WALLETS = 1_000_000
CONNECT_TIMEOUT_MS = 2_000
PAUSE_S = 0.2

log = structlog.get_logger(__name__)


class Client:
    """Asks with many callers at once until it is stopped, and records everything."""

    def __init__(
        self,
        engine: Engine,
        load: Load,
        recorder: Recorder,
        chance: Random,
        levels: Mapping[Durability, int] = LEVELS,
    ) -> None:
        self._engine = engine
        self._load = load
        self._recorder = recorder
        self._chance = chance
        self._levels = levels

    async def run(self, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as callers:
            for _ in range(CALLERS):
                callers.create_task(self._caller(stop))

    async def _caller(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self._ask(self._load.next(), stop)
            await asyncio.sleep(self._chance.uniform(0, THINK_S))

    async def _ask(self, ask: Ask, stop: asyncio.Event) -> None:
        for _ in range(MOST_ATTEMPTS):
            if await self.attempt(ask) or stop.is_set() or self._chance.random() > RETRIED:
                return
            await asyncio.sleep(self._chance.uniform(0, PAUSE_S))

    async def attempt(self, ask: Ask) -> bool:
        """Ask once, on the record. Whether it has an outcome now."""
        [level] = self._chance.choices(list(self._levels), list(self._levels.values()))
        asked_s = time.monotonic()
        await self._recorder.asking(ask.asked, level, asked_s)
        try:
            answer = await ask.call(self._engine, durability=level, timeout_ms=self._chance.choice(TIMEOUTS_MS))
        except OutcomeUnknown:
            self._recorder.not_answered(ask.asked, What.UNKNOWN, level, asked_s, time.monotonic())
            return False
        except Unavailable:
            self._recorder.not_answered(ask.asked, What.UNAVAILABLE, level, asked_s, time.monotonic())
            return False
        except Fatal as error:
            self._recorder.not_answered(ask.asked, What.UNKNOWN, level, asked_s, time.monotonic())
            log.critical("client.fatal", error=repr(error))
            await asyncio.sleep(1)
            return True
        outcomes = [answer] if isinstance(answer, Outcome) else answer
        self._recorder.answered(outcomes, level, asked_s, time.monotonic())
        self._load.learn(ask, outcomes)
        return True


async def packer_of(postgres_url: str) -> RequestPacker:
    """What derives the ids that engines of this deployment derive. Raises Unavailable."""
    deployment = await LedgerLookup(postgres_url).deployment()
    if deployment is None:
        raise Unavailable("no persister has named the deployment yet")
    return RequestPacker(id_deriver(deployment.id), origin_digester(deployment.id), "", 0)


async def main(record: Path, seed: int, number: int, incarnation: int) -> None:
    """record: a file that does not exist yet."""
    redis_url, postgres_url = os.environ["HOTLEDGER_REDIS_URL"], os.environ["HOTLEDGER_POSTGRES_URL"]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    chance = Random(f"{seed}:{number}:{incarnation}")
    async with Recorder(record) as recorder:
        load: Load | None = None
        while not stop.is_set():
            try:
                packer = await packer_of(postgres_url)
                load = load or Load(chance, packer, first_new_wallet=(1_000 * (number + 1) + incarnation) * NEW_WALLETS)
                async with Engine.connect(redis_url, postgres_url, timeout_ms=CONNECT_TIMEOUT_MS) as engine:
                    await Client(engine, load, recorder, chance).run(stop)
            except Unavailable as error:
                log.warning("client.waits", error=str(error))
            except Fatal as error:
                log.critical("client.fatal", error=repr(error))
            await asyncio.sleep(PAUSE_S)


def run_client(arguments: list[str]) -> None:
    """arguments: as on the command line."""
    configure_logs()
    path, *numbers = arguments
    run(main(Path(path), *map(int, numbers)))


if __name__ == "__main__":
    run_client(sys.argv[1:])
