"""What the fraud rules know, from the ledger: what wallets used of their limits, by the counters of lua/lib/rules.lua.

Counters only go forward, from what they were by what happened since: filling a shard from nothing, and giving one what
it lacks, are the same computation, from zero or from what Redis has.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.domain.limits import DAY_MS, HOUR_MS, NO_LIMIT
from engine.wire import USAGE
from persister.copy_binary import Rows
from persister.journal import Numbers, numpy_type

USAGE_TYPE = numpy_type(USAGE)
_NO_TIER = -1


class Events(NamedTuple):
    """Accepted requests, one item each. amount: what counts against limits of amounts."""

    wallet: Numbers
    sequence: Numbers
    at_ms: Numbers
    amount: Numbers

    def select(self, which: NDArray[np.bool_] | NDArray[np.intp]) -> Events:
        return Events._make(column[which] for column in self)


class Tiers:
    """Which limits each wallet was under, at any sequence."""

    def __init__(self, limits: Rows, changes: Rows) -> None:
        """limits: tier_changes.sql, changes: wallet_tiers.sql, of a shard."""
        self.limits = limits
        order = np.lexsort((changes["sequence"], changes["wallet_id"]))
        self._wallet, self._sequence, self._tier = (
            changes[name][order].astype(np.int64) for name in ("wallet_id", "sequence", "tier")
        )

    def limits_at(self, wallet: Numbers, sequence: Numbers) -> NDArray[np.intp]:
        """Which of self.limits a request of each wallet met at that sequence; -1 in no tier."""
        last = _last_before(self._wallet, self._sequence, wallet, sequence)
        tier = np.where(last < 0, 0, self._tier[last]) if len(self._tier) else np.zeros(len(wallet), np.int64)
        of_tier, since = (self.limits[name].astype(np.int64) for name in ("tier", "sequence"))
        return np.where(tier == 0, _NO_TIER, _last_before(of_tier, since, tier, sequence))

    def counted_since(self, wallet: Numbers) -> Numbers:
        """The sequence at which each wallet last came into a tier from none; its counters began at zero there."""
        entered = self._tier != 0
        same = self._wallet[1:] == self._wallet[:-1]
        entered[1:] &= ~(same & (self._tier[:-1] != 0))
        last = _last_before(self._wallet[entered], self._sequence[entered], wallet, np.full(len(wallet), NO_LIMIT))
        found: Numbers = (
            np.where(last < 0, 0, self._sequence[entered][last]) if entered.any() else np.zeros_like(wallet)
        )
        return found


def advance(usage: NDArray[np.void], slot: NDArray[np.intp], events: Events, window_ms: Numbers) -> None:
    """Count events into usage, an array of USAGEs that is changed in place.

    slot: which of them each event is of. window_ms: the length of the sliding windows that counted it.
    """
    if not len(slot):
        return
    order = np.lexsort((events.sequence, slot))
    slot, events, window_ms = slot[order], events.select(order), window_ms[order]
    present = np.unique(slot)
    was, ones, amount = usage[present], np.ones(len(slot)), events.amount.astype(np.float64)
    day, hour = events.at_ms // DAY_MS, events.at_ms // HOUR_MS
    counted = {
        ("window", "window_before", "window_count"): (events.at_ms // window_ms, ones),
        ("hour", "hour_before", "hour_amount"): (hour, amount),
        ("day", "", "day_count"): (day, ones),
        ("day", "", "day_amount"): (day, amount),
    }
    now = was.copy()
    for (number, before, count), (numbers, weights) in counted.items():
        was_before = was[before] if before else np.zeros(len(was))
        slid = slide(slot, numbers, weights, was[number], was_before, was[count])
        now[number], now[count] = slid.number, np.minimum(slid.counted, NO_LIMIT)
        if before:
            now[before] = np.minimum(slid.before, NO_LIMIT)
    usage[present] = now


class Slid(NamedTuple):
    """Two counters of a sliding window, one item per group: of the window `number`, and of the one before it."""

    number: Numbers
    before: NDArray[np.float64]
    counted: NDArray[np.float64]


def slide(
    group: NDArray[np.intp],
    numbers: Numbers,
    weights: NDArray[np.float64],
    was_number: NDArray[Any],
    was_before: NDArray[Any],
    was_count: NDArray[Any],
) -> Slid:
    """The counters after events with these weights, each in a window with a number.

    group: of each event, ascending; within a group they are in order. was_*: before them, one item per group that has
    any. When the window changes, what was counted in the one directly before it is kept, all else forgotten.
    """
    begins = np.ones(len(group), bool)
    begins[1:] = group[1:] != group[:-1]
    changes = begins.copy()
    changes[1:] |= numbers[1:] != numbers[:-1]
    starts = np.flatnonzero(changes)  # of runs within one window
    sums, number = np.add.reduceat(weights, starts), numbers[starts]
    first = np.flatnonzero(begins[starts])
    last = np.append(first[1:], len(starts)) - 1
    goes_on = number[first] == was_number
    sums[first] += np.where(goes_on, was_count, 0)
    one_run = np.where(goes_on, was_before, np.where(was_number == number[last] - 1, was_count, 0))
    before_last = np.maximum(last - 1, 0)
    more_runs = np.where(number[before_last] == number[last] - 1, sums[before_last], 0)
    return Slid(number[last], np.where(first == last, one_run, more_runs), sums[last])


def _last_before(keys: Numbers, places: Numbers, key: Numbers, place: Numbers) -> NDArray[np.intp]:
    """For each (key, place): the last of (keys, places) with the same key and a lower place; -1 if none.

    keys and places are in order.
    """
    count = len(keys)
    all_keys, all_places = np.concatenate((keys, key)), np.concatenate((places, place))
    asked = np.arange(len(all_keys)) >= count
    order = np.lexsort((~asked, all_places, all_keys))
    last = np.maximum.accumulate(np.where(asked[order], -1, np.arange(len(order))))
    at = np.empty(len(order), np.intp)
    at[order] = np.where(last < 0, -1, order[last])
    found = at[count:]
    if count:
        found = np.where((found >= 0) & (keys[found] == key), found, -1)
    return found
