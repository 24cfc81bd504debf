"""Engine: the public API. It checks input, packs, sends through the batcher, and answers with Outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict, TypeVar, Unpack
from uuid import UUID

from engine.batcher import MAX_QUEUED, Batcher, ServerClock
from engine.chains import Placed, batches
from engine.domain.durability import Durability, check_durability, check_replicas
from engine.domain.ids import id_deriver, key_fingerprint, origin_digester
from engine.domain.money import default_exponent, unpack_currency
from engine.domain.status import NUMBER_OF, Status
from engine.domain.transfer import Kind, OpenWallet, Outcome, Refund, Request, SetTierLimits, Transfer, WalletChange
from engine.domain.wallet import MAX_SHARD, Balance, check_user_wallet_id, check_wallet_id, external_wallet_id
from engine.durability import DurabilityWaits
from engine.errors import HistoryMismatch, InvalidRequest, LedgerBacklog, OutcomeUnknown, ShardNotOpen, Unavailable
from engine.guarantee import Guarantee, GuaranteeWatch, PostgresSettings
from engine.hold_calls import HoldCalls
from engine.ledger_lookup import LedgerLookup
from engine.requests import Claim, Packed, RequestPacker
from engine.servers import RedisServer
from engine.shard import Shard, connect_redis
from engine.wallet_calls import WalletCalls
from engine.wire import ANSWER, MAX_BATCH, WALLET, outcome_of, unpack_replies

DEFAULT_TIMEOUT_MS = 5_000
MAX_TIMEOUT_MS = 600_000
MAX_CACHED_CURRENCIES = 100_000

_POLL_S = 0.02
_NO_CURRENCY = "XXX"  # ISO 4217's code for none
_T = TypeVar("_T")


PlainTransfer = tuple[int, int, int, str | None, UUID | None, Kind, str | None, str | None, Mapping[str, Any] | None]
"""The first fields of a Transfer, which most ask for alone."""


class MoreTerms(TypedDict, total=False):
    """What few movements ask for besides; see Transfer."""

    balancing: bool
    expect_version: int | None
    min_available_after_minor: int | None
    device: str | None
    ip: str | None


@dataclass(frozen=True)
class EngineSettings:
    """The arguments of Engine.connect, checked. Raises InvalidRequest."""

    shard: int
    scope: str
    digest_key: bytes | None
    timeout_ms: int
    max_queued: int
    durability: Durability
    replicas: int

    @classmethod
    def checked(
        cls,
        shard: int,
        scope: str,
        digest_key: bytes | None,
        timeout_ms: int,
        max_queued: int,
        durability: str,
        replicas: int,
    ) -> EngineSettings:
        if type(shard) is not int or not 0 <= shard <= MAX_SHARD:
            raise InvalidRequest("shard", f"an integer from 0 to {MAX_SHARD}", shard)
        if scope.startswith("\0"):
            raise InvalidRequest("scope", "text that does not start with NUL", scope)
        if digest_key is not None and not 16 <= len(digest_key) <= 64:
            raise InvalidRequest("digest_key", "16 to 64 bytes", f"{len(digest_key)} bytes")
        if type(max_queued) is not int or max_queued < MAX_BATCH:
            raise InvalidRequest("max_queued", f"an integer of at least {MAX_BATCH}", max_queued)
        _check_timeout(timeout_ms)
        level = check_durability(durability)
        return cls(shard, scope, digest_key, timeout_ms, max_queued, level, check_replicas(replicas))


class Engine(HoldCalls, WalletCalls):
    """Decides payments of one shard. Safe for any number of tasks of one event loop.

    Every method that moves money takes an idempotency key: `key` (text, unique within the engine's scope) or `id`
    (a UUID). Sending the same request under it again gives the first answer, marked as replayed.
    Every method takes `timeout_ms`, after which it raises Unavailable (surely not applied) or OutcomeUnknown.
    Every method that writes takes `durability`: "accepted", "replicated" or "persisted" is what an accepted request
    has to be before its outcome is returned, a replayed one too; None is the engine's own level. What each level
    survives on these servers is in `guarantee`. What is not known by the deadline is OutcomeUnknown: the request was
    accepted, and sending it again waits on. A refusal is returned at once.
    """

    def __init__(
        self,
        shard: Shard,
        clock: ServerClock,
        packer: RequestPacker,
        ledger: LedgerLookup | None,
        settings: EngineSettings,
        guarantees: GuaranteeWatch,
    ) -> None:
        self._shard = shard
        self._clock = clock
        self._packer = packer
        self._ledger = ledger
        self._shard_number = settings.shard
        self._guarantees = guarantees
        self._timeout_s = settings.timeout_ms / 1000
        self._level = None if settings.durability is Durability.ACCEPTED else settings.durability
        self._loop = asyncio.get_running_loop()
        self._batcher = Batcher(shard.post, clock, max_queued=settings.max_queued)
        self._waits = DurabilityWaits(shard, settings.shard, ledger, settings.replicas, settings.max_queued)
        self._currencies: dict[int, str] = {}

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        redis_url: str,
        postgres_url: str | None = None,
        *,
        shard: int = 0,
        scope: str = "",
        digest_key: bytes | None = None,
        timeout_ms: int = DEFAULT_TIMEOUT_MS,
        max_queued: int = MAX_QUEUED,
        durability: str = Durability.ACCEPTED,
        replicas: int = 1,
    ) -> AsyncIterator[Engine]:
        """An engine for `async with`; leaving it waits for the calls in flight.

        redis_url: redis://, rediss:// or unix://. postgres_url: lets lookup see beyond the idempotency window.
        scope: the owner of the text keys; two scopes never share one. digest_key: what ids are derived from text
        keys with, at most 64 bytes, the same for every engine of the deployment; by default the deployment's own.
        durability: the level of calls that name none; replicas: how many a replicated outcome is on, besides the
        server, 0 to 16. max_queued: requests that wait to be sent, and besides as many calls that wait for durability.
        Raises ServerRefused, LibraryMismatch, HistoryMismatch (another deployment or digest key), Unavailable.
        """
        settings = EngineSettings.checked(shard, scope, digest_key, timeout_ms, max_queued, durability, replicas)
        redis = connect_redis(redis_url)
        connection = Shard(redis, shard)
        ledger = LedgerLookup(postgres_url) if postgres_url else None
        try:
            engine = await cls._start(connection, ledger, settings)
            try:
                yield engine
            finally:
                await engine._close()
        finally:
            await connection.close()
            await redis.aclose()

    @classmethod
    async def _start(cls, shard: Shard, ledger: LedgerLookup | None, settings: EngineSettings) -> Engine:
        loop = asyncio.get_running_loop()

        async def meet() -> tuple[RedisServer, Mapping[str, Any]]:
            server = await shard.prepare()
            meta = (await shard.state()).meta
            if meta is None:
                raise ShardNotOpen("the server is empty: a persister has to open it first")
            return server, meta

        server, meta = await _until(meet, loop.time() + settings.timeout_ms / 1000)
        deployment = meta["deployment"]
        key = deployment if settings.digest_key is None else settings.digest_key
        if meta["key_fingerprint"] != key_fingerprint(key):
            raise HistoryMismatch("the digest key is not this deployment's: its ids would pay the same keys twice")
        postgres: PostgresSettings | None = None
        if ledger is not None:
            known, postgres = await asyncio.gather(ledger.deployment(), ledger.settings())
            if known is not None and known.id != deployment:
                raise HistoryMismatch(
                    f"Redis belongs to deployment {UUID(bytes=deployment)}, Postgres to {UUID(bytes=known.id)}"
                )
        ask_postgres = ledger.settings if ledger else None
        guarantees = GuaranteeWatch(server, ask_postgres, postgres, settings.durability, settings.replicas)
        await shard.connect(deployment, guarantees.met)
        clock = ServerClock()
        clock.observe(await shard.time_ms(), loop.time())
        packer = RequestPacker(id_deriver(key), origin_digester(key), settings.scope, settings.shard)
        return cls(shard, clock, packer, ledger, settings, guarantees)

    async def _close(self) -> None:
        await self._batcher.drain()
        await self._waits.drain()
        await self._waits.close()
        await self._guarantees.close()

    @property
    def guarantee(self) -> Guarantee:
        """What each level survives on the servers at hand, as it was read at the start or the last reconnect."""
        return self._guarantees.current

    # Wallets

    async def open_wallet(
        self,
        wallet_id: int,
        owner_id: int,
        currency: str,
        *,
        overdraft_limit_minor: int = 0,
        key: str | None = None,
        id: UUID | None = None,
        durability: str | None = None,
        timeout_ms: int | None = None,
    ) -> Outcome:
        """Open a wallet, and its currency's external wallet if that is the first of the currency.

        wallet_id: 1 to 2^63-1, chosen by the caller; owner_id: 0 to 2^63-1; currency: 3 to 8 of A-Z and 0-9.
        Returns POSTED; opening the same wallet again is a replay within the idempotency window, with other content
        EXISTS_WITH_DIFFERENT_*; WALLET_EXISTS after the window, or if it was opened under another key.
        Raises InvalidRequest, Unavailable, OutcomeUnknown.
        """
        opening = OpenWallet(wallet_id, owner_id, currency, overdraft_limit_minor, key, id)
        [outcome] = await self.open_wallets([opening], durability=durability, timeout_ms=timeout_ms)
        if outcome.status is Status.LEDGER_BACKLOG:
            raise _backlog()
        return outcome

    async def open_wallets(
        self, openings: Sequence[OpenWallet], *, durability: str | None = None, timeout_ms: int | None = None
    ) -> list[Outcome]:
        """Open many wallets, in order; one Outcome each. See open_wallet and post."""
        for opening in openings:
            check_user_wallet_id(opening.wallet_id, "wallet_id")
        currencies = dict.fromkeys(opening.currency for opening in openings)
        externals = [
            OpenWallet(self.external_wallet(currency), 0, currency, default_exponent(currency))
            for currency in currencies
        ]
        outcomes = await self.post([*externals, *openings], durability=durability, timeout_ms=timeout_ms)
        return outcomes[len(externals) :]

    async def define_currency(
        self, currency: str, exponent: int, *, durability: str | None = None, timeout_ms: int | None = None
    ) -> Outcome:
        """Say how many digits after the point a currency has, 0 to 8, by opening its external wallet; once for ever.

        A currency that nobody defined gets ISO 4217's exponent with its first wallet: 2 for most codes of three
        letters, 0 for codes of other lengths, such as points. Returns POSTED, also as a replay;
        EXISTS_WITH_DIFFERENT_OVERDRAFT_LIMIT or WALLET_EXISTS if it is defined already. Raises as open_wallet.
        """
        opening = OpenWallet(self.external_wallet(currency), 0, currency, exponent)
        return await self._one(opening, durability, timeout_ms)

    async def exponent(self, currency: str, *, timeout_ms: int | None = None) -> int | None:
        """The digits after the point of a currency; None if it has no wallet yet. Raises Unavailable."""
        outside = await self.balance(self.external_wallet(currency), timeout_ms=timeout_ms)
        return outside.overdraft_limit_minor if outside else None

    def external_wallet(self, currency: str) -> int:
        """The id of the currency's external wallet on this engine's shard."""
        return external_wallet_id(currency, self._shard_number)

    # Movements of money

    async def transfer(
        self,
        debit: int,
        credit: int,
        amount_minor: int,
        *,
        key: str | None = None,
        id: UUID | None = None,
        currency: str | None = None,
        reference: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        durability: str | None = None,
        timeout_ms: int | None = None,
        **more: Unpack[MoreTerms],
    ) -> Outcome:
        """Move amount_minor from one wallet to another.

        amount_minor: minor units, 1 to 2^53-1. currency: if given, both wallets must have it.
        reference: up to 64 characters; metadata: a JSON object of up to 2 KiB; both reach the ledger.
        more: balancing, expect_version, min_available_after_minor, device, ip; see Transfer.
        Returns POSTED (amount_minor says how much moved), UNDER_REVIEW if a fraud rule wants an operator's approval
        first, or INSUFFICIENT_FUNDS, DEBIT_WALLET_NOT_FOUND and the others of GLOSSARY.md.
        Raises InvalidRequest, Unavailable (nothing applied: Overloaded, ShardNotOpen, LedgerBacklog) or
        OutcomeUnknown. Rule: lua/lib/movements.lua; invariants 1 to 4 and 9.
        """
        check_user_wallet_id(debit, "debit")
        check_user_wallet_id(credit, "credit")
        deadline_s = self._loop.time() + (self._timeout_s if timeout_ms is None else _check_timeout(timeout_ms) / 1000)
        plain = (debit, credit, amount_minor, key, id, Kind.TRANSFER, currency, reference, metadata)
        return await self._move(plain, more, durability, deadline_s)

    async def pay(
        self,
        debit: int,
        merchant: int,
        amount_minor: int,
        *,
        key: str | None = None,
        id: UUID | None = None,
        currency: str | None = None,
        reference: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        durability: str | None = None,
        timeout_ms: int | None = None,
        **more: Unpack[MoreTerms],
    ) -> Outcome:
        """Pay a merchant's wallet. As transfer; the ledger shows it as a payment."""
        check_user_wallet_id(debit, "debit")
        check_user_wallet_id(merchant, "merchant")
        deadline_s = self._loop.time() + (self._timeout_s if timeout_ms is None else _check_timeout(timeout_ms) / 1000)
        plain = (debit, merchant, amount_minor, key, id, Kind.PAYMENT, currency, reference, metadata)
        return await self._move(plain, more, durability, deadline_s)

    async def top_up(
        self,
        wallet_id: int,
        amount_minor: int,
        *,
        key: str | None = None,
        id: UUID | None = None,
        currency: str | None = None,
        reference: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        durability: str | None = None,
        timeout_ms: int | None = None,
    ) -> Outcome:
        """Bring money in: from the external wallet of the wallet's currency to the wallet. As transfer."""
        return await self._external(
            Kind.TOP_UP, wallet_id, amount_minor, key, id, currency, reference, metadata, durability, timeout_ms, {}
        )

    async def withdraw(
        self,
        wallet_id: int,
        amount_minor: int,
        *,
        key: str | None = None,
        id: UUID | None = None,
        currency: str | None = None,
        reference: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        durability: str | None = None,
        timeout_ms: int | None = None,
        **more: Unpack[MoreTerms],
    ) -> Outcome:
        """Take money out: from the wallet to the external wallet of its currency. As transfer."""
        return await self._external(
            Kind.WITHDRAWAL,
            wallet_id,
            amount_minor,
            key,
            id,
            currency,
            reference,
            metadata,
            durability,
            timeout_ms,
            more,
        )

    async def post(
        self,
        requests: Sequence[Request],
        *,
        linked: bool = False,
        durability: str | None = None,
        timeout_ms: int | None = None,
    ) -> list[Outcome]:
        """Decide many requests in the order given; one Outcome each, in that order.

        linked: all of them are one chain, which happens as a whole or not at all; or mark single requests as `linked`
        to the next one. The request that stops a chain keeps its status, the others get LINKED_FAILED. Else each
        stands alone: a refusal does not stop the next. All are checked before the first is sent, so InvalidRequest
        means that nothing happened. A refund of a transfer that Redis has forgotten is decided after the others, unless
        it is in a chain. A request that met a full backlog has the status LEDGER_BACKLOG here. Raises
        Unavailable if nothing was applied by the deadline, OutcomeUnknown if some of it was or may have been: send
        the whole list again then, what was decided is replayed.
        """
        level = self._level if durability is None else _level(durability)
        deadline_s = self._deadline_s(timeout_ms)
        if linked:
            requests = [*map(_linked, requests[:-1]), *requests[-1:]]
        if level is None:
            return await self._post(requests, deadline_s)
        with self._waits.call():
            outcomes = await self._post(requests, deadline_s)
            await self._waits.until(level, outcomes, deadline_s)
            return outcomes

    async def _post(self, requests: Sequence[Request], deadline_s: float) -> list[Outcome]:
        packed = [self._packer.pack(request) for request in requests]
        in_chain = _in_chain(requests, packed)
        for at, request in enumerate(requests):
            if in_chain[at] and isinstance(request, Refund):
                packed[at] = await self._with_claim(request, packed[at], deadline_s)
        outcomes: list[Outcome | None] = [None] * len(packed)
        answered: tuple[list[Placed], bytes] | None = None
        for chunk in batches(packed, outcomes):
            try:
                flight = self._submit([request for _, request in chunk], deadline_s)
                if answered:  # unpacked while the next chunk is in flight
                    _place(outcomes, *answered)
                answered = (chunk, await flight)
            except (Unavailable, OutcomeUnknown) as error:
                if answered is None and isinstance(error, Unavailable):
                    raise
                raise OutcomeUnknown([UUID(bytes=request.id) for request in packed]) from error
        if answered:
            _place(outcomes, *answered)
        decided = [outcome for outcome in outcomes if outcome is not None]
        for at, request in enumerate(requests):
            if isinstance(request, Refund) and not in_chain[at] and decided[at].status in _ASK_THE_LEDGER:
                try:
                    decided[at] = await self._refund_claimed(request, decided[at], deadline_s)
                except Unavailable as error:
                    if len(packed) == 1:
                        raise
                    raise OutcomeUnknown([UUID(bytes=one.id) for one in packed]) from error
        return decided

    async def _with_claim(self, request: Refund, packed: Packed, deadline_s: float) -> Packed:
        """A refund in a chain cannot be sent again alone: what the ledger knows goes with it at once.

        A ledger that is away is no obstacle: most transfers to refund are known to Redis.
        """
        if self._ledger is not None:
            with suppress(Unavailable, TimeoutError):
                async with asyncio.timeout_at(deadline_s):
                    return self._packer.pack(request, await self._ledger.claim(request.transfer_id))
        return packed

    def _submit(self, chunk: list[Packed], deadline_s: float) -> asyncio.Future[bytes]:
        records = b"".join([request.record for request in chunk])
        details = b"".join([request.details for request in chunk])
        attachments = b"".join([request.attachment for request in chunk])
        return self._batcher.submit(records, details, attachments, len(chunk), deadline_s)

    async def _one(self, request: Request, durability: str | None, timeout_ms: int | None) -> Outcome:
        """Decide one request; a full backlog is raised."""
        level = self._level if durability is None else _level(durability)
        deadline_s = self._deadline_s(timeout_ms)
        packed = self._packer.pack(request)
        if packed.linked:
            raise InvalidRequest("linked", "absent in a single call: there is no next request", True)
        if level is None:
            return await self._decided(request, packed, deadline_s)
        return await self._durable(level, self._decided(request, packed, deadline_s), deadline_s)

    async def _durable(self, level: Durability, deciding: Coroutine[Any, Any, Outcome], deadline_s: float) -> Outcome:
        """What is decided, once it is as durable as that. Raises Overloaded, OutcomeUnknown besides."""
        with closing(deciding), self._waits.call():
            outcome = await deciding
            await self._waits.until(level, [outcome], deadline_s)
            return outcome

    async def _decided(self, request: Request, packed: Packed, deadline_s: float) -> Outcome:
        outcome = await self._sent(packed, deadline_s)
        if isinstance(request, Refund) and outcome.status in _ASK_THE_LEDGER:
            outcome = await self._refund_claimed(request, outcome, deadline_s)
        return outcome

    async def _sent(self, packed: Packed, deadline_s: float) -> Outcome:
        reply = await self._batcher.submit(packed.record, packed.details, packed.attachment, 1, deadline_s)
        if reply[0] == _LEDGER_BACKLOG:
            raise _backlog()
        return outcome_of(_unpack_reply(reply), packed.id)

    async def _refund_claimed(self, request: Refund, outcome: Outcome, deadline_s: float) -> Outcome:
        """Send a refund again with what the ledger has of a transfer that Redis no longer knows."""
        while self._ledger is not None and outcome.status in _ASK_THE_LEDGER:
            claim = await self._claim(request, deadline_s)
            if claim is None:
                return outcome
            outcome = await self._sent(self._packer.pack(request, claim), deadline_s)
            if outcome.status is Status.LEDGER_BEHIND:
                if self._loop.time() + _POLL_S >= deadline_s:
                    raise Unavailable(
                        "the ledger is behind the refunds that Redis has forgotten; send the same id again"
                    )
                await asyncio.sleep(_POLL_S)
        return outcome

    async def _claim(self, request: Refund, deadline_s: float) -> Claim | None:
        assert self._ledger is not None
        return await _until(partial(self._ledger.claim, request.transfer_id), deadline_s)

    # Reading

    async def balance(self, wallet_id: int, *, timeout_ms: int | None = None) -> Balance | None:
        """What the wallet has now; None if it was never opened. Raises Unavailable."""
        return (await self.balances([wallet_id], timeout_ms=timeout_ms))[0]

    async def balances(self, wallet_ids: Sequence[int], *, timeout_ms: int | None = None) -> list[Balance | None]:
        """What each wallet has, in the order given; each thousand of them at one instant. Raises Unavailable."""
        for wallet_id in wallet_ids:
            check_wallet_id(wallet_id, "wallet_id")
        return await self._balances(wallet_ids, self._deadline_s(timeout_ms))

    async def _balances(self, wallet_ids: Sequence[int], deadline_s: float) -> list[Balance | None]:
        found: list[Balance | None] = []
        for start in range(0, len(wallet_ids), MAX_BATCH):
            chunk = wallet_ids[start : start + MAX_BATCH]
            found += map(_balance, chunk, await _until(partial(self._shard.wallets, chunk), deadline_s))
        return found

    async def lookup(self, *, key: str | None = None, id: UUID | None = None, timeout_ms: int | None = None) -> Outcome:
        """What became of a request: its outcome (replayed is True), or one with the status NOT_APPLIED.

        NOT_APPLIED is definite for every call whose deadline has passed, in this process or another: the server
        will not decide such a request any more, even if it still lies in a socket. Without a postgres_url it speaks
        for the idempotency window only, and beyond it for movements of money only.
        Raises Unavailable if it cannot be told within the timeout.
        """
        packed_id = self._packer.id_of(key, id)
        deadline_s = self._deadline_s(timeout_ms)
        expired_by_ms = self._clock.at(self._loop.time())

        async def find() -> bytes:
            server_ms, record = await self._shard.lookup(packed_id)
            if not record and server_ms <= expired_by_ms:
                raise Unavailable("the server's clock has not yet passed this moment")
            return record

        record = await _until(find, deadline_s)
        if record:
            return outcome_of(_unpack_reply(record[: ANSWER.size]), packed_id)._replace(replayed=True)
        ledger = self._ledger
        posted = await _until(partial(ledger.transfer, UUID(bytes=packed_id)), deadline_s) if ledger else None
        return posted or Outcome(Status.NOT_APPLIED, 0, False, 0, 0, packed_id)

    # Inside

    async def _move(self, plain: PlainTransfer, more: MoreTerms, durability: str | None, deadline_s: float) -> Outcome:
        # As _one, without its steps: this is the way of most calls.
        level = self._level if durability is None else _level(durability)
        packer = self._packer
        packed = packer.pack(Transfer(*plain, **more)) if more else packer.pack_transfer(*plain)
        if level is not None:
            return await self._durable(level, self._sent(packed, deadline_s), deadline_s)
        packed_id, record, details, attachment, _ = packed
        reply = await self._batcher.submit(record, details, attachment, 1, deadline_s)
        if reply[0] == _LEDGER_BACKLOG:
            raise _backlog()
        return outcome_of(_unpack_reply(reply), packed_id)

    async def _external(
        self,
        kind: Kind,
        wallet_id: int,
        amount_minor: int,
        key: str | None,
        transfer_id: UUID | None,
        currency: str | None,
        reference: str | None,
        metadata: Mapping[str, Any] | None,
        durability: str | None,
        timeout_ms: int | None,
        more: MoreTerms,
    ) -> Outcome:
        incoming = kind is Kind.TOP_UP
        check_user_wallet_id(wallet_id, "wallet_id")
        deadline_s = self._deadline_s(timeout_ms)
        currency = currency or await self._currency_of(wallet_id, deadline_s)
        if currency is None:
            packed_id = self._packer.id_of(key, transfer_id)
            missing = Status.CREDIT_WALLET_NOT_FOUND if incoming else Status.DEBIT_WALLET_NOT_FOUND
            return Outcome(missing, 0, False, 0, 0, packed_id)
        outside = self.external_wallet(currency)
        debit, credit = (outside, wallet_id) if incoming else (wallet_id, outside)
        plain = (debit, credit, amount_minor, key, transfer_id, kind, None, reference, metadata)
        return await self._move(plain, more, durability, deadline_s)

    async def _outside_of(self, wallet_id: int, currency: str | None, timeout_ms: int | None) -> int:
        """The external wallet of a wallet's currency; of one that is not there, any: the answer will say so."""
        check_user_wallet_id(wallet_id, "wallet_id")
        currency = currency or await self._currency_of(wallet_id, self._deadline_s(timeout_ms))
        return self.external_wallet(currency or _NO_CURRENCY)

    async def _packed_holds(self, hold_ids: Sequence[UUID], timeout_ms: int | None) -> list[bytes]:
        return await _until(partial(self._shard.holds, [one.bytes for one in hold_ids]), self._deadline_s(timeout_ms))

    async def _packed_tier(self, tier: int, timeout_ms: int | None) -> bytes:
        return await _until(partial(self._shard.tier, tier), self._deadline_s(timeout_ms))

    async def _currency_of(self, wallet_id: int, deadline_s: float) -> str | None:
        """A wallet's currency, which never changes, so it may be kept."""
        currency = self._currencies.get(wallet_id)
        if currency is None and (balance := (await self._balances([wallet_id], deadline_s))[0]) is not None:
            if len(self._currencies) >= MAX_CACHED_CURRENCIES:
                self._currencies.clear()
            currency = self._currencies[wallet_id] = balance.currency
        return currency

    def _deadline_s(self, timeout_ms: int | None) -> float:
        if timeout_ms is None:
            return self._loop.time() + self._timeout_s
        return self._loop.time() + _check_timeout(timeout_ms) / 1000


_unpack_reply = ANSWER.struct.unpack
_LEDGER_BACKLOG = NUMBER_OF[Status.LEDGER_BACKLOG]
_ASK_THE_LEDGER = frozenset({Status.TRANSFER_NOT_FOUND, Status.LEDGER_BEHIND})


def _in_chain(requests: Sequence[Request], packed: Sequence[Packed]) -> list[bool]:
    """Whether each is linked to the next one, or the one before to it.

    Raises InvalidRequest for one without a key of its own: the chain could not be sent again as the same.
    """
    linked = [one.linked for one in packed]
    if True not in linked:
        return linked
    chained = [one or before for one, before in zip(linked, [False, *linked], strict=False)]
    for request, in_chain in zip(requests, chained, strict=True):
        if in_chain and isinstance(request, WalletChange | SetTierLimits) and not (request.key or request.id):
            raise InvalidRequest("key", "given in a chain, unless an id is", request.key)
    return chained


def _linked(request: Request) -> Request:
    if isinstance(request, OpenWallet | SetTierLimits):
        raise InvalidRequest("linked", "a chain of movements, holds, refunds and changes of wallets", request)
    return request._replace(linked=True)


def _place(outcomes: list[Outcome | None], chunk: list[Placed], replies: bytes) -> None:
    found = unpack_replies(replies, [request.id for _, request in chunk])
    for (at, _), outcome in zip(chunk, found, strict=True):
        outcomes[at] = outcome


def _level(durability: str) -> Durability | None:
    """None for accepted, which needs no waiting. Raises InvalidRequest."""
    level = check_durability(durability)
    return None if level is Durability.ACCEPTED else level


def _backlog() -> LedgerBacklog:
    return LedgerBacklog("the ledger is too far behind the journal; send the same id again")


def _balance(wallet_id: int, packed: bytes) -> Balance | None:
    if not packed:
        return None
    wallet = WALLET.unpack(packed[: WALLET.size])
    return Balance(
        wallet_id,
        unpack_currency(wallet["currency"]),
        wallet["available"],
        wallet["locked"],
        wallet["version"],
        wallet["overdraft_limit"],
        wallet["flags"],
        wallet["tier"],
    )


async def _until(attempt: Callable[[], Awaitable[_T]], deadline_s: float) -> _T:
    """Try until it works or the deadline passes; then the last Unavailable is raised. For reads only."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            async with asyncio.timeout_at(deadline_s):
                return await attempt()
        except TimeoutError:
            raise Unavailable("no answer before the deadline") from None
        except Unavailable:
            if loop.time() + _POLL_S >= deadline_s:
                raise
            await asyncio.sleep(_POLL_S)


def _check_timeout(timeout_ms: int) -> int:
    if type(timeout_ms) is not int or not 1 <= timeout_ms <= MAX_TIMEOUT_MS:
        raise InvalidRequest("timeout_ms", f"an integer from 1 to {MAX_TIMEOUT_MS}", timeout_ms)
    return timeout_ms
