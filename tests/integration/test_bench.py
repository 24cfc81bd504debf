"""The benchmarks run, and print what programs read; how fast anything is is not asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.measure import Case, Sample, Target, at_least, percentiles_ms, ratio
from bench.prototype import PrototypeError, find, parse_batches, parse_callers

FIELDS = {
    "case",
    "transfers_per_s",
    "p50_ms",
    "p99_ms",
    "batch",
    "durability",
    "ratio_to_ceiling",
    "ratio_to_prototype",
    "target",
    "reached",
}
NUMBERS = ("transfers_per_s", "p50_ms", "p99_ms", "batch", "ratio_to_ceiling", "ratio_to_prototype", "bytes_per_item")

BATCHES_LINE = (
    "v3 B=1024 D=2 hot=True: 160,123 op/s; server 5.00 us/op -> 200,000 op/s ceiling; "
    "lat p50 12.10 ms p99 15.30 ms; mem 40.1M; stream 97 9876543"
)
CALLERS_LINE = "C=64: 60,500/s  p50 1.02 p99 1.51 ms avg batch 32 py cpu 9.1 us/op"


def run_bench(*arguments: str) -> dict[str, dict[str, Any]]:
    """The printed cases by name."""
    command = [sys.executable, "-m", "bench", *arguments, "--json", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    for case in cases:
        assert case.keys() >= FIELDS
        assert all(case[name] > 0 for name in NUMBERS if case.get(name) is not None), case
        assert (case["target"] is None) == (case["reached"] is None), case
    return {case["case"]: case for case in cases}


@pytest.fixture
def fake_prototype(tmp_path: Path) -> Path:
    """Scripts that print the prototype's lines and do nothing."""
    (tmp_path / "post_batch.lua").write_text("")
    (tmp_path / "drive_batches.py").write_text(f"print({BATCHES_LINE!r})")
    (tmp_path / "coalesce.py").write_text(f"print({CALLERS_LINE!r})")
    return tmp_path


def test_engine(fake_prototype: Path) -> None:
    cases = run_bench("engine", "--prototype", str(fake_prototype))
    singles = {f"singles_{callers}" for callers in (1, 8, 64, 512)}
    ceilings = {"ceiling_1024", "ceiling_256", "ceiling_1024_random"}
    bulk = {"bulk_1024_by_1", "bulk_1024_by_2"}
    memory = {"memory_wallet", "memory_idempotency_record"}
    loads = {"rules_256", "holds_1024", "chains_of_3", "retries_1024"}
    assert cases.keys() == singles | ceilings | bulk | memory | loads
    for name in singles | ceilings | bulk | loads:
        assert all(cases[name][field] for field in ("transfers_per_s", "p50_ms", "p99_ms", "batch"))
        assert cases[name]["ratio_to_ceiling"]
        assert cases[name]["durability"] == "accepted, appendfsync always"
    assert cases["ceiling_1024"]["ratio_to_ceiling"] == 1
    assert cases["ceiling_1024"]["batch"] == cases["bulk_1024_by_1"]["batch"] == 1024
    assert cases["singles_1"]["batch"] == 1
    assert all(cases[name]["ratio_to_prototype"] for name in singles | ceilings)
    assert cases["singles_64"]["prototype_transfers_per_s"] == 60_500
    assert all(cases[name]["bytes_per_item"] for name in memory)


def test_ledger() -> None:
    cases = run_bench("ledger")
    names = ["ceiling_1024", "persister_alone_hot", "persister_alone_random", "engine_and_persister", "idle_latency"]
    assert list(cases) == names
    assert all(cases[name]["transfers_per_s"] and cases[name]["ratio_to_ceiling"] for name in names[:-1])
    assert cases["engine_and_persister"]["backlog_max"] >= cases["engine_and_persister"]["backlog_at_end"] >= 0
    assert all(cases[name]["p50_ms"] <= cases[name]["p99_ms"] for name in names[-2:])


def test_recovery() -> None:
    cases = run_bench("recovery")
    assert list(cases) == ["rebuild_quarter", "rebuild", "feed_forward"]
    for name in ("rebuild_quarter", "rebuild"):
        assert all(cases[name][field] for field in ("wallets", "outcomes", "seconds", "peak_memory_bytes"))
    assert cases["rebuild"]["linear"]
    assert cases["feed_forward"]["records"]


def test_reconcile() -> None:
    cases = run_bench("reconcile")
    assert list(cases) == ["compare_idle", "compare_under_load", "full_pass"]
    assert all(case["seconds"] > 0 and case["wallets"] == 3000 for case in cases.values())


def test_durability() -> None:
    cases = run_bench("durability")
    assert list(cases) == ["durability_accepted", "durability_replicated", "durability_persisted"]
    assert all(case["offered_per_s"] == 200 and case["late_share"] <= 1 for case in cases.values())
    assert "added_p99_ms" not in cases["durability_accepted"]
    assert cases["durability_persisted"]["reached"] is (cases["durability_persisted"]["added_p99_ms"] <= 40)


def test_the_prototype_lines_are_parsed() -> None:
    assert parse_batches(BATCHES_LINE, 1024) == Sample(160_123, 12.1, 15.3, 1024, server_us=5.0)
    assert parse_callers(CALLERS_LINE) == Sample(60_500, 1.02, 1.51, 32, client_us=9.1)
    with pytest.raises(PrototypeError, match="not the line"):
        parse_callers("something else")


def test_a_given_prototype_must_be_there(tmp_path: Path, fake_prototype: Path) -> None:
    assert find(fake_prototype) == fake_prototype
    with pytest.raises(PrototypeError, match="lacks"):
        find(tmp_path / "nowhere")


def test_percentiles_are_of_the_sorted_latencies() -> None:
    assert percentiles_ms(second / 1000 for second in reversed(range(100))) == (50, 99)
    assert percentiles_ms([]) == (None, None)


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    assert ratio([1, 10, 300], [1, 20, 100]) == 1
    assert ratio([1.0, None], [2.0, 3.0]) == 0.5
    assert ratio([1.0], [None]) is None


def test_a_case_is_the_median_of_its_samples_and_is_judged() -> None:
    target = Target("transfers_per_s >= 25", lambda case: at_least(case.transfers_per_s, 25))
    case = Case.of("x", "none", [Sample(10.0), Sample(30.0, p50_ms=1.0), Sample(20.0)], details={"more": 1})
    assert case.judged(None).as_json()["reached"] is None
    printed = case.judged(target).as_json()
    assert printed.keys() >= FIELDS
    assert printed["transfers_per_s"] == 20
    assert printed["transfers_per_s_range"] == [10, 30]
    assert (printed["p50_ms"], printed["p99_ms"], printed["more"]) == (1, None, 1)
    assert printed["reached"] is False
