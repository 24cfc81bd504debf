"""The oracle: the rules of a shard in plain Python dicts, written from the design and not from the Lua code.

It knows nothing of layouts, batches or servers. decide() gives what a request must be answered with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from engine import OpenWallet, Transfer

LIMIT = 2**53 - 1


class Answer(NamedTuple):
    status: str
    replayed: bool
    debit_available_minor: int
    credit_available_minor: int


@dataclass
class ModelWallet:
    currency: str
    overdraft_limit: int
    external: bool
    available: int = 0
    version: int = 1


@dataclass
class Model:
    """wallets by id; answers by key: what was asked and answered under it."""

    wallets: dict[int, ModelWallet] = field(default_factory=dict)
    answers: dict[str, tuple[Transfer | OpenWallet, Answer]] = field(default_factory=dict)
    sequence: int = 0

    def decide(self, request: Transfer | OpenWallet) -> Answer:
        key = _key_of(request)
        if key in self.answers:
            asked, answer = self.answers[key]
            difference = _difference(asked, request)
            if difference:
                return Answer(f"EXISTS_WITH_DIFFERENT_{difference}", False, 0, 0)
            return answer._replace(replayed=True)
        status = self._open(request) if isinstance(request, OpenWallet) else self._move(request)
        answer = Answer(status, False, *self._after(request))
        if not status.endswith("NOT_FOUND"):
            self.answers[key] = (request, answer)
        return answer

    def conservation(self) -> dict[str, int]:
        """Per currency the sum of all balances: it must be zero."""
        sums: dict[str, int] = {}
        for wallet in self.wallets.values():
            sums[wallet.currency] = sums.get(wallet.currency, 0) + wallet.available
        return sums

    def _open(self, request: OpenWallet) -> str:
        if request.wallet_id in self.wallets:
            return "WALLET_EXISTS"
        external = request.wallet_id < 0
        self.wallets[request.wallet_id] = ModelWallet(request.currency, request.overdraft_limit_minor, external)
        self.sequence += 1
        return "POSTED"

    def _move(self, request: Transfer) -> str:
        if request.debit == request.credit:
            return "SAME_WALLET"
        debit, credit = self.wallets.get(request.debit), self.wallets.get(request.credit)
        if debit is None:
            return "DEBIT_WALLET_NOT_FOUND"
        if credit is None:
            return "CREDIT_WALLET_NOT_FOUND"
        if debit.currency != credit.currency or request.currency not in (None, debit.currency):
            return "CURRENCY_MISMATCH"
        if not debit.external and request.amount_minor > debit.available + debit.overdraft_limit:
            return "INSUFFICIENT_FUNDS"
        if debit.available - request.amount_minor < -LIMIT or credit.available + request.amount_minor > LIMIT:
            return "BALANCE_OUT_OF_RANGE"
        for wallet, change in ((debit, -request.amount_minor), (credit, request.amount_minor)):
            wallet.available += change
            wallet.version += 1
        self.sequence += 1
        return "POSTED"

    def _after(self, request: Transfer | OpenWallet) -> tuple[int, int]:
        sides = (request.wallet_id, 0) if isinstance(request, OpenWallet) else (request.debit, request.credit)
        debit, credit = (self.wallets.get(side) for side in sides)
        return (debit.available if debit else 0, credit.available if credit else 0)


def _key_of(request: Transfer | OpenWallet) -> str:
    if isinstance(request, OpenWallet) and request.key is None:
        return f"opening {request.wallet_id}"
    assert request.key is not None
    return f"key {request.key}"


def _difference(asked: Transfer | OpenWallet, request: Transfer | OpenWallet) -> str | None:
    """The first field that differs, in the order in which differences are named."""
    if isinstance(asked, OpenWallet) and isinstance(request, OpenWallet):
        fields = [
            ("KIND", asked.wallet_id < 0, request.wallet_id < 0),
            ("WALLET", asked.wallet_id, request.wallet_id),
            ("OWNER", asked.owner_id, request.owner_id),
            ("OVERDRAFT_LIMIT", asked.overdraft_limit_minor, request.overdraft_limit_minor),
            ("CURRENCY", asked.currency, request.currency),
        ]
    elif isinstance(asked, Transfer) and isinstance(request, Transfer):
        fields = [
            ("KIND", asked.kind, request.kind),
            ("DEBIT", asked.debit, request.debit),
            ("CREDIT", asked.credit, request.credit),
            ("AMOUNT", asked.amount_minor, request.amount_minor),
            ("CURRENCY", asked.currency, request.currency),
            ("DETAILS", (asked.reference, asked.metadata), (request.reference, request.metadata)),
        ]
    else:
        return "KIND"
    return next((name for name, one, other in fields if one != other), None)
