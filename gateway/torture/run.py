"""One torture from its beginning to its verdict."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from uuid import UUID

import structlog

from engine import Engine
from engine.domain.durability import Durability
from gateway.torture.audit import Findings, audit
from gateway.torture.faults import ERRORS, FAULTS, Fault
from gateway.torture.load import opening, posting
from gateway.torture.processes import TortureError
from gateway.torture.recorder import Recorder
from gateway.torture.schedule import Planned, schedule
from gateway.torture.world import Loss, NotMade, Programs, World

LOOK_S = 0.05
OPEN_TIMEOUT_S = 60.0
DRAIN_TIMEOUT_S = 120.0
SETUP_TIMEOUT_MS = 20_000
NEVER_S = 1e12
SIGNS_OF_BUGS = ('"client.fatal"', '"persister.stopped"', "Traceback (most recent call last)")

Progress = Callable[[float, str], None]
"""(seconds since the load began, what happens)"""

log = structlog.get_logger(__name__)


@dataclass
class Result:
    """faults: made, by kind. skipped: that could not be made, and why. open_share: of the time, the part in which the
    shard took payments. unfit: what the processes themselves did wrong.

    ok: nothing lost, nothing twice, no invariant violated.
    """

    seed: int
    seconds: float
    faults: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    open_share: float = 0.0
    findings: Findings = field(default_factory=Findings)
    unfit: list[str] = field(default_factory=list)

    @property
    def invariant_violations(self) -> int:
        return self.findings.violations + len(self.unfit)

    @property
    def ok(self) -> bool:
        return not (self.findings.lost or self.findings.duplicated or self.invariant_violations)

    @property
    def details(self) -> list[str]:
        """What is wrong, in words; of much that is wrong in one way, some."""
        return [*self.unfit, *self.findings.details]

    def as_json(self) -> dict[str, Any]:
        found = asdict(self.findings)
        del found["violations"], found["details"], found["lost"], found["duplicated"], found["acknowledged"]
        return {
            "seed": self.seed,
            "seconds": self.seconds,
            "faults": self.faults,
            "acknowledged": self.findings.acknowledged,
            "unknown": self.findings.unknown_applied + self.findings.unknown_not_applied,
            "lost": self.findings.lost,
            "duplicated": self.findings.duplicated,
            "invariant_violations": self.invariant_violations,
            **found,
            "open_share": round(self.open_share, 3),
            "skipped": self.skipped,
            "details": self.details,
        }


class Step(NamedTuple):
    """The beginning or the end of a fault."""

    at_s: float
    begins: bool
    planned: Planned


def torture(
    seed: int,
    seconds: float,
    directory: Path,
    *,
    faults: Mapping[str, Fault] = FAULTS,
    programs: Programs | None = None,
    progress: Progress = lambda *_: None,
) -> Result:
    """Have everything run for so many seconds while it is hurt as the seed says, and audit it.

    directory: empty; data, logs and records stay in it. faults: those to choose from; with others than all, a
    seed means another schedule. Call it from the main thread.
    Raises TortureError if it cannot be done here.
    """
    result = Result(seed, seconds)
    with _sockets() as sockets, World(directory, sockets, programs or Programs(), seed) as world:
        _until(world, world.is_open, OPEN_TIMEOUT_S, "the shard did not open")
        asyncio.run(_open_wallets(world, Random(f"{seed}:setup")))
        for client in world.clients.values():
            client.start()
        _until(world, world.clients_have_begun, OPEN_TIMEOUT_S, "the clients did not begin")
        with _open_share(world, result):
            _Hurting(world, faults, result, progress).run()
        world.heal()
        progress(seconds, "everything runs again; the clients end")
        world.end_clients()
        progress(seconds, "the ledger catches up")
        at_rest = world.wait_until_drained(DRAIN_TIMEOUT_S)
        if not at_rest:
            world.violations.append(f"the ledger does not catch up: {world.state()}")
        progress(seconds, "audit")
        result.findings = audit(world.primary.url, world.postgres.url, world.records, world.losses, at_rest=at_rest)
        world.end_persisters()
        result.unfit = [*world.violations, *_fatal_lines(world)]
    return result


@contextmanager
def _sockets() -> Iterator[Path]:
    """A private directory whose name is short enough for sockets in it."""
    directory = Path(tempfile.mkdtemp(prefix="hotledger-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _until(world: World, condition: Callable[[], bool], timeout_s: float, otherwise: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(persister.log_tail() for persister in world.persisters.values())
            raise TortureError(f"{otherwise} within {timeout_s:.0f} s\n{logs}")
        world.look_after()
        time.sleep(LOOK_S)


async def _open_wallets(world: World, chance: Random) -> None:
    """Wallets with money; recorded as what clients do is."""

    def new_id() -> UUID:
        return UUID(bytes=chance.randbytes(16), version=4)

    async with (
        Recorder(world.records / "setup") as recorder,
        Engine.connect(world.primary.url, world.postgres.url, timeout_ms=SETUP_TIMEOUT_MS) as engine,
    ):
        for requests in opening(new_id):
            ask, asked_s = posting(requests), time.monotonic()
            await recorder.asking(ask.asked, Durability.ACCEPTED, asked_s)
            outcomes = await engine.post(requests)
            recorder.answered(outcomes, Durability.ACCEPTED, asked_s, time.monotonic())
            if not all(outcome.posted for outcome in outcomes):
                raise TortureError(f"the wallets cannot be opened: {Counter(o.status for o in outcomes)}")


class _Hurting:
    """Begins and ends the planned faults of a world, and notes what it did in the result."""

    def __init__(self, world: World, faults: Mapping[str, Fault], result: Result, progress: Progress) -> None:
        self._world = world
        self._faults = faults
        self._result = result
        self._progress = progress
        self._under_way: dict[int, Iterator[None]] = {}

    def run(self) -> None:
        """For as long as the torture lasts; what dies by itself meanwhile is looked after."""
        result = self._result
        planned = schedule(result.seed, result.seconds, self._faults)
        begins = [Step(one.begins_s, True, one) for one in planned]
        ends = [Step(one.ends_s, False, one) for one in planned]
        began_s = time.monotonic()
        for step in sorted([*begins, *ends]):
            self._look_after_until(began_s + step.at_s)
            words = ("begin" if step.begins else "end", step.planned.kind, step.planned.target)
            self._progress(time.monotonic() - began_s, " ".join(words).strip())
            self._take(step)
        self._look_after_until(began_s + result.seconds)

    def _look_after_until(self, at_s: float) -> None:
        while (left_s := at_s - time.monotonic()) > 0:
            self._world.look_after()
            time.sleep(min(LOOK_S, left_s))

    def _take(self, step: Step) -> None:
        """What could not be done is noted, and put right."""
        planned, fault = step.planned, self._faults[step.planned.kind]
        try:
            if step.begins:
                self._begin(planned, fault)
            elif planned.number in self._under_way:
                self._end(planned, fault)
        except (NotMade, *ERRORS) as error:
            log.warning("torture.not_made", kind=planned.kind, begins=step.begins, reason=str(error))
            self._result.skipped[planned.kind] = str(error)
            if "redis" in fault.claims:
                self._world.heal_redis()

    def _begin(self, planned: Planned, fault: Fault) -> None:
        after_sequence = self._world.persisted_sequence() if fault.may_lose else 0
        making = fault.make(self._world, planned.target, Random(f"{self._result.seed}:{planned.number}"))
        try:
            next(making)
        except NotMade:
            raise
        except ERRORS:
            self._note_losses(fault, after_sequence)  # some of it may have been done
            raise
        self._note_losses(fault, after_sequence)
        self._under_way[planned.number] = making
        faults = self._result.faults
        faults[planned.kind] = faults.get(planned.kind, 0) + 1

    def _end(self, planned: Planned, fault: Fault) -> None:
        try:
            next(self._under_way.pop(planned.number), None)
        finally:
            if fault.lingers:
                now_s = time.monotonic()
                self._world.losses = [loss._replace(until_s=min(loss.until_s, now_s)) for loss in self._world.losses]

    def _note_losses(self, fault: Fault, after_sequence: int) -> None:
        until_s = NEVER_S if fault.lingers else time.monotonic()
        self._world.losses += [Loss(level, until_s, after_sequence) for level in fault.may_lose]


@contextmanager
def _open_share(world: World, result: Result) -> Iterator[None]:
    """Look often whether the shard is open, from a thread of its own: a server that hangs must not delay a fault."""
    looks = Counter[bool]()
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_S):
            looks[world.is_open()] += 1

    thread = threading.Thread(target=look, name="looks", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        result.open_share = looks[True] / max(looks.total(), 1)


def _fatal_lines(world: World) -> list[str]:
    """What programs themselves called broken: a client's Fatal, a persister's, an error that nobody expected."""
    found = []
    for process in (*world.clients.values(), *world.persisters.values()):
        if process.log_path.exists():
            lines = process.log_path.read_text(errors="replace").splitlines()
            found += [f"{process.name}: {line}" for line in lines if any(sign in line for sign in SIGNS_OF_BUGS)]
    return found
