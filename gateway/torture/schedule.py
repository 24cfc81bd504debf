"""What goes wrong when: a pure function of the seed, the seconds and the table of faults, so that a seed replays.

At any time several faults may be under way, but no two that claim the same thing: of a failover whose replica is
killed meanwhile nobody could say what it may lose.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import NamedTuple

from gateway.torture.faults import FAULTS, Fault

FIRST_S = 1.0
"""Some payments come before the first fault."""

MEAN_GAP_S = 0.7


class Planned(NamedTuple):
    """A fault that begins and ends at these seconds of the torture. number: in the order of their beginnings.
    target: which of the fault's targets; '' if it has none."""

    number: int
    kind: str
    target: str
    begins_s: float
    ends_s: float


def schedule(seed: int, seconds: float, faults: Mapping[str, Fault] = FAULTS) -> list[Planned]:
    """The faults in the order of their beginnings; all of them are over by `seconds`.

    Kinds come by turns in random order, each as often in a turn as its weight, so that even a short torture has many.
    """
    chance = Random(f"{seed}:{seconds:g}")
    planned: list[Planned] = []
    busy_until: dict[str, float] = {}
    bag: list[str] = []
    now = FIRST_S
    while now < seconds:
        if not bag:
            bag = [kind for kind, fault in faults.items() for _ in range(fault.weight)]
            chance.shuffle(bag)
        found = _first_that_fits(bag, faults, busy_until, now, chance)
        if found is not None:
            kind, target = found
            fault = faults[kind]
            ends = now + chance.uniform(*fault.lasts_s)
            if ends <= seconds:
                bag.remove(kind)
                for claim in _claims(fault, target):
                    busy_until[claim] = ends + fault.rest_s
                planned.append(Planned(len(planned), kind, target, round(now, 3), round(ends, 3)))
        now += chance.expovariate(1 / MEAN_GAP_S)
    return planned


def _first_that_fits(
    bag: list[str], faults: Mapping[str, Fault], busy_until: Mapping[str, float], now: float, chance: Random
) -> tuple[str, str] | None:
    """The first kind in the bag whose claims are free now, and a target of it."""
    for kind in bag:
        fault = faults[kind]
        targets = [
            target
            for target in fault.targets or ("",)
            if all(busy_until.get(claim, 0.0) <= now for claim in _claims(fault, target))
        ]
        if targets:
            return kind, chance.choice(targets)
    return None


def _claims(fault: Fault, target: str) -> tuple[str, ...]:
    return (*fault.claims, target) if target else fault.claims
