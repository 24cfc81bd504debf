"""`python -m bench http` runs and prints what programs read; how fast anything is is not asserted."""

from __future__ import annotations

from tests.integration.test_bench import run_bench


def test_http() -> None:
    cases = run_bench("http")
    assert list(cases) == ["noop", "singles_64", "singles_2000", "batches_100", "idle_1000"]
    assert all(case["transfers_per_s"] and case["p50_ms"] <= case["p99_ms"] for case in cases.values())
    assert cases["idle_1000"]["idle_lost"] == 0
    assert cases["singles_64"]["durability"] == "accepted, appendfsync always"
