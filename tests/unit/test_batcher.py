"""The batcher against a transport that the test plays: when an outcome is known, and the order of sending again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from engine.batcher import Batcher, NoReply, NotApplied, ServerClock
from engine.domain.status import NUMBER_OF, Status
from engine.errors import CorruptRecord, OutcomeUnknown, Overloaded, ShardNotOpen, Unavailable
from engine.wire import ANSWER, MAX_BATCH, REPLY_HEADER, REQUEST

Scenario = Callable[["Server"], Awaitable[None]]


def record(number: int) -> bytes:
    return number.to_bytes(16, "big") + bytes(REQUEST.size - 16)


class Server:
    """Takes batches and leaves them to the test. Its clock is the loop's, in ms."""

    def __init__(self, **settings: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.flights: list[asyncio.Future[bytes]] = []
        self.sent: list[list[int]] = []
        self.attached: list[tuple[bytes, bytes]] = []
        self.not_after_ms: list[int] = []
        self.batcher = Batcher(self._take, ServerClock(), **settings)

    def _take(self, records: bytes, details: bytes, attachments: bytes, not_after_ms: int) -> asyncio.Future[bytes]:
        ids = range(0, len(records), REQUEST.size)
        self.attached.append((details, attachments))
        self.sent.append([int.from_bytes(records[at : at + 16], "big") for at in ids])
        self.not_after_ms.append(not_after_ms)
        self.flights.append(self.loop.create_future())
        return self.flights[-1]

    def call(
        self, *numbers: int, timeout_s: float = 5.0, details: bytes = b"", attachments: bytes = b""
    ) -> asyncio.Future[bytes]:
        """One call with a request under each number."""
        records = b"".join(map(record, numbers))
        return self.batcher.submit(records, details, attachments, len(numbers), self.loop.time() + timeout_s)

    def answer(self, flight: int, *statuses: Status, replayed: int = 0, server_ms: float | None = None) -> None:
        now = self.loop.time() * 1000 if server_ms is None else server_ms
        statuses = statuses or (Status.POSTED,) * len(self.sent[flight])
        answers = [ANSWER.struct.pack(NUMBER_OF[status], 0, 1, 0, 0, 0, replayed) for status in statuses]
        self.flights[flight].set_result(REPLY_HEADER.struct.pack(now) + b"".join(answers))

    async def sent_batches(self, count: int) -> None:
        async with asyncio.timeout(2):
            while len(self.sent) < count:
                await asyncio.sleep(0.001)


def status_of(answers: bytes) -> int:
    return answers[0]


@pytest.fixture(params=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Any:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if request.param == "uvloop" else None) as running:
        yield running


def test_a_lost_call_is_not_settled_by_an_answer_that_nobody_keeps(runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        server = Server()
        call = server.call(1, timeout_s=0.3)
        await server.sent_batches(1)
        server.flights[0].set_exception(NoReply())
        await server.sent_batches(2)
        server.answer(1, Status.LEDGER_BACKLOG)
        await server.sent_batches(3)
        server.answer(2, Status.CREDIT_WALLET_NOT_FOUND)
        with pytest.raises(OutcomeUnknown):
            await call

    runner.run(scenario())


@pytest.mark.parametrize(
    ("status", "replayed", "late"),
    [
        (Status.POSTED, 1, False),
        (Status.UNDER_REVIEW, 0, False),
        (Status.INSUFFICIENT_FUNDS, 1, False),
        (Status.EXISTS_WITH_DIFFERENT_AMOUNT, 0, False),
        (Status.LEDGER_BACKLOG, 0, True),
    ],
)
def test_a_lost_call_is_settled_by_a_kept_answer_or_a_late_one(
    runner: asyncio.Runner, status: Status, replayed: int, late: bool
) -> None:
    async def scenario() -> None:
        server = Server()
        call = server.call(1)
        await server.sent_batches(1)
        server.flights[0].set_exception(NoReply())
        await server.sent_batches(2)
        server_ms = server.not_after_ms[0] + 1 if late else None
        server.answer(1, status, replayed=replayed, server_ms=server_ms)
        assert status_of(await call) == NUMBER_OF[status]

    runner.run(scenario())


def test_a_lost_call_that_is_refused_is_asked_again_until_the_refusal_is_a_kept_one(runner: asyncio.Runner) -> None:
    """Of some kinds a refusal is not kept, and the lost flight could still be decided otherwise."""

    async def scenario() -> None:
        server = Server()
        call = server.call(1)
        await server.sent_batches(1)
        server.flights[0].set_exception(NoReply())
        await server.sent_batches(2)
        server.answer(1, Status.DEBIT_FROZEN)
        await server.sent_batches(3)
        assert not call.done()
        server.answer(2, Status.POSTED)
        assert status_of(await call) == NUMBER_OF[Status.POSTED]

    runner.run(scenario())


@pytest.mark.parametrize("then", ["nothing", "refused", "closed", "corrupt"])
def test_a_call_that_was_lost_once_ends_unknown(runner: asyncio.Runner, then: str) -> None:
    async def scenario() -> None:
        server = Server()
        call = server.call(1, timeout_s=0.2)
        await server.sent_batches(1)
        server.flights[0].set_exception(NoReply())
        await server.sent_batches(2)
        if then == "refused":
            server.flights[1].set_exception(NotApplied(Unavailable("away")))
        elif then == "closed":
            server.answer(1, Status.SHARD_NOT_OPEN)
        elif then == "corrupt":
            server.flights[1].set_exception(CorruptRecord("wallet"))
        with pytest.raises(OutcomeUnknown) as caught:
            await call
        assert [transfer_id.int for transfer_id in caught.value.transfer_ids] == [1]

    runner.run(scenario())


def test_a_call_that_was_only_refused_ends_unavailable(runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        server = Server()
        call = server.call(1, timeout_s=0.1)
        refused = 0
        while not call.done():
            if len(server.flights) > refused:
                server.flights[refused].set_exception(NotApplied(ShardNotOpen("no library")))
                refused += 1
            await asyncio.sleep(0)
        assert refused > 1
        with pytest.raises(ShardNotOpen):
            await call

    runner.run(scenario())


def test_lost_flights_are_sent_again_in_the_order_of_the_calls(runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        server = Server()
        calls = [server.call(1)]
        await server.sent_batches(1)
        calls.append(server.call(2))
        await server.sent_batches(2)
        calls.append(server.call(3))
        server.flights[0].set_exception(NoReply())
        await asyncio.sleep(0.05)
        assert len(server.sent) == 2, "nothing leaves while another flight is out"
        server.flights[1].set_exception(NoReply())
        await server.sent_batches(3)
        assert server.sent[2] == [1, 2, 3]
        server.answer(2)
        await asyncio.gather(*calls)

    runner.run(scenario())


def test_a_batch_carries_its_shortest_deadline(runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        server = Server()
        now = server.loop.time()
        calls = [server.call(number, timeout_s=timeout_s) for number, timeout_s in ((1, 5.0), (2, 0.5), (3, 9.0))]
        await server.sent_batches(1)
        assert server.not_after_ms[0] <= (now + 0.6) * 1000
        server.answer(0)
        await asyncio.gather(*calls)

    runner.run(scenario())


def test_deadlines_of_no_time_at_all(runner: asyncio.Runner) -> None:
    """A timer that is due at once has no when() on uvloop."""

    async def scenario() -> None:
        server = Server()
        calls = [server.call(number, timeout_s=number % 3 * 1e-6) for number in range(200)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(result) for result in results} <= {OutcomeUnknown, Unavailable}

    runner.run(scenario())


def test_a_reply_that_is_none_leaves_the_outcome_unknown(runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        for reply in (b"", b"x" * 7, REPLY_HEADER.struct.pack(1), bytes(100)):
            server = Server()
            call = server.call(1)
            await server.sent_batches(1)
            server.flights[0].set_result(reply)
            with pytest.raises(OutcomeUnknown):
                await call

    runner.run(scenario())


def test_ended_calls_take_no_room(runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        server = Server(max_queued=MAX_BATCH, depth=1)
        first = server.call(0)
        await server.sent_batches(1)
        for round_ in range(3):
            calls = [server.call(number, timeout_s=0.02) for number in range(MAX_BATCH)]
            with pytest.raises(Overloaded):
                server.call(1)
            if round_ == 1:
                for call in calls:
                    call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        server.answer(0)
        await first

    runner.run(scenario())


def test_drain_ends_with_the_last_call_and_not_with_the_last_flight(runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        server = Server()
        call = server.call(1, timeout_s=0.05)
        await server.sent_batches(1)
        async with asyncio.timeout(1):
            await server.batcher.drain()
        with pytest.raises(OutcomeUnknown):
            await call
        with pytest.raises(Unavailable, match="closed"):
            server.call(2)

    runner.run(scenario())


def test_what_comes_with_the_requests_keeps_their_order(runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        server = Server()
        calls = [
            server.call(1, details=b"d1", attachments=b"a1"),
            server.call(2),
            server.call(3, 4, details=b"d3", attachments=b"a3a4"),
            server.call(5, attachments=b"a5"),
        ]
        await server.sent_batches(1)
        assert server.sent == [[1, 2, 3, 4, 5]]
        assert server.attached == [(b"d1d3", b"a1a3a4a5")]
        server.answer(0)
        assert [len(await call) for call in calls] == [ANSWER.size * count for count in (1, 1, 2, 1)]

    runner.run(scenario())


def test_the_requests_of_a_call_never_part(runner: asyncio.Runner) -> None:
    """A chain is one call: it waits for the next batch rather than be split."""

    async def scenario() -> None:
        server = Server(max_batch=5, depth=1)
        calls = [server.call(1, 2, 3), server.call(4, 5, 6), server.call(7), server.call(8, 9)]
        for flight, sent in enumerate(([1, 2, 3], [4, 5, 6, 7], [8, 9])):
            await server.sent_batches(flight + 1)
            assert server.sent[flight] == sent
            server.answer(flight)
        await asyncio.gather(*calls)

    runner.run(scenario())


@pytest.mark.parametrize("kept", [True, False])
def test_a_lost_chain_is_settled_only_by_answers_that_are_kept(runner: asyncio.Runner, kept: bool) -> None:
    """LINKED_FAILED alone says nothing: it is kept if the refusal that caused it is."""

    async def scenario() -> None:
        server = Server()
        call = server.call(1, 2, timeout_s=0.3)
        await server.sent_batches(1)
        server.flights[0].set_exception(NoReply())
        await server.sent_batches(2)
        if kept:
            server.answer(1, Status.LINKED_FAILED, Status.INSUFFICIENT_FUNDS, replayed=1)
            assert status_of(await call) == NUMBER_OF[Status.LINKED_FAILED]
        else:
            server.answer(1, Status.LINKED_FAILED, Status.CREDIT_WALLET_NOT_FOUND)
            with pytest.raises(OutcomeUnknown):
                await call

    runner.run(scenario())
