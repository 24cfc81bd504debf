"""The oracle: the rules of a shard in plain Python, written from the documents and not from the Lua code.

It knows nothing of layouts, batches or servers. decide() gives what requests must be answered with. What a request is
answered with the first time is in model_decisions.py; this file has what is told again, forgotten, or linked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, assert_never
from uuid import UUID

from engine import Hold, HoldChange, HoldState, Kind, OpenWallet, Refund, SetTierLimits, Transfer, WalletChange
from engine.domain.status import RECORDED, Status
from tests.model_content import Expire, Request, content_of, difference
from tests.model_decisions import Decision, Decisions
from tests.model_state import Answer, Kept, ModelHold

GENERATIONS_KEPT = 2


class Asked(NamedTuple):
    id: UUID
    request: Request


class Model(Decisions):
    """A shard that starts empty. forgotten: the ids of which no answer is kept any more."""

    def __init__(self, *, ledger: bool = False) -> None:
        super().__init__(ledger=ledger)
        self.forgotten: set[UUID] = set()

    def decide(self, batch: Sequence[Asked], clock_ms: int) -> list[Answer]:
        """The answers to requests that come in this order. clock_ms: the server's, which may have been set back."""
        self._now_ms = max(clock_ms, self.state.time_ms)
        answers: list[Answer] = []
        for chain in _chains(batch):
            answers += self._chain(chain) if len(chain) > 1 or _linked(chain[-1]) else [self._alone(chain[0])]
        return answers

    def due(self, clock_ms: int) -> list[UUID]:
        """The open holds whose time is over, the first due first."""
        due = [
            (hold.expires_at_ms, hold_id.bytes)
            for hold_id, hold in self.open_holds().items()
            if hold.expires_at_ms is not None and hold.expires_at_ms <= clock_ms
        ]
        return [UUID(bytes=hold_id) for _, hold_id in sorted(due)]

    def open_holds(self) -> dict[UUID, ModelHold]:
        return {hold_id: hold for hold_id, hold in self.state.holds.items() if hold.state is HoldState.OPEN}

    def end_generation(self, clock_ms: int) -> None:
        """What is older than the generation that ends now is forgotten."""
        self.generation += 1
        state, oldest = self.state, self.generation - GENERATIONS_KEPT + 1
        self._now_ms = max(clock_ms, state.time_ms)
        self._journalled()
        self.forgotten |= {id for id, kept in state.kept.items() if kept.generation < oldest}
        state.kept = {id: kept for id, kept in state.kept.items() if kept.generation >= oldest}
        state.holds = {
            id: hold for id, hold in state.holds.items() if hold.state is HoldState.OPEN or hold.ended_in >= oldest
        }
        if not self.ledger:
            state.moved = {id: moved for id, moved in state.moved.items() if id in state.kept}
            state.refunded = {id: total for id, total in state.refunded.items() if total[1] >= oldest}

    def conservation(self) -> dict[str, int]:
        """Per currency the sum of what all wallets own: it must be zero."""
        sums: dict[str, int] = {}
        for wallet in self.state.wallets.values():
            sums[wallet.currency] = sums.get(wallet.currency, 0) + wallet.available + wallet.locked
        return sums

    # Chains and replays

    def _alone(self, asked: Asked) -> Answer:
        content = content_of(asked.request)
        if asked.id in self.state.kept:
            return self._again(asked.id, content)
        decision = self._decide(asked.id, asked.request, in_chain=False)
        answer = self._answer(self._sides(asked.request), decision)
        if answer.status in RECORDED and not (_may_pass(asked.request) and answer.status in MAY_PASS):
            self._keep(asked.id, content, answer)
        return answer

    def _again(self, id: UUID, content: dict[str, object]) -> Answer:
        kept = self.state.kept[id]
        other = difference(kept.content, content)
        return Answer(other, self.state.sequence) if other else kept.answer._replace(replayed=True)

    def _keep(self, id: UUID, content: dict[str, object], answer: Answer) -> None:
        self.state.kept[id] = Kept(content, answer, self.generation)

    def _chain(self, chain: list[Asked]) -> list[Answer]:
        """All of it happens, or none; attempts stay counted."""
        if _linked(chain[-1]):
            return [Answer("LINKED_FAILED", 0)] * (len(chain) - 1) + [Answer("LINKED_CHAIN_OPEN", 0)]
        members = tuple((asked.id, *content_of(asked.request).items()) for asked in chain)
        contents = [content_of(asked.request) | {"CHAIN": members} for asked in chain]
        known = [at for at, asked in enumerate(chain) if asked.id in self.state.kept]
        if len(known) == len(chain):
            return [self._again(asked.id, content) for asked, content in zip(chain, contents, strict=True)]
        if known:
            culprit = known[0]
            return self._failed(chain, culprit, self._again(chain[culprit].id, contents[culprit]))
        before, answers = self.state.copy(), []
        for at, asked in enumerate(chain):
            decision = self._decide(asked.id, asked.request, in_chain=True)
            if decision.status != Status.POSTED:
                sides = self._sides(asked.request)
                self.state = before
                return self._failed(chain, at, self._answer(sides, decision), contents)
            answers.append(self._answer(self._sides(asked.request), decision))
            self._keep(asked.id, contents[at], answers[at])
        return answers

    def _failed(
        self, chain: list[Asked], culprit: int, answer: Answer, contents: list[dict[str, object]] | None = None
    ) -> list[Answer]:
        """contents: given if a refusal that is kept makes the whole chain be kept."""
        answers = [self._answer(self._sides(asked.request), Decision("LINKED_FAILED")) for asked in chain]
        answers[culprit] = answer
        if contents and answer.status in RECORDED:
            for asked, content, one in zip(chain, contents, answers, strict=True):
                self._keep(asked.id, content, one)
        return answers

    def _answer(self, sides: tuple[int, int], decision: Decision) -> Answer:
        """The decision with what the debit and the credit wallet have now."""
        debit, credit = (self.state.wallets.get(side) for side in sides)
        return Answer(
            decision.status,
            self.state.sequence,
            False,
            debit.available if debit else 0,
            credit.available if credit and decision.status != Status.LIMIT_EXCEEDED else 0,
            decision.amount,
            decision.rule,
            decision.used,
            decision.retry_at_ms,
        )

    def _sides(self, request: Request) -> tuple[int, int]:
        """The ids of the debit and the credit wallet; 0 for none."""
        match request:
            case Transfer() | Hold():
                return request.debit, request.credit
            case HoldChange() | Expire():
                hold = self.state.holds.get(request.hold_id)
                return (hold.debit, hold.credit) if hold else (0, 0)
            case Refund():
                moved = self.state.moved.get(request.transfer_id)
                return (moved.credit, moved.debit) if moved else (0, 0)
            case OpenWallet() | WalletChange():
                return request.wallet_id, 0
            case SetTierLimits():
                return 0, 0
        assert_never(request)


MAY_PASS = {"DEBIT_FROZEN", "CREDIT_FROZEN", "EXCEEDS_HOLD", "BALANCE_OUT_OF_RANGE"}
"""What keeps a hold from being posted only for now: a capture or an approval that met it may be repeated."""


def _may_pass(request: Request) -> bool:
    return isinstance(request, HoldChange) and request.kind in (Kind.CAPTURE, Kind.APPROVE_HOLD)


def _linked(asked: Asked) -> bool:
    return bool(getattr(asked.request, "linked", False))


def _chains(batch: Sequence[Asked]) -> Iterator[list[Asked]]:
    """The requests as chains; most are of one."""
    chain: list[Asked] = []
    for asked in batch:
        chain.append(asked)
        if not _linked(asked):
            yield chain
            chain = []
    if chain:
        yield chain
