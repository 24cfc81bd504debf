"""The schedule of faults: pure, within its bounds, and rich."""

from __future__ import annotations

from itertools import combinations

import pytest

from gateway.torture.faults import FAULTS
from gateway.torture.schedule import FIRST_S, Planned, schedule


def claims(planned: Planned) -> set[str]:
    return {*FAULTS[planned.kind].claims, planned.target} - {""}


def test_a_seed_and_a_length_are_all_that_it_depends_on() -> None:
    assert schedule(7, 60) == schedule(7, 60)
    assert schedule(7, 60) != schedule(8, 60)


@pytest.mark.parametrize("seed", range(20))
def test_no_two_faults_touch_the_same_at_once(seed: int) -> None:
    planned = schedule(seed, 60)
    for one, other in combinations(planned, 2):
        if claims(one) & claims(other):
            rest_s = FAULTS[one.kind].rest_s
            assert one.ends_s + rest_s <= other.begins_s + 0.002, f"{one} and {other}"


@pytest.mark.parametrize("seconds", [2, 20, 60])
def test_all_is_over_in_time(seconds: int) -> None:
    for one in schedule(3, seconds):
        least, most = FAULTS[one.kind].lasts_s
        assert FIRST_S <= one.begins_s <= one.ends_s <= seconds
        assert least - 0.002 <= one.ends_s - one.begins_s <= most + 0.002


def test_targets_are_the_faults_own() -> None:
    for one in schedule(5, 600):
        assert one.target in (FAULTS[one.kind].targets or ("",))


def test_every_kind_comes_in_ten_minutes_and_most_in_one() -> None:
    assert {one.kind for one in schedule(1, 600)} == set(FAULTS)
    assert len({one.kind for one in schedule(1, 60)}) > len(FAULTS) * 0.7
