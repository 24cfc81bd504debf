"""The fraud rules of the oracle, after engine/domain/limits.py: which of them a movement breaks."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil
from typing import NamedTuple

from engine import Rule, TierLimits
from engine.domain.limits import MAX_DEVICE_WALLETS
from tests.model_state import DAY_MS, LIMIT, ModelWallet, Sliding

MINUTE_MS, HOUR_MS = 60_000, 3_600_000
KNOWN_DEVICES = 16


class Broken(NamedTuple):
    """A rule that a movement breaks. used: of its limit, before. retry_at_ms: 0 if waiting does not help."""

    rule: Rule
    used: int
    retry_at_ms: int


class Tried(NamedTuple):
    """What was counted of a device and an IP before this attempt; None for what no rule looks at."""

    device: Fraction | None = None
    ip: Fraction | None = None
    wallets: int | None = None


@dataclass
class Attempts:
    """By device and by IP, whatever became of them; wallets: on each device, by day.

    They are counted for tiers that have such a rule, and apart for tiers that count by windows of another length.
    """

    counters: dict[tuple[str, str, int], Sliding] = field(default_factory=dict)
    wallets: dict[tuple[str, int, int], set[int]] = field(default_factory=dict)

    def begin(self, wallet_id: int, limits: TierLimits, device: str | None, ip: str | None, now_ms: int) -> Tried:
        """Count an attempt; what was there before it."""
        window_ms = limits.attempts_window_minutes * MINUTE_MS
        by_device = by_ip = wallets = None
        if device is not None and (limits.device_attempts is not None or limits.device_wallets is not None):
            by_device = self._count("device", device, window_ms, now_ms)
            seen = self.wallets.setdefault((device, window_ms, now_ms // DAY_MS), set())
            wallets = len(seen) if wallet_id not in seen else None
            if len(seen) < (MAX_DEVICE_WALLETS if limits.device_wallets is None else limits.device_wallets):
                seen.add(wallet_id)
        if ip is not None and limits.ip_attempts is not None:
            by_ip = self._count("ip", ip, window_ms, now_ms)
        return Tried(by_device, by_ip, wallets)

    def _count(self, what: str, who: str, window_ms: int, now_ms: int) -> Fraction:
        counter = self.counters.setdefault((what, who, window_ms), Sliding())
        used = counter.used(now_ms, window_ms)
        counter.add(now_ms, window_ms, 1)
        return used


def broken_rules(
    wallet: ModelWallet,
    limits: TierLimits,
    attempts: Attempts,
    tried: Tried,
    amount: int,
    device: str | None,
    ip: str | None,
    now_ms: int,
    single: int | None = None,
) -> list[Broken]:
    """Every rule that a movement of amount by the wallet breaks, now. single: of a raise, the whole hold."""
    day_amount, day_count = wallet.usage.today(now_ms)
    tomorrow_ms = (now_ms // DAY_MS + 1) * DAY_MS
    window_ms = limits.window_minutes * MINUTE_MS
    attempts_ms = limits.attempts_window_minutes * MINUTE_MS
    found: list[Broken] = []

    def at_most(rule: Rule, limit: int | None, used: int | Fraction | None, more: int, retry_at_ms: int) -> None:
        if limit is not None and used is not None and used + more > limit:
            found.append(Broken(rule, ceil(used), 0 if more > limit else retry_at_ms))

    def sliding(
        rule: Rule, limit: int | None, used: Fraction | None, more: int, counter: Sliding, size_ms: int
    ) -> None:
        if limit is not None:
            at_most(rule, limit, used, more, counter.room_from_ms(now_ms, size_ms, limit - more))

    at_most(Rule.MAX_AMOUNT, limits.max_amount_minor, 0, single or amount, 0)
    at_most(Rule.DAY_AMOUNT, limits.day_amount_minor, day_amount, amount, tomorrow_ms)
    at_most(Rule.DAY_COUNT, limits.day_count, day_count, 1, tomorrow_ms)
    usage = wallet.usage
    in_window, in_hour = usage.window_count, usage.hour_amount
    sliding(Rule.WINDOW_COUNT, limits.window_count, in_window.used(now_ms, window_ms), 1, in_window, window_ms)
    sliding(Rule.HOUR_AMOUNT, limits.hour_amount_minor, in_hour.used(now_ms, HOUR_MS), amount, in_hour, HOUR_MS)
    for rule, limit, what, who, used in (
        (Rule.DEVICE_ATTEMPTS, limits.device_attempts, "device", device, tried.device),
        (Rule.IP_ATTEMPTS, limits.ip_attempts, "ip", ip, tried.ip),
    ):
        counter = attempts.counters.get((what, who or "", attempts_ms), Sliding())
        sliding(rule, limit, used, 1, counter, attempts_ms)
    at_most(Rule.DEVICE_WALLETS, limits.device_wallets, tried.wallets, 1, tomorrow_ms)
    if device is not None and limits.new_device_amount_minor is not None and amount > limits.new_device_amount_minor:
        since_ms = wallet.devices.get(device)
        known_from_ms = None if since_ms is None else since_ms + limits.new_device_hours * HOUR_MS
        if known_from_ms is None or now_ms < known_from_ms:
            found.append(Broken(Rule.NEW_DEVICE, 0, known_from_ms or 0))
    return found


def named(broken: list[Broken], limits: TierLimits) -> tuple[Broken | None, bool]:
    """The one that is named: the lowest number, declines ahead of reviews; and whether it goes to review."""
    if not broken:
        return None, False
    first = min(broken, key=lambda one: (one.rule in limits.review, one.rule))
    return first, first.rule in limits.review


def count_usage(wallet: ModelWallet, limits: TierLimits, amount: int, device: str | None, now_ms: int) -> None:
    """Count an accepted movement. device: that it came from, if that was a success."""
    usage = wallet.usage
    day_amount, day_count = usage.today(now_ms)
    usage.day, usage.day_amount, usage.day_count = now_ms // DAY_MS, min(day_amount + amount, LIMIT), day_count + 1
    usage.hour_amount.add(now_ms, HOUR_MS, amount)
    usage.window_count.add(now_ms, limits.window_minutes * MINUTE_MS, 1)
    if device is not None and limits.new_device_amount_minor is not None:
        since_ms = wallet.devices.pop(device, now_ms)
        wallet.devices[device] = since_ms
        while len(wallet.devices) > KNOWN_DEVICES:
            del wallet.devices[next(iter(wallet.devices))]
