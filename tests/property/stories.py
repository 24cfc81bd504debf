"""Requests that belong together: what single ones at random rarely come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any
from uuid import UUID

from engine import Hold, HoldChange, Kind, Refund, Rule, SetTierLimits, TierLimits, Transfer, WalletChange
from engine.domain.wallet import external_wallet_id
from tests.model import Asked, Model
from tests.model_content import Request

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
OUTSIDE = external_wallet_id("USD")

Chapter = list[Asked] | int
"""Requests for one batch, or milliseconds that pass."""


class Stories:
    """Each story is chapters by chapters; what is asked next may depend on what the oracle then has."""

    def __init__(
        self, model: Model, new_id: Callable[[], UUID], window_minutes: int, attempts_window_minutes: int
    ) -> None:
        self._model = model
        self._new_id = new_id
        self._windows = {"window_minutes": window_minutes, "attempts_window_minutes": attempts_window_minutes}
        self._random = Random()

    def tell(self, random: Random) -> Iterator[Chapter]:
        """One of them, on wallets that are open, and not closed or frozen if there are some."""
        self._random = random
        wallets = [
            id
            for id, wallet in self._model.state.wallets.items()
            if id > 0 and wallet.currency == "USD" and not wallet.closed
        ]
        if len(wallets) >= 2:
            random.shuffle(wallets)
            yield [self._under(WalletChange(wallet, Kind.UNFREEZE, 6)) for wallet in wallets[:3]]
            yield from random.choice(
                [self._debt, self._windows_slide, self._many_devices, self._one_device, self._closing, self._late_fail]
            )(wallets)

    def _under(self, request: Request) -> Asked:
        return Asked(self._new_id(), request)

    def _tier(self, *wallets: int, **limits: Any) -> list[Asked]:
        """The wallets in a tier with these limits."""
        tier = self._random.choice([1, 2, 3])
        new = SetTierLimits(tier, TierLimits(**self._windows | limits))
        return [self._under(new), *(self._under(WalletChange(wallet, Kind.SET_TIER, tier)) for wallet in wallets)]

    def _top_up(self, wallet: int, amount: int) -> Asked:
        return self._under(Transfer(OUTSIDE, wallet, amount, kind=Kind.TOP_UP))

    def _pay(self, debit: int, credit: int, amount: int, **terms: Any) -> Asked:
        return self._under(Transfer(debit, credit, amount, kind=Kind.PAYMENT, **terms))

    def _spend_about_all(self, wallet: int, other: int) -> Asked:
        """A unit more or less than the wallet may spend."""
        state = self._model.state.wallets[wallet]
        amount = state.available - state.floor + self._random.choice([-1, 0, 1])
        return self._pay(wallet, other, max(1, min(amount, 10**9)))

    def _debt(self, wallets: list[int]) -> Iterator[Chapter]:
        """A chargeback of what is spent, then what comes in, and what may go out again."""
        wallet, other = wallets[:2]
        yield self._tier(wallet, debt_first=self._random.random() < 0.3)
        top_up = self._top_up(wallet, self._random.randint(50, 200))
        yield [top_up, self._under(Hold(wallet, other, 20))]
        yield [self._spend_about_all(wallet, other)]
        frozen = self._random.choice([0, 2, 4, 6])
        if frozen:
            yield [self._under(WalletChange(wallet, Kind.FREEZE, frozen))]
        yield [self._under(Refund(top_up.id, kind=Kind.REFUND)), self._under(Refund(top_up.id, kind=Kind.CHARGEBACK))]
        yield [self._under(WalletChange(wallet, Kind.UNFREEZE, 6))]
        for _ in range(self._random.randint(2, 6)):
            holds = [id for id, hold in self._model.open_holds().items() if hold.debit == wallet]
            yield [
                self._random.choice(
                    [
                        self._top_up(wallet, self._random.randint(1, 150)),
                        self._top_up(wallet, max(1, -self._model.state.wallets[wallet].available)),
                        self._pay(other, wallet, self._random.randint(1, 60)),
                        self._under(WalletChange(wallet, Kind.SET_OVERDRAFT_LIMIT, self._random.choice([0, 50, 300]))),
                        *(self._under(HoldChange(id, kind)) for id in holds[:1] for kind in (Kind.VOID, Kind.CAPTURE)),
                    ]
                )
            ]
            yield [self._spend_about_all(wallet, other)]

    def _windows_slide(self, wallets: list[int]) -> Iterator[Chapter]:
        """Limits of sliding windows and of days, while time passes in parts of them."""
        wallet, other = wallets[:2]
        limits: dict[str, Any] = {}
        for name, values in (
            ("window_count", (1, 2, 4)), ("hour_amount_minor", (20, 50)), ("device_attempts", (1, 3)),
            ("ip_attempts", (2, 4)), ("day_count", (4, 8)), ("day_amount_minor", (30, 80)),
        ):  # fmt: skip
            if self._random.random() < 0.35:
                limits[name] = self._random.choice(values)
        review = frozenset(rule for rule in Rule if self._random.random() < 0.2)
        yield [self._top_up(wallet, 500), *self._tier(wallet, review=review, **limits)]
        window_ms = self._random.choice([*(minutes * MINUTE_MS for minutes in self._windows.values()), HOUR_MS])
        for _ in range(self._random.randint(3, 9)):
            terms = {"device": self._random.choice(["phone", None]), "ip": self._random.choice(["10.0.0.1", None])}
            amount = self._random.randint(1, 15)
            yield [self._pay(wallet, other, amount, **terms) for _ in range(self._random.randint(1, 3))]
            yield self._random.choice([1, window_ms // 4, window_ms // 3, window_ms // 2, window_ms - 1, window_ms])

    def _many_devices(self, wallets: list[int]) -> Iterator[Chapter]:
        """A wallet remembers the devices that it used last."""
        wallet, other = wallets[:2]
        hours = self._random.choice([0, 1, 24])
        yield [
            self._top_up(wallet, 1000),
            *self._tier(wallet, new_device_amount_minor=10, new_device_hours=hours),
        ]
        devices = [f"device {n}" for n in range(self._random.choice([3, 16, 17, 20]))]
        yield [self._pay(wallet, other, 5, device=device) for device in devices]
        yield self._random.choice([1, hours * HOUR_MS, hours * HOUR_MS + 1])
        again = self._random.sample(devices, 3)
        yield [self._pay(wallet, other, self._random.choice([5, 11]), device=device) for device in again]
        yield [self._pay(wallet, other, 5, device=f"other {n}") for n in range(self._random.choice([0, 1, 3, 13]))]
        yield [self._pay(wallet, other, 11, device=device) for device in [*again, devices[0], devices[1], devices[-1]]]

    def _one_device(self, wallets: list[int]) -> Iterator[Chapter]:
        """Wallets that share a device, on several days."""
        yield [
            *(self._top_up(wallet, 100) for wallet in wallets),
            *self._tier(*wallets, device_wallets=self._random.choice([0, 1, 2])),
        ]
        for _ in range(self._random.randint(2, 4)):
            users = [self._random.choice(wallets) for _ in range(4)]
            yield [self._pay(user, wallets[user == wallets[0]], 1, device="shared") for user in users]
            yield self._random.choice([1, DAY_MS // 2, DAY_MS])

    def _closing(self, wallets: list[int]) -> Iterator[Chapter]:
        """A wallet without available money, but with holds, can be closed only after them."""
        wallet, other = wallets[:2]
        yield [self._top_up(wallet, 10)]
        available = self._model.state.wallets[wallet].available
        held = self._under(Hold(wallet, other, max(1, min(available, 2**53 - 1))))
        coming = self._under(Hold(other, wallet, 1))
        yield [held, coming]
        yield [self._under(WalletChange(wallet, Kind.CLOSE_WALLET))]
        yield [self._under(HoldChange(held.id, self._random.choice([Kind.VOID, Kind.CAPTURE])))]
        yield [self._under(Transfer(wallet, OUTSIDE, 2**53 - 1, kind=Kind.WITHDRAWAL, balancing=True))]
        yield [self._under(WalletChange(wallet, Kind.CLOSE_WALLET)), self._under(WalletChange(wallet, Kind.FREEZE, 2))]
        yield [self._under(HoldChange(coming.id, Kind.CAPTURE)), self._pay(other, wallet, 1)]

    def _late_fail(self, wallets: list[int]) -> Iterator[Chapter]:
        """A chain that did much when it fails: none of it counts, but the attempts."""
        wallet, other = wallets[:2]
        yield [
            self._top_up(wallet, 500),
            *self._tier(wallet, day_count=3, new_device_amount_minor=10, new_device_hours=0, device_attempts=6),
        ]
        held, paid = self._under(Hold(wallet, other, 5)), self._pay(wallet, other, 3, device="phone")
        yield [held, paid]
        state = self._model.state.wallets[wallet]
        chain = [
            self._pay(wallet, other, 5, device="tablet"),
            self._under(Hold(wallet, other, 6, device="tablet")),
            self._under(HoldChange(held.id, Kind.CAPTURE, 2, final=False)),
            self._under(Refund(paid.id, 1)),
            self._under(WalletChange(wallet, Kind.FREEZE, 4)),
            self._under(WalletChange(wallet, Kind.SET_OVERDRAFT_LIMIT, 77)),
        ]
        self._random.shuffle(chain)
        chain = chain[: self._random.randint(2, len(chain))]
        if self._random.random() < 0.7:
            chain.append(self._pay(wallet, other, max(state.available, 0) + 1000))
        last = len(chain) - 1
        linked = [
            Asked(asked.id, asked.request._replace(linked=at < last))  # type: ignore[call-arg, union-attr]
            for at, asked in enumerate(chain)
        ]
        yield linked + [self._pay(wallet, other, self._random.choice([5, 11]), device="tablet") for _ in range(3)]
        yield [self._under(Refund(paid.id)), self._under(HoldChange(held.id, Kind.CAPTURE))]
