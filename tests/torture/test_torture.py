"""The torture itself, for a short while, with a seed that has most kinds of faults; `make torture` takes longer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.torture.schedule import schedule

ROOT = Path(__file__).parents[2]
SECONDS = int(os.environ.get("HOTLEDGER_TORTURE_SECONDS", "60"))
SEED = 2957
TIMEOUT_S = 280 + SECONDS


def torture(*command: str) -> tuple[int, dict[str, Any]]:
    """Run it as a program; its exit status and its JSON object."""
    ended = subprocess.run(
        [sys.executable, "-m", *command, "--json"], cwd=ROOT, capture_output=True, timeout=TIMEOUT_S, check=False
    )
    assert ended.stdout, ended.stderr.decode()
    return ended.returncode, orjson.loads(ended.stdout.splitlines()[-1])


@pytest.mark.timeout(TIMEOUT_S + 20)
def test_nothing_acknowledged_is_lost_and_nothing_happens_twice() -> None:
    status, found = torture("gateway.cli", "torture", "--seconds", str(SECONDS), "--seed", str(SEED))
    assert (found["lost"], found["duplicated"], found["invariant_violations"]) == (0, 0, 0), found["details"]
    assert status == 0
    assert found["details"] == []
    assert (found["seed"], found["seconds"]) == (SEED, SECONDS)
    assert len(found["faults"]) >= 15, found
    assert {"kill_primary", "cut_journal", "lose_redis", "kill_persister", "crash_postgres"} <= found["faults"].keys()
    assert found["acknowledged"] > 200, found
    assert found["unknown"] == found["unknown_applied"] + found["unknown_not_applied"]


def test_the_seed_of_the_short_torture_has_most_kinds_of_faults() -> None:
    assert len({planned.kind for planned in schedule(SEED, 20)}) >= 22


@pytest.mark.skipif("HOTLEDGER_PLANTED_BUGS" not in os.environ, reason="make test-long plants bugs")
@pytest.mark.timeout(TIMEOUT_S + 20)
@pytest.mark.parametrize(
    ("bug", "faults"),
    [
        ("offset", ("kill_persister", "crash_postgres", "kill_postgres")),
        ("fence", ("cut_journal", "promote_and_back")),
        ("xadd", ("cut_connections",)),
        ("levels", ("lose_redis", "freeze_postgres")),
    ],
)
def test_a_planted_bug_is_caught(bug: str, faults: tuple[str, ...]) -> None:
    kinds = [word for fault in faults for word in ("--fault", fault)]
    status, found = torture("tests.torture.planted", bug, "torture", "--seconds", "20", "--seed", "1", *kinds)
    assert status == 1
    assert found["lost"] + found["duplicated"] + found["invariant_violations"] > 0


def test_a_fault_that_there_is_not() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "torture", "--fault", "flood"],
        cwd=ROOT,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 2
    assert b"--fault must be one of kill_primary" in ended.stderr
