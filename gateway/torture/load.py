"""What the clients ask for: every kind of request, at random, on wallets that they share."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from random import Random
from typing import Any, NamedTuple
from uuid import UUID

from engine import (
    Hold,
    HoldChange,
    Kind,
    OpenWallet,
    Outcome,
    Refund,
    Rule,
    SetTierLimits,
    TierLimits,
    Transfer,
    WalletChange,
    external_wallet_id,
)
from engine.domain.status import ACCEPTED
from engine.domain.transfer import MOVEMENTS, Request
from engine.domain.wallet import FLAG_CREDIT_FROZEN, FLAG_DEBIT_FROZEN
from engine.requests import RequestPacker
from gateway.torture.recorder import Asked

CURRENCY = "USD"
OUTSIDE = external_wallet_id(CURRENCY)
MERCHANTS = range(1, 4)
PAYERS = range(11, 51)
TIERED = range(61, 71)
UNSTEADY = range(81, 91)
"""Wallets whose state changes: frozen, under other limits."""

WALLETS = (*MERCHANTS, *PAYERS, *TIERED, *UNSTEADY)
TIER, OTHER_TIER = 1, 2
REVIEWED_MINOR = 5_000
LIMITS = TierLimits(
    max_amount_minor=REVIEWED_MINOR, day_count=100_000, device_attempts=100_000, review=frozenset({Rule.MAX_AMOUNT})
)
FUNDS_MINOR = 1_000_000_000
ALL_OF_IT = 10**15

KEPT_HOLDS, KEPT_TRANSFERS, KEPT_ASKS = 200, 200, 200
SHORT_MS, LONG_MS = 500, 3_600_000

Call = Callable[..., Awaitable[Outcome | list[Outcome]]]


class Ask(NamedTuple):
    """One call of the engine. asked: the requests in it, in order. call: takes the engine and its keyword options."""

    asked: list[Asked]
    call: Call


def asked_of(request: Request) -> Asked:
    """A request with an id, as it is recorded."""
    match request:
        case Transfer():
            sides = request.debit, request.credit, request.amount_minor
            return Asked(_id_of(request), request.kind, *sides, may_be_less=request.balancing)
        case Hold():
            return Asked(_id_of(request), Kind.HOLD, request.debit, request.credit, request.amount_minor)
        case HoldChange() | Refund():
            return Asked(_id_of(request), request.kind)
        case OpenWallet():
            return Asked(_id_of(request), Kind.OPEN_WALLET, request.wallet_id)
        case WalletChange():
            return Asked(_id_of(request), request.kind, request.wallet_id)
        case SetTierLimits():
            return Asked(_id_of(request), Kind.SET_TIER_LIMITS)


def posting(requests: list[Request], *, linked: bool = False) -> Ask:
    """All of them in one call."""
    return Ask(
        [asked_of(request) for request in requests],
        lambda engine, **options: engine.post(requests, linked=linked, **options),
    )


def opening(new_id: Callable[[], UUID]) -> list[list[Request]]:
    """The lists that make the wallets, one after the other."""
    openings: list[Request] = [OpenWallet(OUTSIDE, 0, CURRENCY, 2, id=new_id())]
    openings += [OpenWallet(wallet, 1, CURRENCY, id=new_id()) for wallet in WALLETS]
    limits: list[Request] = [SetTierLimits(tier, LIMITS, id=new_id()) for tier in (TIER, OTHER_TIER)]
    tiers: list[Request] = [WalletChange(wallet, Kind.SET_TIER, TIER, id=new_id()) for wallet in TIERED]
    funds: list[Request] = [Transfer(OUTSIDE, wallet, FUNDS_MINOR, id=new_id(), kind=Kind.TOP_UP) for wallet in WALLETS]
    return [openings, limits, [*tiers, *funds]]


class Load:
    """Makes asks, and learns from their outcomes what can be asked next: holds to end, transfers to refund."""

    def __init__(self, chance: Random, packer: RequestPacker, first_new_wallet: int) -> None:
        """packer: for the ids that the engine derives. first_new_wallet: wallets from here on are this client's."""
        self._chance = chance
        self._packer = packer
        self._new_wallet = first_new_wallet
        self._holds: deque[UUID] = deque(maxlen=KEPT_HOLDS)
        self._pending: deque[UUID] = deque(maxlen=KEPT_HOLDS)
        self._reviews: deque[UUID] = deque(maxlen=KEPT_HOLDS)
        self._transfers: deque[UUID] = deque(maxlen=KEPT_TRANSFERS)
        self._top_ups: deque[UUID] = deque(maxlen=KEPT_TRANSFERS)
        self._opened: deque[int] = deque(maxlen=KEPT_HOLDS)
        self._asks: deque[Ask] = deque(maxlen=KEPT_ASKS)
        self._kinds: list[Callable[[], Ask | None]] = []
        self._weights: list[int] = []
        for weight, kind in (
            (22, self._transfer), (18, self._pay), (6, self._top_up), (5, self._withdraw), (10, self._hold),
            (8, self._capture), (3, self._void), (2, self._raise), (3, self._start_top_up),
            (3, self._start_withdrawal), (4, self._confirm), (1, self._fail), (5, self._refund), (1, self._chargeback),
            (5, self._chain), (3, self._list), (3, self._reviewed), (3, self._decide), (4, self._change_wallet),
            (1, self._open), (1, self._close), (1, self._limits), (6, self._again),
        ):  # fmt: skip
            self._kinds.append(kind)
            self._weights.append(weight)

    def next(self) -> Ask:
        """Something to ask; of what makes no sense yet, a transfer instead."""
        [make] = self._chance.choices(self._kinds, self._weights)
        ask = make() or self._transfer()
        if make != self._again:
            self._asks.append(ask)
        return ask

    def learn(self, ask: Ask, outcomes: Iterable[Outcome]) -> None:
        for asked, outcome in zip(ask.asked, outcomes, strict=True):
            if outcome.status not in ACCEPTED:
                continue
            if outcome.rule:
                self._reviews.append(asked.id)
            elif asked.kind == Kind.HOLD:
                (self._pending if OUTSIDE in (asked.debit, asked.credit) else self._holds).append(asked.id)
            elif asked.kind == Kind.TOP_UP:
                self._top_ups.append(asked.id)
            elif asked.kind in MOVEMENTS:
                self._transfers.append(asked.id)
            elif asked.kind == Kind.OPEN_WALLET:
                self._opened.append(asked.debit)

    # What kinds have in common

    def _id(self) -> UUID:
        return UUID(bytes=self._chance.randbytes(16), version=4)

    def _amount(self) -> int:
        """Mostly little, so that wallets last."""
        return self._chance.choice(
            [1, self._chance.randint(1, 500), self._chance.randint(1, 500), FUNDS_MINOR // 10**4]
        )

    def _payer(self) -> int:
        return self._chance.choice(UNSTEADY if self._chance.random() < 0.1 else PAYERS)

    def _pair(self) -> tuple[int, int]:
        debit = self._payer()
        credit = self._chance.choice(MERCHANTS) if self._chance.random() < 0.4 else self._payer()
        return (debit, credit) if debit != credit else (debit, MERCHANTS[0])

    def _details(self) -> dict[str, Any]:
        if self._chance.random() < 0.8:
            return {}
        return {"reference": f"r{self._chance.randrange(100)}", "metadata": {"n": self._chance.randrange(100)}}

    def _expiry_ms(self) -> int | None:
        return self._chance.choice([None, SHORT_MS, LONG_MS, LONG_MS])

    def _one_of(self, found: deque[UUID], *, ends: bool = False) -> UUID | None:
        """Something learnt; ends: not to be asked for again, mostly."""
        if not found:
            return None
        chosen = self._chance.choice(found)
        if ends and self._chance.random() < 0.9:
            found.remove(chosen)
        return chosen

    # Movements

    def _transfer(self) -> Ask:
        debit, credit = self._pair()
        id, amount, details = self._id(), self._amount(), self._details()
        terms: dict[str, Any] = {}
        if self._chance.random() < 0.05:
            amount, terms = ALL_OF_IT if debit in UNSTEADY else amount, {"balancing": True}
        elif self._chance.random() < 0.02:
            amount = ALL_OF_IT
        return Ask(
            [Asked(id, Kind.TRANSFER, debit, credit, amount, bool(terms))],
            lambda engine, **options: engine.transfer(debit, credit, amount, id=id, **details, **terms, **options),
        )

    def _pay(self) -> Ask:
        debit, merchant = self._payer(), self._chance.choice(MERCHANTS)
        id, amount, details = self._id(), self._amount(), self._details()
        return Ask(
            [Asked(id, Kind.PAYMENT, debit, merchant, amount)],
            lambda engine, **options: engine.pay(debit, merchant, amount, id=id, **details, **options),
        )

    def _top_up(self) -> Ask:
        wallet, id, amount = self._chance.choice(WALLETS), self._id(), self._amount()
        return Ask(
            [Asked(id, Kind.TOP_UP, OUTSIDE, wallet, amount)],
            lambda engine, **options: engine.top_up(wallet, amount, id=id, currency=CURRENCY, **options),
        )

    def _withdraw(self) -> Ask:
        wallet, id, amount = self._chance.choice(WALLETS), self._id(), self._amount()
        return Ask(
            [Asked(id, Kind.WITHDRAWAL, wallet, OUTSIDE, amount)],
            lambda engine, **options: engine.withdraw(wallet, amount, id=id, currency=CURRENCY, **options),
        )

    def _reviewed(self) -> Ask:
        """By wallets with a tier: some of them too much without an operator's word."""
        debit, credit = self._chance.choice(TIERED), self._chance.choice(PAYERS)
        id, amount = self._id(), self._chance.randint(1, 2 * REVIEWED_MINOR)
        device = f"device {self._chance.randrange(30)}"
        return Ask(
            [Asked(id, Kind.TRANSFER, debit, credit, amount)],
            lambda engine, **options: engine.transfer(debit, credit, amount, id=id, device=device, **options),
        )

    # Holds

    def _hold(self) -> Ask:
        debit, credit = self._pair()
        id, amount, expires, details = self._id(), self._amount(), self._expiry_ms(), self._details()
        return Ask(
            [Asked(id, Kind.HOLD, debit, credit, amount)],
            lambda engine, **options: engine.hold(
                debit, credit, amount, id=id, expires_in_ms=expires, **details, **options
            ),
        )

    def _capture(self) -> Ask | None:
        final = self._chance.random() < 0.6
        hold = self._one_of(self._holds, ends=final)
        if hold is None:
            return None
        id, amount = self._id(), None if final and self._chance.random() < 0.5 else self._chance.randint(1, 100)
        return Ask(
            [Asked(id, Kind.CAPTURE)],
            lambda engine, **options: engine.capture(hold, amount, final=final, id=id, **options),
        )

    def _void(self) -> Ask | None:
        hold = self._one_of(self._holds, ends=True)
        if hold is None:
            return None
        asked = Asked(self._packer.hold_id_of(hold, "void"), Kind.VOID)
        return Ask([asked], lambda engine, **options: engine.void(hold, **options))

    def _raise(self) -> Ask | None:
        hold, id, amount = self._one_of(self._holds), self._id(), self._chance.randint(1, 100)
        if hold is None:
            return None
        return Ask(
            [Asked(id, Kind.RAISE_HOLD)],
            lambda engine, **options: engine.raise_hold(hold, amount, id=id, **options),
        )

    # Two steps, and operators

    def _start_top_up(self) -> Ask:
        wallet, id, amount, expires = self._payer(), self._id(), self._amount(), self._expiry_ms()
        return Ask(
            [Asked(id, Kind.HOLD, OUTSIDE, wallet, amount)],
            lambda engine, **options: engine.start_top_up(
                wallet, amount, expires_in_ms=expires, id=id, currency=CURRENCY, **options
            ),
        )

    def _start_withdrawal(self) -> Ask:
        wallet, id, amount, expires = self._payer(), self._id(), self._amount(), self._expiry_ms()
        return Ask(
            [Asked(id, Kind.HOLD, wallet, OUTSIDE, amount)],
            lambda engine, **options: engine.start_withdrawal(
                wallet, amount, expires_in_ms=expires, id=id, currency=CURRENCY, **options
            ),
        )

    def _confirm(self) -> Ask | None:
        pending = self._one_of(self._pending, ends=True)
        if pending is None:
            return None
        asked = Asked(self._packer.hold_id_of(pending, "capture"), Kind.CAPTURE)
        return Ask([asked], lambda engine, **options: engine.confirm(pending, "psp", **options))

    def _fail(self) -> Ask | None:
        pending = self._one_of(self._pending, ends=True)
        if pending is None:
            return None
        asked = Asked(self._packer.hold_id_of(pending, "void"), Kind.VOID)
        return Ask([asked], lambda engine, **options: engine.fail(pending, "declined", **options))

    def _decide(self) -> Ask | None:
        """An operator approves or rejects what is under review."""
        review = self._one_of(self._reviews, ends=True)
        if review is None:
            return None
        if self._chance.random() < 0.6:
            asked = Asked(self._packer.hold_id_of(review, "approve"), Kind.APPROVE_HOLD)
            return Ask([asked], lambda engine, **options: engine.approve(review, **options))
        asked = Asked(self._packer.hold_id_of(review, "void"), Kind.VOID)
        return Ask([asked], lambda engine, **options: engine.reject(review, **options))

    # Giving back

    def _refund(self) -> Ask | None:
        transfer, id = self._one_of(self._transfers), self._id()
        if transfer is None:
            return None
        amount = None if self._chance.random() < 0.3 else self._chance.randint(1, 50)
        return Ask(
            [Asked(id, Kind.REFUND)],
            lambda engine, **options: engine.refund(transfer, amount, id=id, **options),
        )

    def _chargeback(self) -> Ask | None:
        top_up, id = self._one_of(self._top_ups, ends=True), self._id()
        if top_up is None:
            return None
        return Ask([Asked(id, Kind.CHARGEBACK)], lambda engine, **options: engine.chargeback(top_up, id=id, **options))

    # Several at once

    def _chain(self) -> Ask:
        """A payment, its fee, and sometimes a hold that is captured in part; one in ten fails at its end."""
        debit, credit = self._pair()
        id, hold = self._id(), self._id()
        chain: list[Request] = [
            Transfer(debit, credit, self._amount(), id=id, kind=Kind.PAYMENT),
            Transfer(debit, MERCHANTS[1], 1, id=self._id()),
        ]
        if self._chance.random() < 0.4:
            chain += [
                Hold(debit, MERCHANTS[2], 50, id=hold, purpose=Kind.PAYMENT),
                HoldChange(hold, Kind.CAPTURE, 20, final=False, id=self._id()),
            ]
        if self._chance.random() < 0.2:
            chain.append(Refund(id, 1, id=self._id()))
        if self._chance.random() < 0.1:
            chain.append(Transfer(debit, credit, ALL_OF_IT, id=self._id()))
        return posting(chain, linked=True)

    def _list(self) -> Ask:
        requests: list[Request] = []
        for _ in range(self._chance.randint(2, 60)):
            debit, credit = self._pair()
            requests.append(Transfer(debit, credit, self._amount(), id=self._id(), kind=Kind.PAYMENT))
        return posting(requests)

    # Wallets and tiers

    def _change_wallet(self) -> Ask:
        wallet, id = self._chance.choice(UNSTEADY), self._id()
        kind = self._chance.choice([Kind.FREEZE, Kind.UNFREEZE, Kind.UNFREEZE, Kind.SET_OVERDRAFT_LIMIT, Kind.SET_TIER])
        value = {
            Kind.SET_OVERDRAFT_LIMIT: self._chance.choice([0, 1_000_000]),
            Kind.SET_TIER: self._chance.choice([0, OTHER_TIER]),
        }.get(kind, self._chance.choice([FLAG_DEBIT_FROZEN, FLAG_DEBIT_FROZEN | FLAG_CREDIT_FROZEN]))
        return posting([WalletChange(wallet, kind, value, id=id)])

    def _open(self) -> Ask:
        self._new_wallet += 1
        return posting([OpenWallet(self._new_wallet, 1, CURRENCY, id=self._id())])

    def _close(self) -> Ask | None:
        if not self._opened:
            return None
        return posting([WalletChange(self._opened.popleft(), Kind.CLOSE_WALLET, id=self._id())])

    def _limits(self) -> Ask:
        limits = LIMITS._replace(day_count=self._chance.choice([50_000, 100_000]))
        return posting([SetTierLimits(OTHER_TIER, limits, id=self._id())])

    def _again(self) -> Ask | None:
        """What was asked before: it must be answered as then."""
        return self._chance.choice(self._asks) if self._asks else None


def _id_of(request: Request) -> UUID:
    assert request.id is not None  # the load gives each one
    return request.id
