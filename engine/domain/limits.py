"""The fraud rules: which there are, and what a tier of wallets is allowed. They are decided in lua/lib/rules.lua."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import NamedTuple

from engine.errors import InvalidRequest

NO_LIMIT = 2**53 - 1
"""As a limit: none."""

MAX_DEVICE_WALLETS = 16
KNOWN_DEVICES = 16
"""Devices that a wallet remembers: those it used last."""

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000


class Rule(IntEnum):
    """Numbers go into records; the lowest number of those broken is the one named, declines ahead of reviews."""

    MAX_AMOUNT = 1
    DAY_AMOUNT = 2
    DAY_COUNT = 3
    WINDOW_COUNT = 4
    HOUR_AMOUNT = 5
    DEVICE_ATTEMPTS = 6
    IP_ATTEMPTS = 7
    DEVICE_WALLETS = 8
    NEW_DEVICE = 9


class Condition(IntFlag):
    """What a request demands of the debit wallet; bits of TERMS.conditions."""

    VERSION = 1
    MIN_AVAILABLE = 2


class TierLimits(NamedTuple):
    """What wallets of a tier may do; None is no limit. Amounts in minor units, of each wallet's currency.

    max_amount_minor: of one movement. day_*: per UTC day. window_count movements in window_minutes (a sliding window
    of two counters). hour_amount_minor: in a rolling hour. device_attempts, ip_attempts: in
    attempts_window_minutes, refused ones counted too. device_wallets: distinct wallets on one device in a UTC day, at
    most 16; tiers with another attempts_window_minutes count apart. new_device_amount_minor: of one movement from a
    device that this wallet has not used successfully, or not for new_device_hours yet; an approved review is no use.
    review: the rules that send a movement to an operator instead of declining it; in a chain it is declined.
    debt_first: later credits pay back a chargeback's debt before anything can be spent.
    """

    max_amount_minor: int | None = None
    day_amount_minor: int | None = None
    day_count: int | None = None
    window_count: int | None = None
    window_minutes: int = 60
    hour_amount_minor: int | None = None
    device_attempts: int | None = None
    ip_attempts: int | None = None
    attempts_window_minutes: int = 60
    device_wallets: int | None = None
    new_device_amount_minor: int | None = None
    new_device_hours: int = 24
    review: frozenset[Rule] = frozenset()
    debt_first: bool = True


_MAX_WINDOW_MINUTES = 60 * 24
_MAX_NEW_DEVICE_HOURS = 24 * 366


def check_limits(limits: TierLimits) -> TierLimits:
    """limits itself if each is in its bounds; else InvalidRequest naming the field."""
    if not isinstance(limits, TierLimits):
        raise InvalidRequest("limits", "a TierLimits", limits)
    bounds = {
        "window_minutes": (1, _MAX_WINDOW_MINUTES),
        "attempts_window_minutes": (1, _MAX_WINDOW_MINUTES),
        "device_wallets": (0, MAX_DEVICE_WALLETS),
        "new_device_hours": (0, _MAX_NEW_DEVICE_HOURS),
    }
    optional = {name for name, default in TierLimits._field_defaults.items() if default is None}
    for name, value in limits._asdict().items():
        if name in ("review", "debt_first") or (value is None and name in optional):
            continue
        least, most = bounds.get(name, (0, NO_LIMIT - 1))
        if type(value) is not int or not least <= value <= most:
            raise InvalidRequest(name, f"an integer from {least} to {most}", value)
    if not isinstance(limits.review, frozenset) or not all(isinstance(rule, Rule) for rule in limits.review):
        raise InvalidRequest("review", "a frozenset of Rules", limits.review)
    if type(limits.debt_first) is not bool:
        raise InvalidRequest("debt_first", "True or False", limits.debt_first)
    return limits
