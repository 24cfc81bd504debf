"""How much an accepted request has to survive before its caller is answered."""

from __future__ import annotations

from enum import StrEnum

from engine.errors import InvalidRequest

MAX_REPLICAS = 16


class Durability(StrEnum):
    """From the quickest to the safest. What each survives on the servers at hand: Engine.guarantee."""

    ACCEPTED = "accepted"  # Redis ran it
    REPLICATED = "replicated"  # it is on the disk of that server and of N replicas
    PERSISTED = "persisted"  # Postgres committed it


def check_durability(durability: str) -> Durability:
    """The level by its name. Raises InvalidRequest."""
    try:
        return Durability(durability)
    except ValueError:
        raise InvalidRequest("durability", f"one of {', '.join(Durability)}", durability) from None


def check_replicas(replicas: object) -> int:
    """How many replicas a replicated request has to reach. Raises InvalidRequest."""
    if type(replicas) is not int or not 0 <= replicas <= MAX_REPLICAS:
        raise InvalidRequest("replicas", f"an integer from 0 to {MAX_REPLICAS}", replicas)
    return replicas
