"""Counters of the fraud rules, computed at once, against one event after the other as Lua counts them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.limits import DAY_MS, HOUR_MS, NO_LIMIT
from engine.wire import USAGE
from persister.packed_query import PackedQuery
from persister.rebuild_rules import _TIER_CHANGES, _WALLET_TIERS
from persister.usage import USAGE_TYPE, Events, Tiers, advance

MINUTE_MS = 60_000
START_MS = 20_000 * DAY_MS

usages = st.fixed_dictionaries(
    {
        "day": st.sampled_from([0, 19_999, 20_000]),
        "day_count": st.integers(0, 5),
        "day_amount": st.integers(0, 50),
        "hour": st.sampled_from([0, 20_000 * 24 - 1, 20_000 * 24]),
        "hour_before": st.integers(0, 50),
        "hour_amount": st.integers(0, 50),
        "window": st.sampled_from([0, START_MS // MINUTE_MS - 1, START_MS // MINUTE_MS, START_MS // HOUR_MS]),
        "window_before": st.integers(0, 5),
        "window_count": st.integers(0, 5),
        "debt": st.integers(0, 5),
    }
)
steps = st.sampled_from([0, 1, MINUTE_MS // 2, MINUTE_MS, HOUR_MS - 1, HOUR_MS, DAY_MS])
amounts = st.sampled_from([1, 7, NO_LIMIT])
happened = st.lists(st.tuples(st.integers(0, 3), steps, amounts, st.sampled_from([MINUTE_MS, HOUR_MS])))


def count_one(usage: dict[str, int], at_ms: int, amount: int, window_ms: int) -> None:
    """lua/lib/rules.lua, usage_now and count_usage."""
    if usage["day"] != at_ms // DAY_MS:
        usage |= {"day": at_ms // DAY_MS, "day_count": 0, "day_amount": 0}
    for number, before, count, now in (
        ("hour", "hour_before", "hour_amount", at_ms // HOUR_MS),
        ("window", "window_before", "window_count", at_ms // window_ms),
    ):
        if usage[number] != now:
            usage |= {before: usage[count] if usage[number] == now - 1 else 0, number: now, count: 0}
    usage["day_amount"] = min(usage["day_amount"] + amount, NO_LIMIT)
    usage["hour_amount"] = min(usage["hour_amount"] + amount, NO_LIMIT)
    usage["day_count"] += 1
    usage["window_count"] += 1


@given(st.lists(usages, min_size=4, max_size=4), happened)
def test_all_at_once_is_one_after_the_other(before: list[dict[str, int]], events: list[tuple[int, ...]]) -> None:
    usage = np.zeros(4, USAGE_TYPE)
    for at, one in enumerate(before):
        for name, value in one.items():
            usage[name][at] = value
    expected, now_ms, times = [dict(one) for one in before], START_MS, []
    for slot, step, amount, window_ms in events:
        now_ms += step
        times.append(now_ms)
        count_one(expected[slot], now_ms, amount, window_ms)
    columns = [np.array(column, np.int64) for column in (zip(*events, strict=True) if events else [[]] * 4)]
    slots, _, amount_minor, windows = columns
    sequence = np.arange(len(events))
    # In any order: it is the sequences that say what came first.
    order = np.random.default_rng(len(events)).permutation(len(events))
    found = Events(slots, sequence, np.array(times, np.int64), amount_minor).select(order)
    advance(usage, slots[order], found, windows[order])
    assert [{name: int(one[name]) for name, _ in USAGE.fields if name in before[0]} for one in usage] == expected


class TestTiers:
    def rows(self, query: PackedQuery, *rows: dict[str, int]) -> Any:
        made = np.zeros(len(rows), query.dtype)
        for at, row in enumerate(rows):
            for name, value in row.items():
                made[name][at] = value
        return made

    def tiers(self) -> Tiers:
        limits = self.rows(
            _TIER_CHANGES,
            {"tier": 1, "sequence": 10},
            {"tier": 1, "sequence": 50},
            {"tier": 2, "sequence": 20},
        )
        changes = self.rows(
            _WALLET_TIERS,
            {"wallet_id": 7, "sequence": 30, "tier": 2},
            {"wallet_id": -5, "sequence": 11, "tier": 1},
            {"wallet_id": 7, "sequence": 12, "tier": 1},
            {"wallet_id": 7, "sequence": 60, "tier": 0},
            {"wallet_id": 7, "sequence": 70, "tier": 1},
            {"wallet_id": 9, "sequence": 13, "tier": 0},
        )
        return Tiers(limits, changes)

    def test_limits_at(self) -> None:
        """From the next request on."""
        asked = [(7, 12), (7, 13), (7, 30), (7, 31), (7, 60), (7, 61), (7, 71), (-5, 12), (-5, 50), (-5, 51), (9, 99)]
        asked += [(8, 99), (-6, 99), (10, 99)]
        wallets, sequences = (np.array(column, np.int64) for column in zip(*asked, strict=True))
        expected = [-1, 0, 0, 2, 2, -1, 1, 0, 0, 1, -1, -1, -1, -1]
        assert self.tiers().limits_at(wallets, sequences).tolist() == expected

    def test_counted_since(self) -> None:
        """Since it was last in no tier."""
        wallets = np.array([7, -5, 9, 8], np.int64)
        assert self.tiers().counted_since(wallets).tolist() == [70, 11, 0, 0]

    def test_without_any(self) -> None:
        none = Tiers(self.rows(_TIER_CHANGES), self.rows(_WALLET_TIERS))
        wallets = np.array([7, 8], np.int64)
        assert none.limits_at(wallets, wallets).tolist() == [-1, -1]
        assert none.counted_since(wallets).tolist() == [0, 0]
