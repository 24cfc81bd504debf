"""Requests at random, with an eye on what the oracle knows: most make sense, many meet, some are nonsense."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any
from uuid import UUID

from engine import (
    Hold,
    HoldChange,
    HoldState,
    Kind,
    OpenWallet,
    Refund,
    Rule,
    SetTierLimits,
    TierLimits,
    Transfer,
    WalletChange,
    external_wallet_id,
)
from tests.model import Asked, Model
from tests.model_content import Request

CURRENCIES = ["USD", "EUR", "POINTS"]
OUTSIDE = {currency: external_wallet_id(currency) for currency in CURRENCIES}
EXPONENTS = {"USD": 2, "EUR": 2, "POINTS": 0}
USERS = [1, 2, 3, 4, 5, 2**63 - 1]
EDGES = [2**53 - 1, 2**53 - 2, 2**52]
TIERS = [1, 2, 3]
DEVICES = ["phone", "tablet", "laptop"]
MANY_DEVICES = [f"device {n}" for n in range(20)]
IPS = ["10.0.0.1", "10.0.0.2"]
PURPOSES = [Kind.TRANSFER, Kind.TOP_UP, Kind.PAYMENT, Kind.WITHDRAWAL]


class Traffic:
    """Makes requests under ids of its own. edges: with amounts near 2^53 among them."""

    def __init__(self, model: Model, new_id: Callable[[], UUID], random: Random) -> None:
        self.model = model
        self.asked: list[Asked] = []
        self.window_minutes = random.choice([1, 60])
        self.attempts_window_minutes = random.choice([1, 60, 1440])
        self._new_id = new_id
        self._edges = random.random() < 0.3
        self._random = random

    def begin(self) -> list[Asked]:
        """External wallets, some users' wallets, money in them, and mostly limits on what they may do."""
        openings: list[Request] = [
            OpenWallet(OUTSIDE[currency], 0, currency, EXPONENTS[currency]) for currency in CURRENCIES
        ]
        users = USERS[: self._random.randint(2, len(USERS))]
        openings += [OpenWallet(user, 0, "USD") for user in users]
        money = [Transfer(OUTSIDE["USD"], user, self._random.randint(1, 2000), kind=Kind.TOP_UP) for user in users]
        tiers: list[Request] = []
        if self._random.random() < 0.8:
            tiers += [self._tier_limits(tier) for tier in TIERS]
            tiers += [WalletChange(user, Kind.SET_TIER, self._random.choice([0, *TIERS])) for user in users]
        return [self._under(self._new_id(), request) for request in [*openings, *money, *tiers]]

    def batch(self, random: Random, size: int) -> list[Asked]:
        """size requests; about a fifth of them under ids that were used before."""
        self._random = random
        return [self._again() if random.random() < 0.2 and self.asked else self._new() for _ in range(size)]

    def chain(self, random: Random, size: int) -> list[Asked]:
        """One chain of requests that may refer to each other; rarely it is left open."""
        self._random = random
        chain: dict[UUID, Request] = {}
        while len(chain) < size:
            asked = self._again() if random.random() < 0.05 and self.asked else self._new(earlier=chain)
            if hasattr(asked.request, "linked"):
                chain[asked.id] = asked.request
        last = len(chain) - 1
        ends_open = random.random() < 0.05
        return self._remember(
            [
                Asked(id, request._replace(linked=at < last or ends_open))  # type: ignore[call-arg]
                for at, (id, request) in enumerate(chain.items())
            ]
        )

    def chain_again(self, random: Random) -> list[Asked]:
        """A chain that was asked before, or nearly."""
        self._random = random
        starts = [at for at, asked in enumerate(self.asked) if getattr(asked.request, "linked", False)]
        if not starts:
            return []
        at = start = random.choice(starts)
        while start > 0 and getattr(self.asked[start - 1].request, "linked", False):
            start -= 1
        while at < len(self.asked) - 1 and getattr(self.asked[at].request, "linked", False):
            at += 1
        chain = self.asked[start : at + 1]
        if len({asked.id for asked in chain}) < len(chain):
            return []
        if random.random() < 0.2:
            chain = chain[1:]
        if random.random() < 0.2 and chain:
            changed = random.randrange(len(chain))
            chain[changed] = Asked(chain[changed].id, self._other(chain[changed].request))
        return chain

    # One request

    def _again(self) -> Asked:
        """Under an id that was used: the same, or something else. What is forgotten is not asked again."""
        id, request = self._random.choice(self.asked[-60:])
        if id in self.model.forgotten:
            return self._new()
        if hasattr(request, "linked") and self._random.random() < 0.9:
            request = request._replace(linked=False)  # type: ignore[call-arg]
        chance = self._random.random()
        if chance < 0.65:
            return Asked(id, request)
        return Asked(id, self._other(request) if chance < 0.9 else self._new().request)

    def _other(self, request: Request) -> Request:
        """The request with another value in one of its fields."""
        changes: dict[str, Callable[[], Any]] = {
            "debit": self._wallet,
            "credit": self._wallet,
            "amount_minor": self._amount,
            "kind": lambda: self._random.choice(PURPOSES) if isinstance(request, Transfer) else request.kind,  # type: ignore[union-attr]
            "currency": lambda: self._random.choice(CURRENCIES) if not _external(request) else request.currency,  # type: ignore[union-attr]
            "reference": lambda: self._random.choice([None, "r1", "r2"]),
            "balancing": lambda: self._random.random() < 0.5,
            "expect_version": lambda: self._random.randint(1, 9),
            "min_available_after_minor": lambda: self._random.randint(-9, 9),
            "device": lambda: self._random.choice([None, *DEVICES]),
            "ip": lambda: self._random.choice([None, *IPS]),
            "expires_in_ms": lambda: self._random.randint(1, 9),
            "purpose": lambda: self._random.choice(PURPOSES),
            "final": lambda: self._random.random() < 0.5,
            "hold_id": self._hold_id,
            "transfer_id": self._transfer_id,
            "wallet_id": lambda: self._random.choice(USERS) if not _external(request) else request.wallet_id,  # type: ignore[union-attr]
            "owner_id": lambda: self._random.randint(0, 3),
            "overdraft_limit_minor": lambda: self._random.randint(0, 8),
        }
        fields = [name for name in request._fields if name in changes]
        if isinstance(request, HoldChange) and request.kind is not Kind.CAPTURE:
            fields = ["hold_id"]
        if not fields:
            return request
        name = self._random.choice(fields)
        return request._replace(**{name: changes[name]()})  # type: ignore[arg-type]

    def _new(self, earlier: Mapping[UUID, Request] | None = None) -> Asked:
        """earlier: the same chain's, to refer to."""
        make = self._random.choices(
            [self._transfer, self._hold, self._hold_change, self._refund, self._wallet_change, self._opening,
             self._tier_limits],
            [32, 14, 20, 12, 7, 3, 2],
        )[0]  # fmt: skip
        request = make()
        if earlier and self._random.random() < 0.5:
            request = self._to_one_of(request, earlier)
        id = self._new_id()
        if isinstance(request, Hold) and self._random.random() < 0.1 and self.model.forgotten:
            id = self._random.choice([*self.model.open_holds(), id])  # perhaps one that is open but forgotten
        return self._under(id, request)

    def _to_one_of(self, request: Request, earlier: Mapping[UUID, Request]) -> Request:
        """The request with a reference to one of the earlier ones, if it can have one."""
        wanted: tuple[type, ...]
        match request:
            case HoldChange():
                field, wanted = "hold_id", (Hold,)
            case Refund():
                field, wanted = "transfer_id", (Transfer, HoldChange)
            case _:
                return request
        fitting = [id for id, one in earlier.items() if isinstance(one, wanted)]
        return request._replace(**{field: self._random.choice(fitting)}) if fitting else request  # type: ignore[arg-type]

    def _under(self, id: UUID, request: Request) -> Asked:
        return self._remember([Asked(id, request)])[0]

    def _remember(self, asked: list[Asked]) -> list[Asked]:
        self.asked += asked
        return asked

    def _wallet(self) -> int:
        """A user's wallet, rarely one that is not open, sometimes an external one."""
        if self._random.random() < 0.1:
            return self._random.choice([OUTSIDE["USD"], *OUTSIDE.values()])
        known = [wallet for wallet in self.model.state.wallets if wallet > 0]
        return self._random.choice(USERS if self._random.random() < 0.05 or not known else known)

    def _pair(self) -> tuple[int, int]:
        """A debit and a credit wallet, mostly of one currency."""
        debit, wallets = self._wallet(), self.model.state.wallets
        fitting = [
            wallet
            for wallet in wallets
            if wallet != debit and debit in wallets and wallets[wallet].currency == wallets[debit].currency
        ]
        if fitting and self._random.random() < 0.93:
            return debit, self._random.choice(fitting)
        return debit, self._wallet()

    def _amount(self) -> int:
        if self._edges and self._random.random() < 0.15:
            return self._random.choice(EDGES)
        return self._random.choice([1, self._random.randint(1, 40), self._random.randint(1, 400)])

    def _terms(self, debit: int, amount: int) -> dict[str, Any]:
        terms: dict[str, Any] = {}
        wallet = self.model.state.wallets.get(debit)
        if wallet and self._random.random() < 0.1:
            terms["expect_version"] = wallet.version + self._random.choice([0, 0, 1])
        if wallet and self._random.random() < 0.1:
            after = max(wallet.available - amount, -EDGES[0])
            terms["min_available_after_minor"] = self._random.choice([0, after, after + 1])
        if self._random.random() < 0.6:
            terms["device"] = self._random.choice(DEVICES if self._random.random() < 0.8 else MANY_DEVICES)
        if self._random.random() < 0.4:
            terms["ip"] = self._random.choice(IPS)
        if wallet and self._random.random() < 0.1:
            terms["currency"] = self._random.choice([wallet.currency, *CURRENCIES])
        if self._random.random() < 0.15:
            terms["reference"] = self._random.choice(["r1", "r2"])
        return terms

    def _transfer(self) -> Request:
        debit, credit = self._pair()
        kind, balancing = self._random.choice(PURPOSES), self._random.random() < 0.1
        amount = self._amount()
        terms = self._terms(debit, amount) if self._random.random() < 0.6 else {}
        return Transfer(debit, credit, amount, kind=kind, balancing=balancing, **terms)

    def _hold(self) -> Request:
        debit, credit = self._pair()
        expires_in_ms = self._random.choice([None, 1, 60_000, 3_600_000, 86_400_000])
        purpose, amount = self._random.choice(PURPOSES), self._amount()
        terms = self._terms(debit, amount)
        return Hold(debit, credit, amount, purpose=purpose, expires_in_ms=expires_in_ms, **terms)

    def _hold_id(self) -> UUID:
        """Of an open hold; else of one that ended, or of nothing."""
        holds = self.model.state.holds
        open_ones = [id for id, hold in holds.items() if hold.state is HoldState.OPEN]
        if open_ones and self._random.random() < 0.85:
            return self._random.choice(open_ones)
        return self._random.choice([*holds, *(asked.id for asked in self.asked[-5:]), UUID(int=1)])

    def _hold_change(self) -> Request:
        hold_id, state = self._hold_id(), self.model.state
        kind = self._random.choices([Kind.CAPTURE, Kind.RAISE_HOLD, Kind.VOID, Kind.APPROVE_HOLD], [10, 4, 3, 3])[0]
        hold, amount = state.holds.get(hold_id), None
        if kind is Kind.CAPTURE and self._random.random() < 0.7:
            amount = self._random.randint(1, hold.remaining) if hold and hold.remaining else self._amount()
            amount += self._random.random() < 0.1
        elif kind is Kind.RAISE_HOLD:
            amount = self._amount()
        return HoldChange(hold_id, kind, amount and min(amount, EDGES[0]), self._random.random() < 0.6)

    def _transfer_id(self) -> UUID:
        moved = self.model.state.moved
        if moved and self._random.random() < 0.9:
            return self._random.choice(list(moved)[-30:])
        return self._random.choice([*(asked.id for asked in self.asked[-9:]), UUID(int=2)])

    def _refund(self) -> Request:
        transfer_id, moved = self._transfer_id(), self.model.state.moved
        original = moved.get(transfer_id)
        kind = Kind.REFUND
        if self._random.random() < (0.8 if original and original.kind is Kind.TOP_UP else 0.05):
            kind = Kind.CHARGEBACK
        amount = None
        if self._random.random() < 0.7:
            amount = self._random.randint(1, original.amount) if original else self._amount()
        return Refund(transfer_id, amount, kind=kind)

    def _wallet_change(self) -> Request:
        kind = self._random.choices(
            [Kind.FREEZE, Kind.UNFREEZE, Kind.CLOSE_WALLET, Kind.SET_OVERDRAFT_LIMIT, Kind.SET_TIER], [2, 6, 2, 4, 6]
        )[0]
        wallet = self._wallet_to_change(kind)
        value = {
            Kind.CLOSE_WALLET: 0,
            Kind.SET_OVERDRAFT_LIMIT: self._random.choice([0, 0, 50, 2**53 - 1]),
            Kind.SET_TIER: self._random.choice([0, *TIERS, *TIERS]),
        }.get(kind, self._random.choice([2, 4, 6]))
        return WalletChange(wallet, kind, value)

    def _wallet_to_change(self, kind: Kind) -> int:
        wallets = self.model.state.wallets
        empty = [id for id, wallet in wallets.items() if id > 0 and wallet.available == wallet.locked == 0]
        if kind is Kind.CLOSE_WALLET and empty and self._random.random() < 0.7:
            return self._random.choice(empty)
        return self._random.choice(USERS if self._random.random() < 0.1 else [id for id in wallets if id > 0] or USERS)

    def _opening(self) -> Request:
        if self._random.random() < 0.2:
            currency = self._random.choice(CURRENCIES)
            return OpenWallet(OUTSIDE[currency], 0, currency, self._random.randint(0, 8))
        return OpenWallet(
            self._random.choice(USERS),
            self._random.randint(0, 1),
            self._random.choice(["USD", "USD", "USD", *CURRENCIES]),
            self._random.choice([0, 0, 10, 2**53 - 1]),
        )

    def _tier_limits(self, tier: int | None = None) -> Request:
        """A tier with some limits, low enough to be met."""

        strict = self._random.choice([0.05, 0.2, 0.4])

        def some(*limits: int) -> int | None:
            return self._random.choice(limits) if self._random.random() < strict else None

        limits = TierLimits(
            max_amount_minor=some(30, 200),
            day_amount_minor=some(0, 100, 500),
            day_count=some(0, 3, 10),
            window_count=some(1, 3, 5),
            window_minutes=self.window_minutes,
            hour_amount_minor=some(50, 300),
            device_attempts=some(0, 2, 5),
            ip_attempts=some(2, 5),
            attempts_window_minutes=self.attempts_window_minutes,
            device_wallets=some(0, 1, 2, 16),
            new_device_amount_minor=some(0, 10),
            new_device_hours=self._random.choice([0, 1, 24]),
            review=frozenset(rule for rule in Rule if self._random.random() < 0.4),
            debt_first=self._random.random() < 0.5,
        )
        return SetTierLimits(tier or self._random.choice(TIERS), limits)


def _external(request: Request) -> bool:
    return isinstance(request, OpenWallet) and request.wallet_id < 0
