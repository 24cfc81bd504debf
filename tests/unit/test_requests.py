"""Bad input of every request and of every method: InvalidRequest names the field and its bound, and nothing is sent."""

from __future__ import annotations

import asyncio
from inspect import iscoroutinefunction, signature
from typing import Any
from uuid import UUID, uuid4

import pytest

from engine import (
    Durability,
    Engine,
    Fatal,
    Hold,
    HoldChange,
    InvalidRequest,
    Kind,
    OpenWallet,
    Refund,
    Rule,
    SetTierLimits,
    TierLimits,
    Transfer,
    WalletChange,
)
from engine.batcher import ServerClock
from engine.chains import batches
from engine.client import EngineSettings
from engine.domain.ids import id_deriver, origin_digester
from engine.domain.limits import NO_LIMIT
from engine.guarantee import GuaranteeWatch
from engine.requests import Packed, RequestPacker, as_chain, pack_limits, unpack_limits
from engine.servers import RedisServer
from engine.wire import ATTACHMENTS, CONTENT, MAX_BATCH, REQUEST, TERMS

KEY = b"a digest key for these tests"
ID = uuid4()
NIL = UUID(int=0)
MOST = 2**53 - 1
A_YEAR_AND_A_DAY_MS = 366 * 86_400_000


def new_packer() -> RequestPacker:
    return RequestPacker(id_deriver(KEY), origin_digester(KEY), "", 0)


class NoShard:
    """A server that nothing may be asked of."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was called")

    def post(self, *_: Any) -> asyncio.Future[bytes]:
        """Where a batcher expects no exception."""
        answer = asyncio.get_running_loop().create_future()
        answer.set_exception(Fatal("something was sent"))
        return answer


def new_engine() -> Engine:
    """Inside an event loop."""
    shard: Any = NoShard()
    settings = EngineSettings.checked(0, "", None, 1000, 65_536, Durability.ACCEPTED, 1)
    server = RedisServer("valkey", "9.1", append_only=True, synced=True)
    guarantees = GuaranteeWatch(server, None, None, settings.durability, settings.replicas)
    return Engine(shard, ServerClock(), new_packer(), None, settings, guarantees)


GOOD: dict[str, Any] = {
    "transfer": Transfer(1, 2, 5, key="k"),
    "hold": Hold(1, 2, 5, key="k"),
    "capture": HoldChange(ID, Kind.CAPTURE, 5, key="k"),
    "raise": HoldChange(ID, Kind.RAISE_HOLD, 5, key="k"),
    "void": HoldChange(ID, Kind.VOID, key="k"),
    "approve": HoldChange(ID, Kind.APPROVE_HOLD, key="k"),
    "refund": Refund(ID, 5, key="k"),
    "chargeback": Refund(ID, 5, key="k", kind=Kind.CHARGEBACK),
    "open": OpenWallet(1, 1, "USD"),
    "freeze": WalletChange(1, Kind.FREEZE, 2),
    "unfreeze": WalletChange(1, Kind.UNFREEZE, 6),
    "close": WalletChange(1, Kind.CLOSE_WALLET),
    "overdraft": WalletChange(1, Kind.SET_OVERDRAFT_LIMIT, 5),
    "tier": WalletChange(1, Kind.SET_TIER, 5),
    "limits": SetTierLimits(1, TierLimits()),
}

KEYS: list[tuple[str, dict[str, Any]]] = [
    ("key", {"key": ""}),
    ("key", {"key": "k" * 256}),
    ("key", {"key": "\ud800"}),
    ("key", {"key": 5}),
    ("key", {"key": "k", "id": ID}),
    ("id", {"key": None, "id": NIL}),
    ("id", {"key": None, "id": "text"}),
]
NO_KEY: list[tuple[str, dict[str, Any]]] = [("key", {"key": None})]
DETAILS: list[tuple[str, dict[str, Any]]] = [
    ("reference", {"reference": ""}),
    ("reference", {"reference": "r" * 65}),
    ("reference", {"reference": 5}),
    ("reference", {"reference": "\0"}),
    ("metadata", {"metadata": "text"}),
    ("metadata", {"metadata": {"k": "v" * 2048}}),
    ("metadata", {"metadata": {"k": object()}}),
]
LINKED: list[tuple[str, dict[str, Any]]] = [("linked", {"linked": value}) for value in (1, 2, None, "yes")]
AMOUNT: list[tuple[str, dict[str, Any]]] = [
    ("amount_minor", {"amount_minor": value}) for value in (0, -1, 2**53, 1.0, True, "1", NO_LIMIT + 1)
]
MOVEMENT: list[tuple[str, dict[str, Any]]] = [
    *KEYS, *NO_KEY, *DETAILS, *LINKED, *AMOUNT,
    ("amount_minor", {"amount_minor": None}),
    ("debit", {"debit": 0}),
    ("debit", {"debit": 2**63}),
    ("credit", {"credit": "2"}),
    ("currency", {"currency": "usd"}),
    ("currency", {"currency": "US"}),
    ("currency", {"currency": "NINECHARS"}),
    ("expect_version", {"expect_version": 0}),
    ("expect_version", {"expect_version": 2**53}),
    ("expect_version", {"expect_version": "1"}),
    ("min_available_after_minor", {"min_available_after_minor": 2**53}),
    ("min_available_after_minor", {"min_available_after_minor": -(2**53)}),
    ("min_available_after_minor", {"min_available_after_minor": 0.5}),
    ("device", {"device": ""}),
    ("device", {"device": "d" * 256}),
    ("device", {"device": b"raw"}),
    ("device", {"device": "\ud800"}),
    ("ip", {"ip": ""}),
    ("ip", {"ip": "i" * 256}),
    ("ip", {"ip": 127}),
]  # fmt: skip
REFERENCE = [*KEYS, *NO_KEY, *DETAILS, *LINKED]
HOLD_ID = [("hold_id", {"hold_id": value}) for value in (NIL, None, "text", 5)]
WALLET = [*KEYS, *LINKED, *[("wallet_id", {"wallet_id": value}) for value in (0, -5, 2**63, "1", None, True)]]

BAD: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "transfer": [
        *MOVEMENT,
        *[("kind", {"kind": kind}) for kind in (Kind.REFUND, Kind.HOLD, Kind.OPEN_WALLET, 0, None)],
        *[("balancing", {"balancing": value}) for value in (1, 4, None)],
    ],
    "hold": [
        *MOVEMENT,
        *[("purpose", {"purpose": kind}) for kind in (Kind.REFUND, Kind.HOLD, 0, None)],
        *[("expires_in_ms", {"expires_in_ms": value}) for value in (0, -1, 1.5, True, "1", A_YEAR_AND_A_DAY_MS + 1)],
    ],
    "capture": [*REFERENCE, *HOLD_ID, *AMOUNT, *[("final", {"final": value}) for value in (1, None, "no")]],
    "raise": [*REFERENCE, *HOLD_ID, *AMOUNT, ("amount_minor", {"amount_minor": None})],
    "void": [*REFERENCE, *HOLD_ID, ("amount_minor", {"amount_minor": 5})],
    "approve": [
        *REFERENCE,
        *HOLD_ID,
        ("amount_minor", {"amount_minor": 5}),
        *[("kind", {"kind": kind}) for kind in (Kind.EXPIRE_HOLD, Kind.HOLD, Kind.TRANSFER, 0)],
    ],
    "refund": [
        *REFERENCE,
        *AMOUNT,
        *[("transfer_id", {"transfer_id": value}) for value in (NIL, None, "text")],
        *[("kind", {"kind": kind}) for kind in (Kind.TRANSFER, Kind.CAPTURE, 0)],
    ],
    "chargeback": [*REFERENCE, *AMOUNT],
    "open": [
        *KEYS,
        ("wallet_id", {"wallet_id": 0}),
        ("wallet_id", {"wallet_id": -5}),
        ("owner_id", {"owner_id": -1}),
        ("currency", {"currency": "us"}),
        ("overdraft_limit_minor", {"overdraft_limit_minor": -1}),
    ],
    "freeze": [*WALLET, *[("value", {"value": value}) for value in (0, 1, 3, 8, 7, None)]],
    "unfreeze": [*WALLET, *[("value", {"value": value}) for value in (0, 1, 15)]],
    "close": [*WALLET, ("value", {"value": 1}), ("kind", {"kind": Kind.OPEN_WALLET}), ("kind", {"kind": 0})],
    "overdraft": [*WALLET, *[("overdraft_limit_minor", {"value": value}) for value in (-1, 2**53, 0.5, None)]],
    "tier": [*WALLET, *[("tier", {"value": value}) for value in (-1, 2**16, 0.5, None, True)]],
    "limits": [
        *KEYS,
        *[("tier", {"tier": value}) for value in (0, -1, 2**16, "1")],
        ("limits", {"limits": None}),
        ("limits", {"limits": {}}),
    ],
}
CASES = [(name, field, changes) for name, cases in BAD.items() for field, changes in cases]


@pytest.mark.parametrize("name", GOOD)
def test_what_the_bad_requests_are_made_from_is_good(name: str) -> None:
    packed = new_packer().pack(GOOD[name])
    assert len(packed.record) == REQUEST.size
    attachment = ATTACHMENTS[packed.record[16]]
    assert len(packed.attachment) == (attachment.size if attachment else 0)


@pytest.mark.parametrize(("name", "field", "changes"), CASES)
def test_bad_requests_name_the_field_and_its_bound(name: str, field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        new_packer().pack(GOOD[name]._replace(**changes))
    assert caught.value.field == field
    assert caught.value.bound
    assert str(caught.value).startswith(f"{field} must be {caught.value.bound}")


@pytest.mark.parametrize("what", [None, 5, "text", (1, 2, 5)])
def test_what_is_no_request(what: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        new_packer().pack(what)
    assert caught.value.field == "request"


BAD_LIMITS: list[tuple[str, Any]] = [
    *[
        (name, value)
        for name in (
            "max_amount_minor", "day_amount_minor", "day_count", "window_count", "hour_amount_minor",
            "device_attempts", "ip_attempts", "new_device_amount_minor",
        )
        for value in (-1, NO_LIMIT, 0.5, True, "1")
    ],
    *[(name, value) for name in ("window_minutes", "attempts_window_minutes") for value in (0, 1441, None, 0.5)],
    *[("device_wallets", value) for value in (-1, 17)],
    *[("new_device_hours", value) for value in (-1, 24 * 366 + 1, None)],
    *[("review", value) for value in (None, {Rule.MAX_AMOUNT}, frozenset({1}), [Rule.MAX_AMOUNT])],
    *[("debt_first", value) for value in (0, None)],
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD_LIMITS)
def test_bad_limits_name_the_field(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        new_packer().pack(SetTierLimits(1, TierLimits()._replace(**{field: value})))
    assert caught.value.field == field


def test_limits_come_back_as_they_were() -> None:
    for limits in (
        TierLimits(),
        TierLimits(1, 2, 3, 4, window_minutes=1440, hour_amount_minor=0, debt_first=False, review=frozenset(Rule)),
        TierLimits(NO_LIMIT - 1, device_attempts=0, device_wallets=16, new_device_amount_minor=0, new_device_hours=0),
    ):
        assert unpack_limits(pack_limits(limits)) == limits


# Methods

BAD_CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("hold", (-1, 2, 5), {"key": "k"}, "debit"),
    ("hold", (1, -2, 5), {"key": "k"}, "credit"),
    ("hold", (1, 2, 0), {"key": "k"}, "amount_minor"),
    ("hold", (1, 2, 5), {}, "key"),
    ("hold", (1, 2, 5), {"key": "k", "expires_in_ms": 0}, "expires_in_ms"),
    ("hold", (1, 2, 5), {"key": "k", "purpose": Kind.REFUND}, "purpose"),
    ("hold", (1, 2, 5), {"key": "k", "device": ""}, "device"),
    ("hold", (1, 2, 5), {"key": "k", "ip": ""}, "ip"),
    ("hold", (1, 2, 5), {"key": "k", "timeout_ms": 0}, "timeout_ms"),
    ("capture", (NIL,), {}, "hold_id"),
    ("capture", ("text",), {"key": "k"}, "hold_id"),
    ("capture", (ID, 0), {}, "amount_minor"),
    ("capture", (ID, 5), {"final": False}, "key"),
    ("capture", (ID, 5), {"final": 1, "key": "k"}, "final"),
    ("capture", (ID, 5), {"key": "k", "id": ID}, "key"),
    ("raise_hold", (ID, 5), {}, "key"),
    ("raise_hold", (ID, 0), {"key": "k"}, "amount_minor"),
    ("raise_hold", (NIL, 5), {"key": "k"}, "hold_id"),
    ("void", (None,), {}, "hold_id"),
    ("void", (ID,), {"reference": ""}, "reference"),
    ("approve", (5,), {}, "hold_id"),
    ("reject", (NIL,), {}, "hold_id"),
    ("reject", (ID,), {"reason": "r" * 2048}, "metadata"),
    ("confirm", (NIL, "psp"), {}, "hold_id"),
    ("confirm", (ID, ""), {}, "reference"),
    ("confirm", (ID, "p" * 65), {}, "reference"),
    ("fail", (NIL,), {}, "hold_id"),
    ("start_top_up", (0, 5), {"key": "k"}, "wallet_id"),
    ("start_top_up", (1, 5), {"key": "k", "currency": "us"}, "currency"),
    ("start_top_up", (1, 0), {"key": "k", "currency": "USD"}, "amount_minor"),
    ("start_withdrawal", (-1, 5), {"key": "k"}, "wallet_id"),
    ("start_withdrawal", (1, 5), {"currency": "USD"}, "key"),
    ("start_withdrawal", (1, 5), {"key": "k", "currency": "USD", "device": ""}, "device"),
    ("refund", (NIL,), {"key": "k"}, "transfer_id"),
    ("refund", (ID,), {}, "key"),
    ("refund", (ID, 0), {"key": "k"}, "amount_minor"),
    ("chargeback", ("text",), {"key": "k"}, "transfer_id"),
    ("chargeback", (ID, 2**53), {"key": "k"}, "amount_minor"),
    ("freeze", (0,), {}, "wallet_id"),
    ("freeze", (1,), {"debits": False, "credits": False}, "debits"),
    ("freeze", (1,), {"debits": 2}, "debits"),
    ("freeze", (1,), {"credits": None}, "credits"),
    ("unfreeze", (-1,), {}, "wallet_id"),
    ("unfreeze", (1,), {"debits": False, "credits": False}, "debits"),
    ("close_wallet", (0,), {}, "wallet_id"),
    ("close_wallet", (1,), {"key": ""}, "key"),
    ("set_overdraft_limit", (1, -1), {}, "overdraft_limit_minor"),
    ("set_overdraft_limit", (0, 1), {}, "wallet_id"),
    ("set_tier", (1, 2**16), {}, "tier"),
    ("set_tier", (1, -1), {}, "tier"),
    ("set_tier_limits", (0, TierLimits()), {}, "tier"),
    ("set_tier_limits", (1, None), {}, "limits"),
    ("set_tier_limits", (1, TierLimits(day_count=-1)), {}, "day_count"),
    ("tier_limits", (-1,), {}, "tier"),
    ("define_currency", ("us", 2), {}, "currency"),
    ("define_currency", ("USD", 9), {}, "exponent"),
    ("define_currency", ("USD", -1), {}, "exponent"),
    ("exponent", ("us",), {}, "currency"),
    ("find_holds", ([NIL],), {}, "hold_ids"),
    ("find_holds", (["text"],), {}, "hold_ids"),
    ("find_holds", ([ID] * 1025,), {}, "hold_ids"),
    ("open_wallet", (-1, 1, "USD"), {}, "wallet_id"),
    ("lookup", (), {}, "key"),
    ("post", ([Transfer(1, 2, 5, key="a"), Transfer(1, 2, 0, key="b")],), {}, "amount_minor"),
    ("post", ([OpenWallet(1, 1, "USD"), Transfer(1, 2, 5, key="b")],), {"linked": True}, "linked"),
    ("post", ([Transfer(1, 2, 5, key="a"), Transfer(2, 1, 5, key="a")],), {"linked": True}, "id"),
    ("post", ([Transfer(1, 2, 5, key="a", linked=True), Hold(2, 1, 5, key="a")],), {}, "id"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "arguments", "options", "field"), BAD_CALLS)
def test_bad_calls_name_the_field_and_send_nothing(
    method: str, arguments: tuple[Any, ...], options: dict[str, Any], field: str
) -> None:
    async def call() -> None:
        await getattr(new_engine(), method)(*arguments, **options)

    with pytest.raises(InvalidRequest) as caught:
        asyncio.run(call())
    assert caught.value.field == field


WRITES: dict[str, tuple[Any, ...]] = {
    "transfer": (1, 2, 5),
    "pay": (1, 2, 5),
    "top_up": (1, 5),
    "withdraw": (1, 5),
    "hold": (1, 2, 5),
    "capture": (ID, 5),
    "raise_hold": (ID, 5),
    "void": (ID,),
    "approve": (ID,),
    "reject": (ID,),
    "start_top_up": (1, 5),
    "start_withdrawal": (1, 5),
    "confirm": (ID, "psp"),
    "fail": (ID,),
    "refund": (ID,),
    "chargeback": (ID,),
    "freeze": (1,),
    "unfreeze": (1,),
    "close_wallet": (1,),
    "set_overdraft_limit": (1, 5),
    "set_tier": (1, 1),
    "set_tier_limits": (1, TierLimits()),
    "define_currency": ("USD", 2),
    "open_wallet": (1, 1, "USD"),
    "open_wallets": ([OpenWallet(1, 1, "USD")],),
    "post": ([Transfer(1, 2, 5, key="k")],),
}


def test_every_write_is_there() -> None:
    """Whatever is public and takes no durability only reads."""
    public = {name: getattr(Engine, name) for name in dir(Engine) if not name.startswith("_")}
    coroutines = {name: signature(method) for name, method in public.items() if iscoroutinefunction(method)}
    assert {name for name, its in coroutines.items() if "durability" in its.parameters} == set(WRITES)
    assert set(coroutines) - set(WRITES) == {"balance", "balances", "exponent", "find_holds", "lookup", "tier_limits"}


@pytest.mark.parametrize("method", WRITES)
def test_an_unknown_durability_sends_nothing(method: str) -> None:
    keywords = {
        name for name, its in signature(getattr(Engine, method)).parameters.items() if its.kind is its.KEYWORD_ONLY
    }
    options = {name: value for name, value in (("key", "k"), ("currency", "USD")) if name in keywords}

    async def call() -> None:
        await getattr(new_engine(), method)(*WRITES[method], **options, durability="forever")

    with pytest.raises(
        InvalidRequest, match="durability must be one of accepted, replicated, persisted, not 'forever'"
    ):
        asyncio.run(call())


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"durability": "safe"}, "durability"),
        ({"durability": None}, "durability"),
        ({"replicas": -1}, "replicas"),
        ({"replicas": 17}, "replicas"),
        ({"replicas": True}, "replicas"),
        ({"max_queued": 1023}, "max_queued"),
        ({"shard": -1}, "shard"),
    ],
)
async def test_bad_settings_of_an_engine(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        async with Engine.connect("redis://127.0.0.1:1", **settings):
            raise AssertionError("it connected")
    assert caught.value.field == field


# Contents, digests and chains


def content(request: Any) -> bytes:
    """All that makes the request what it is."""
    record = new_packer().pack(request).record
    assert len(record) == 17 + CONTENT.size
    return record[17:]


DIFFERENT: list[tuple[str, dict[str, Any]]] = [
    ("transfer", {"debit": 3}),
    ("transfer", {"credit": 3}),
    ("transfer", {"amount_minor": 6}),
    ("transfer", {"kind": Kind.PAYMENT}),
    ("transfer", {"currency": "USD"}),
    ("transfer", {"reference": "r"}),
    ("transfer", {"metadata": {}}),
    ("transfer", {"balancing": True}),
    ("transfer", {"linked": True}),
    ("transfer", {"expect_version": 1}),
    ("transfer", {"min_available_after_minor": 0}),
    ("hold", {"purpose": Kind.TOP_UP}),
    ("hold", {"expires_in_ms": 1}),
    ("hold", {"expect_version": 1}),
    ("capture", {"final": False}),
    ("capture", {"amount_minor": None}),
    ("capture", {"hold_id": uuid4()}),
    ("capture", {"reference": "r"}),
    ("refund", {"amount_minor": None}),
    ("refund", {"kind": Kind.CHARGEBACK}),
    ("freeze", {"value": 4}),
    ("limits", {"limits": TierLimits(day_count=1)}),
]


@pytest.mark.parametrize(("name", "changes"), DIFFERENT)
def test_what_is_asked_is_in_the_content(name: str, changes: dict[str, Any]) -> None:
    assert content(GOOD[name]) != content(GOOD[name]._replace(**changes))


@pytest.mark.parametrize("name", ["transfer", "hold"])
def test_where_it_came_from_is_attached_and_no_part_of_the_content(name: str) -> None:
    request = GOOD[name]
    with_origin = request._replace(device="phone", ip="10.0.0.1")
    assert content(request) == content(with_origin)
    packed = new_packer().pack(with_origin)
    terms = TERMS.unpack(packed.attachment)
    assert ATTACHMENTS[packed.record[16]] is TERMS
    digest = origin_digester(KEY)
    assert (terms["device"], terms["ip"]) == (digest("phone"), digest("10.0.0.1"))
    assert b"phone" not in packed.record + packed.attachment, "only a digest leaves the process"
    assert origin_digester(b"another key, of other people")("phone") != digest("phone")


def chain_of(*amounts: int, key: str = "k") -> list[Packed]:
    requests = [Transfer(1, 2, amount, key=f"{key}{at}") for at, amount in enumerate(amounts)]
    linked = [*(request._replace(linked=True) for request in requests[:-1]), requests[-1]]
    return as_chain([new_packer().pack(request) for request in linked])


def test_each_request_of_a_chain_has_the_digest_of_the_whole() -> None:
    digests = {packed.record[-8:] for packed in chain_of(1, 2, 3)}
    assert len(digests) == 1
    assert digests != {packed.record[-8:] for packed in chain_of(1, 2, 4)}
    assert digests != {packed.record[-8:] for packed in chain_of(1, 2)}
    assert digests != {packed.record[-8:] for packed in chain_of(1, 2, 3, key="other")}
    [digest] = digests
    assert digest[0] % 2 == 1, "a chain's digest is odd"
    alone = new_packer().pack(Transfer(1, 2, 5, key="k", expect_version=1)).record[-8:]
    assert alone[0] % 2 == 0
    assert any(alone)


def packed_chain(length: int, start: int, *, is_open: bool = False) -> list[Packed]:
    packer = new_packer()
    return [packer.pack(Transfer(1, 2, 5, key=f"{start + n}", linked=is_open or n < length - 1)) for n in range(length)]


def test_a_chain_never_splits_across_batches() -> None:
    alone, chain = packed_chain(1, 0), packed_chain(500, 1000)
    packed = [*alone * 700, *chain, *packed_chain(1024, 5000), *alone]
    outcomes: list[Any] = [None] * len(packed)
    sizes = [[at for at, _ in batch] for batch in batches(packed, outcomes)]
    assert sizes == [[*range(700)], [*range(700, 1200)], [*range(1200, 2224)], [2224]]
    assert set(outcomes) == {None}


def test_a_chain_longer_than_a_batch_and_an_open_one_are_refused_here() -> None:
    long, short, open_one = packed_chain(MAX_BATCH + 1, 0), packed_chain(2, 5000), packed_chain(3, 6000, is_open=True)
    packed = [*long, *short, *open_one]
    outcomes: list[Any] = [None] * len(packed)
    [batch] = batches(packed, outcomes)
    assert [at for at, _ in batch] == [MAX_BATCH + 1, MAX_BATCH + 2]
    statuses = [outcome and outcome.status.value for outcome in outcomes]
    assert statuses == [
        *["CHAIN_TOO_LONG"] * (MAX_BATCH + 1), None, None, "LINKED_FAILED", "LINKED_FAILED", "LINKED_CHAIN_OPEN",
    ]  # fmt: skip


def test_ids_that_are_derived() -> None:
    packer = new_packer()
    capture, void = packer.hold_id_of(ID, "capture"), packer.hold_id_of(ID, "void")
    assert capture != void != packer.hold_id_of(uuid4(), "void")
    assert capture == new_packer().hold_id_of(ID, "capture"), "the same in every engine of the deployment"
    assert capture.version == 8
    changes = {packer.pack(WalletChange(1, Kind.FREEZE, 2)).id for _ in range(3)}
    assert len(changes) == 3, "what sets something is new each time, unless the caller has a key"
    assert packer.pack(WalletChange(1, Kind.FREEZE, 2, key="k")).id == packer.pack(GOOD["transfer"]).id
