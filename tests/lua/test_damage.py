"""Each key and each field damaged in turn: the answer is an error, nothing is written, the server lives on."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any, NamedTuple

import pytest
import redis

from engine.domain.limits import DAY_MS, Rule
from engine.domain.transfer import HoldState, Kind
from engine.wire import (
    ANSWER,
    ATTEMPTS,
    HOLD,
    IDEMPOTENCY,
    KEPT,
    KNOWN_DEVICE,
    LAYOUT_VERSION,
    META,
    TIER_LIMITS,
    USAGE,
    WALLET,
    Layout,
)
from tests.fixtures.shard import (
    Asked,
    ShardDriver,
    altered,
    capture_record,
    changed,
    hold_record,
    opening_record,
    reference_record,
    request_record,
    terms,
    tier_limits,
    tier_record,
    wallet_change,
)
from tests.lua.books import assert_sound
from tests.lua.steps import OK, run

NAN, INFINITY = float("nan"), float("inf")
BEYOND = 2.0**53
NO_NUMBER = (NAN, INFINITY, -INFINITY, BEYOND, 0.5)
NO_COUNT = (*NO_NUMBER, -1.0)

DEVICE, IP = b"device-1", b"address1"
LIMITS = tier_limits(device_attempts=50, ip_attempts=50, device_wallets=9, new_device_amount=500)


def by_device(number: int, amount: float = 1, device: bytes = DEVICE, ip: bytes = IP, **fields: Any) -> Asked:
    return request_record(number, amount=amount, attached=terms(device=device, ip=ip), **fields)


@pytest.fixture
def rich(clocked: ShardDriver) -> ShardDriver:
    """Something in every key: wallet 1 in tier 1 with a known device and attempts; hold 100 open, 101 captured;
    transfer 110 refunded in part; a refused movement."""
    run(
        clocked,
        [
            (tier_record(120, 1, LIMITS), OK),
            (wallet_change(121, Kind.SET_TIER, 1, 1), OK),
            (by_device(122), OK),
            (hold_record(100, expires_in_ms=1000), OK),
            (hold_record(101), OK),
            (capture_record(123, 101), OK),
            (request_record(110, Kind.PAYMENT), OK),
            (reference_record(124, Kind.REFUND, 110, 10), OK),
            (by_device(125, 499, debit=2, credit=1), "INSUFFICIENT_FUNDS"),
        ],
        at_once=True,
    )
    return clocked


ORDINARY = request_record(1, debit=3, credit=4 - 2, amount=1)
"""What would be written if the batch were not refused as a whole."""

EVERYTHING = [
    ORDINARY,
    by_device(2),
    by_device(3, 1, b"device-2", b"address2"),
    capture_record(4, 100, 1, final=False),
    capture_record(5, 101),
    reference_record(6, Kind.REFUND, 110, 1),
    tier_record(7, 2),
    request_record(8, debit=2, credit=3, amount=10**6),
    request_record(110, Kind.PAYMENT),
]
"""Reads, and would write, every key."""


@contextmanager
def damaged(shard: ShardDriver, key: bytes) -> Iterator[None]:
    """Whatever the block does to the key is undone after it."""
    before = shard.redis.dump(key)
    yield
    shard.redis.delete(key)
    if before:
        shard.redis.restore(key, 0, before)


def assert_refused(
    shard: ShardDriver, records: Sequence[bytes] = (ORDINARY,), word: str = "CORRUPT", **options: Any
) -> None:
    before = shard.image()
    with pytest.raises(redis.ResponseError, match=rf"^({word}) "):
        shard.post(records, **options)
    assert shard.image() == before
    assert shard.redis.ping()


class Spot(NamedTuple):
    """A packed record: of a string key from `at` on, or under a field of a hash. damage: (field, value)s."""

    name: str
    key: Callable[[ShardDriver], bytes]
    layout: Layout
    damage: Sequence[tuple[str, Any]]
    field: bytes | None = None
    at: int = 0

    def read(self, shard: ShardDriver) -> bytes:
        key = self.key(shard)
        found = shard.redis.get(key) if self.field is None else shard.redis.hget(key, self.field)
        return bytes(found)

    def write(self, shard: ShardDriver, packed: bytes) -> None:
        if self.field is None:
            shard.redis.set(self.key(shard), packed)
        else:
            shard.redis.hset(self.key(shard), self.field, packed)


def number(n: int) -> bytes:
    return n.to_bytes(16, "big")


WALLET_DAMAGE: list[tuple[str, Any]] = [
    *product(["layout"], (0, 1, LAYOUT_VERSION + 1, 255)),
    *product(["flags"], (3, 9, 16, 255)),
    *product(["available"], NO_NUMBER),
    *product(("locked", "version", "overdraft_limit"), NO_COUNT),
    ("version", 0.0),
    *product(["currency"], (b"\0" * 8, b"us\0\0\0\0\0\0", b"US\0D\0\0\0\0", b"US\0\0\0\0\0\0")),
]
HOLD_DAMAGE: list[tuple[str, Any]] = [
    *product(["layout"], (0, 1, LAYOUT_VERSION + 1, 255)),
    *product(["purpose"], (0, 5, 7, 255)),
    *product(["review"], (3, 255)),
    *product(("remaining", "captured", "expires_at_ms"), NO_COUNT),
]
SPOTS = [
    Spot("meta", lambda s: s.keys.meta, META, [
        *product(["layout"], (0, 9)),
        *product(("epoch", "sequence", "time_ms", "persisted", "generation", "generation_sequence"), NO_COUNT),
        *product(("epoch", "generation"), (0.0,)),
        *product(["hash"], (b"z" * 40, b"0" * 39 + b"\0")),
        *product(("persisted", "generation_sequence"), (10.0**9,)),
    ]),
    Spot("debit", lambda s: s.keys.wallet(3), WALLET, [*WALLET_DAMAGE, ("tier", 1)]),
    Spot("credit", lambda s: s.keys.wallet(2), WALLET, [*WALLET_DAMAGE, ("tier", 1)]),
    Spot("wallet in a tier", lambda s: s.keys.wallet(1), WALLET,
         [*WALLET_DAMAGE, *product(["tier"], (0, 9, 65535))]),
    Spot("usage", lambda s: s.keys.wallet(1), USAGE,
         [*product(("window", "day_amount", "hour_before", "hour_amount", "debt"), NO_COUNT)], at=WALLET.size),
    Spot("open hold", lambda s: s.keys.holds, HOLD, [
        *HOLD_DAMAGE, *product(["state"], (1, 2, 3, 4, 255)), ("remaining", 0.0),
        ("debit", 77), ("credit", 77), ("debit", 2), ("credit", 1), ("debit", 4), ("credit", 4), ("remaining", 101.0),
    ], number(100)),
    Spot("ended hold", lambda s: s.keys.resolved_holds(1), HOLD,
         [*HOLD_DAMAGE, *product(["state"], (0, 4, 255)), ("remaining", 5.0)], number(101)),
    Spot("refunded", lambda s: s.keys.refunded(1), Layout("TOTAL", (("total", "d"),)),
         [*product(["total"], NO_COUNT)], number(110)),
    Spot("tier", lambda s: s.keys.tiers, TIER_LIMITS, [
        *product(["layout"], (0, 1, LAYOUT_VERSION + 1, 255)), *product(["debt_first"], (2, 255)),
        *product([name for name, code in TIER_LIMITS.fields if code == "d"], NO_COUNT),
        ("window_ms", 0.0), ("attempts_window_ms", 0.0), ("attempts_window_ms", DAY_MS + 1.0), ("device_wallets", 17.0),
    ], struct.pack("<H", 1)),
    *[
        Spot(f"attempts of {kind}", lambda s: s.keys.attempts(s.server_ms() // DAY_MS), ATTEMPTS,
             [*product(("window", "before", "count"), NO_COUNT)],
             kind + digest + struct.pack("<d", TIER_LIMITS.unpack(LIMITS)["attempts_window_ms"]))
        for kind, digest in ((b"d", DEVICE), (b"i", IP))
    ],
    Spot("known device", lambda s: s.keys.known_devices(1), KNOWN_DEVICE, [*product(["since_ms"], NO_COUNT)]),
]  # fmt: skip


@pytest.mark.parametrize("spot", SPOTS, ids=[spot.name.replace(" ", "_") for spot in SPOTS])
def test_a_damaged_field(rich: ShardDriver, spot: Spot) -> None:
    # A device is only looked for if the amount is above what a new one may move.
    records = [by_device(2, 501), ORDINARY] if spot.layout is KNOWN_DEVICE else EVERYTHING
    whole = spot.read(rich)
    for field, value in spot.damage:
        end = spot.at + spot.layout.size
        spot.write(rich, whole[: spot.at] + changed(spot.layout, whole[spot.at : end], **{field: value}) + whole[end:])
        try:
            assert_refused(rich, records)
        except BaseException as error:
            error.add_note(f"{field} = {value!r}")
            raise
    spot.write(rich, whole)
    rich.post(records)
    assert_sound(rich)


@pytest.mark.parametrize("spot", SPOTS, ids=[spot.name.replace(" ", "_") for spot in SPOTS])
def test_a_record_of_another_size(rich: ShardDriver, spot: Spot) -> None:
    whole = spot.read(rich)
    cuts = [whole[:-1], whole + b"\0", whole[1:], whole[:1]]
    cuts += [] if spot.layout is KNOWN_DEVICE else [b""]  # nothing known is a list of none
    cuts += [whole * 17] if spot.layout is KNOWN_DEVICE else []
    cuts += [whole[: ATTEMPTS.size] + b"wallet" * 4 * 17] if spot.layout is ATTEMPTS else []
    for cut in cuts:
        spot.write(rich, cut)
        assert_refused(rich, EVERYTHING)
    spot.write(rich, whole)
    assert rich.statuses(EVERYTHING)[0] == OK
    assert_sound(rich)


REVIEWED = tier_record(130, 3, tier_limits(max_amount=5, review=[Rule.MAX_AMOUNT]))

# (key, what else is in the batch: nothing that reads another key of the kind)
TYPES: list[tuple[str, Callable[[ShardDriver], bytes], list[Asked]]] = [
    ("meta", lambda s: s.keys.meta, []),
    ("debit", lambda s: s.keys.wallet(3), []),
    ("credit", lambda s: s.keys.wallet(2), []),
    ("opening", lambda s: s.keys.wallet(5), [opening_record(2, 5)]),
    ("journal", lambda s: s.keys.journal, []),
    ("current outcomes", lambda s: s.keys.idempotency(1), []),
    ("previous outcomes", lambda s: s.keys.idempotency(0), []),
    *[(f"{name} hold", key, [hold_record(2, 3, 2, 1, expires_in_ms=5)]) for name, key in [
        ("open", lambda s: s.keys.holds), ("due", lambda s: s.keys.due),
        ("resolved", lambda s: s.keys.resolved_holds(1)), ("once resolved", lambda s: s.keys.resolved_holds(0))]],
    *[(f"{name} void", key, [reference_record(2, Kind.VOID, 100)]) for name, key in [
        ("open", lambda s: s.keys.holds), ("due", lambda s: s.keys.due),
        ("resolved", lambda s: s.keys.resolved_holds(1)), ("once resolved", lambda s: s.keys.resolved_holds(0))]],
    ("refunded", lambda s: s.keys.refunded(1), [reference_record(2, Kind.REFUND, 110, 1)]),
    ("once refunded", lambda s: s.keys.refunded(0), [reference_record(2, Kind.REFUND, 110, 1)]),
    ("tiers", lambda s: s.keys.tiers, [tier_record(2, 7)]),
    ("tiers of a wallet", lambda s: s.keys.tiers, [wallet_change(2, Kind.SET_TIER, 3, 1)]),
    ("tiers of a movement", lambda s: s.keys.tiers, [request_record(2)]),
    ("attempts", lambda s: s.keys.attempts(s.server_ms() // DAY_MS), [by_device(2)]),
    ("yesterday's attempts", lambda s: s.keys.attempts(s.server_ms() // DAY_MS - 1), [by_device(2, 1, b"device-9")]),
    ("known devices", lambda s: s.keys.known_devices(1), [by_device(2)]),
    ("known devices of a new one", lambda s: s.keys.known_devices(3),
     [wallet_change(2, Kind.SET_TIER, 3, 1), by_device(3, debit=3)]),
    ("refused", lambda s: s.keys.declined, [request_record(2, debit=2, credit=3, amount=10**6)]),
    *[(f"{name} review", key, [request_record(2, debit=1, amount=6)]) for name, key in [
        ("open", lambda s: s.keys.holds), ("due", lambda s: s.keys.due),
        ("resolved", lambda s: s.keys.resolved_holds(1)), ("once resolved", lambda s: s.keys.resolved_holds(0))]],
]  # fmt: skip


def test_a_key_of_another_type(rich: ShardDriver) -> None:
    """Whatever a write touches was looked at before the first one, also if nothing else in the batch looks at it."""
    for name, key_of, records in TYPES:
        key = key_of(rich)
        review = "review" in name
        if review:
            run(rich, [(REVIEWED, OK), (wallet_change(131, Kind.SET_TIER, 1, 3), OK)])
        for make in (lambda k: rich.redis.sadd(k, "x"), lambda k: rich.redis.rpush(k, "x")):
            with damaged(rich, key):
                rich.redis.delete(key)
                make(key)
                try:
                    assert_refused(rich, [ORDINARY, *records], "CORRUPT|WRONGTYPE")
                except BaseException as error:
                    error.add_note(name)
                    raise
    assert_sound(rich)


@pytest.mark.parametrize("field", ["sequence", "epoch", "hash"])
def test_a_meta_from_another_history_closes_the_shard(funded: ShardDriver, field: str) -> None:
    assert funded.statuses([request_record(2)]) == [OK]
    funded.set_meta(**{field: b"0" * 40 if field == "hash" else funded.meta()[field] + 1})
    before = funded.image()
    assert funded.statuses([request_record(1)]) == ["SHARD_NOT_OPEN"]
    assert not funded.state().is_open
    assert funded.image() == before


@pytest.mark.parametrize("deployment", [b"other-deployment", b"", b"test-deployment", b"test-deployment!!"])
def test_a_request_for_another_deployment(funded: ShardDriver, deployment: bytes) -> None:
    funded.post([request_record(1)])
    assert_refused(funded, word="FOREIGN", deployment=deployment)
    assert_refused(funded, word="FOREIGN", deployment=deployment, not_after_ms=1)


def test_a_shard_that_became_another_deployments(funded: ShardDriver) -> None:
    funded.set_meta(deployment=b"other-deployment")
    assert_refused(funded, word="FOREIGN")


def test_a_missing_meta(funded: ShardDriver) -> None:
    funded.redis.delete(funded.keys.meta)
    assert_refused(funded)


def test_a_missing_wallet_is_not_found(funded: ShardDriver) -> None:
    funded.redis.delete(funded.keys.wallet(2))
    before = funded.image()
    assert funded.statuses([request_record(1)]) == ["CREDIT_WALLET_NOT_FOUND"]
    assert funded.image() | {funded.keys.declined: None} == before | {funded.keys.declined: None}


@pytest.mark.parametrize("wallet_id", [1, 2])
@pytest.mark.parametrize(
    "record",
    [
        capture_record(2, 100),
        reference_record(2, Kind.RAISE_HOLD, 100, 1),
        reference_record(2, Kind.VOID, 100),
        reference_record(2, Kind.EXPIRE_HOLD, 100),
        reference_record(2, Kind.APPROVE_HOLD, 102),
    ],
    ids=["capture", "raise", "void", "expire", "approve"],
)
def test_a_hold_whose_wallet_is_missing(rich: ShardDriver, record: Asked, wallet_id: int) -> None:
    limits = tier_limits(max_amount=5, review=[Rule.MAX_AMOUNT])
    run(rich, [(tier_record(131, 1, limits), OK), (request_record(102, amount=6), "UNDER_REVIEW")])
    if record[17] == Kind.EXPIRE_HOLD:
        rich.pass_time(1000)
    rich.redis.delete(rich.keys.wallet(wallet_id))
    assert_refused(rich, [request_record(1, debit=3, credit=9, amount=1), record])


@pytest.mark.parametrize("locked", [0.0, 99.0])
@pytest.mark.parametrize("kind", [Kind.CAPTURE, Kind.VOID, Kind.EXPIRE_HOLD])
def test_less_locked_than_the_hold_has(rich: ShardDriver, kind: Kind, locked: float) -> None:
    key = rich.keys.wallet(1)
    whole = rich.redis.get(key)
    rich.redis.set(key, changed(WALLET, whole[: WALLET.size], locked=locked) + whole[WALLET.size :])
    if kind is Kind.EXPIRE_HOLD:
        rich.pass_time(1000)
    assert_refused(rich, [ORDINARY, reference_record(2, kind, 100)])


def test_a_hold_lost_from_the_open_ones(rich: ShardDriver) -> None:
    """It is not found; what is due of it is not for post to judge."""
    rich.redis.hdel(rich.keys.holds, number(100))
    before = rich.image()
    assert rich.statuses([capture_record(2, 100), reference_record(3, Kind.VOID, 100)]) == ["HOLD_NOT_FOUND"] * 2
    assert rich.image() == before


def test_a_missing_tier(rich: ShardDriver) -> None:
    rich.redis.delete(rich.keys.tiers)
    for record in (request_record(2), by_device(2), hold_record(2), reference_record(2, Kind.RAISE_HOLD, 100, 1)):
        assert_refused(rich, [ORDINARY, record])
    run(rich, [(ORDINARY, OK), (wallet_change(3, Kind.SET_TIER, 1, 0), OK)])


def test_a_missing_or_shortened_journal(funded: ShardDriver) -> None:
    journal, sequence = funded.keys.journal, funded.meta()["sequence"]
    funded.redis.xdel(journal, f"{sequence}-0")
    assert funded.statuses([request_record(1)]) == [OK], "its last id still stands"
    funded.redis.delete(journal)
    assert_refused(funded)
    with pytest.raises(redis.ResponseError, match="CORRUPT"):
        funded.open()


def test_a_foreign_entry_in_the_journal(funded: ShardDriver) -> None:
    funded.redis.xadd(funded.keys.journal, {"a": "b"}, id=f"{funded.meta()['sequence'] + 5}-0")
    assert_refused(funded)
    funded.redis.xadd(funded.keys.journal, {"a": "b"}, id=f"{funded.meta()['sequence'] + 6}-7")
    assert_refused(funded)


def test_a_side_stream_that_takes_no_more(funded: ShardDriver) -> None:
    """It is best effort: what was accepted stays accepted."""
    funded.redis.xadd(funded.keys.declined, {"d": b""}, id=f"{2**64 - 1}-{2**64 - 1}")
    assert funded.statuses([request_record(1), request_record(2, amount=10**6)]) == [OK, "INSUFFICIENT_FUNDS"]
    assert_sound(funded)


OUTCOME_DAMAGE: list[tuple[str, Any]] = [
    *product(["status"], (2, 4, 8, 10, 26, 40, 42, 48, 49, 51, 55, 56, 58, 62, 64, 66, 99, 101, 254, 255)),
    *product(("debit_available", "credit_available", "moved"), NO_NUMBER),
    *product(["sequence"], (*NO_COUNT, 10.0**6)),
    *product(["replayed"], (1, 255)),
    *product(["kind"], (0, 13, 34, 255)),
    *product(["asked"], NO_COUNT),
]


def _damaged_outcome(packed: bytes, field: str, value: Any) -> bytes:
    """asked: the amount in the content."""
    answer, content = packed[: ANSWER.size], packed[ANSWER.size :]
    if field == "kind":
        return answer + bytes([value]) + content[1:]
    if field == "asked":
        return answer + content[:20] + struct.pack("<d", value) + content[28:]
    return changed(ANSWER, answer, **{field: value}) + content


@pytest.mark.parametrize("generation", ["current", "previous"])
@pytest.mark.parametrize("kept", [OK, "INSUFFICIENT_FUNDS"])
def test_a_damaged_outcome(funded: ShardDriver, kept: str, generation: str) -> None:
    request = request_record(1, amount=100 if kept == OK else 10**6)
    assert funded.statuses([request]) == [kept]
    if generation == "previous":
        assert funded.call("hotledger_end_generation", 1, 1) == 1
    key, transfer_id = funded.keys.idempotency(1), request[:16]
    whole = funded.redis.hget(key, transfer_id)
    assert len(whole) == KEPT.size
    damage = [(f"{name} {value}", _damaged_outcome(whole, name, value)) for name, value in OUTCOME_DAMAGE]
    damage += [("size", packed) for packed in (whole[:-1], b"", whole + b"x", whole[1:])]
    for what, packed in damage:
        funded.redis.hset(key, transfer_id, packed)
        for records in ([request_record(2), request], [request_record(2), reference_record(3, Kind.REFUND, 1)]):
            assert_refused(funded, records, word=f"CORRUPT idempotency record: {_named(what)}")
        with pytest.raises(redis.ResponseError, match="^CORRUPT idempotency record: "):
            funded.lookup(2, 1)
    assert funded.statuses([request_record(2)]) == [OK], "the others are not concerned"


def test_an_outcome_that_was_written_whole(funded: ShardDriver) -> None:
    """With a rest that is NUL: it is the same outcome."""
    request = request_record(1)
    first = funded.one(request)
    key = funded.keys.idempotency(1)
    kept = funded.redis.hget(key, request[:16])
    funded.redis.hset(key, request[:16], kept.ljust(IDEMPOTENCY.size, b"\0"))
    assert funded.one(request) == first._replace(replayed=True)
    assert funded.lookup(1)[1] == kept.ljust(IDEMPOTENCY.size, b"\0")
    assert funded.one(altered(request, amount=7.0)).status == "EXISTS_WITH_DIFFERENT_AMOUNT"
    assert_sound(funded)


def _named(what: str) -> str:
    return f"{what.split()[0]}.*" if "asked" not in what else "amount"


def test_what_was_accepted_has_a_sequence(rich: ShardDriver) -> None:
    """A refusal may have been given at sequence 0, but nothing is posted or reviewed there."""
    run(rich, [(REVIEWED, OK), (wallet_change(131, Kind.SET_TIER, 1, 3), OK)])
    key = rich.keys.idempotency(1)
    for request, status in (
        (request_record(2, debit=3, amount=1), OK),
        (request_record(3, amount=6), "UNDER_REVIEW"),
        (request_record(4, debit=2, amount=10**6, credit=3), "INSUFFICIENT_FUNDS"),
    ):
        assert rich.one(request).status == status
        whole = rich.redis.hget(key, request[:16])
        rich.redis.hset(key, request[:16], _damaged_outcome(whole, "sequence", 0.0))
        if status == "INSUFFICIENT_FUNDS":
            assert rich.one(request).status == status
        else:
            assert_refused(rich, [request])


def test_a_capture_whose_hold_is_lost(rich: ShardDriver) -> None:
    """A capture is never remembered longer than its hold."""
    rich.redis.delete(rich.keys.resolved_holds(1))
    assert_refused(rich, [ORDINARY, reference_record(2, Kind.REFUND, 123)])


@pytest.mark.parametrize("version", [0, 1, 3, "x", ""])
def test_an_unknown_wire_version(funded: ShardDriver, version: Any) -> None:
    assert_refused(funded, word="WIRE", version=version)


@pytest.mark.parametrize("not_after_ms", ["soon", "", "nan", "inf", "-inf", "0.5", 2**53])
def test_a_bad_deadline(funded: ShardDriver, not_after_ms: Any) -> None:
    assert_refused(funded, word="INVALID", not_after_ms=not_after_ms)


def test_reads_refuse_damage(rich: ShardDriver) -> None:
    wallet = SPOTS[1].read(rich)
    SPOTS[1].write(rich, wallet[:-1])
    with pytest.raises(redis.ResponseError, match="^CORRUPT wallet"):
        rich.wallets_packed(3)
    SPOTS[1].write(rich, wallet)
    for key in (rich.keys.holds, rich.keys.resolved_holds(1), rich.keys.due):
        with damaged(rich, key):
            rich.redis.delete(key)
            rich.redis.sadd(key, "x")
            with pytest.raises(redis.ResponseError, match="^WRONGTYPE"):
                rich.hold(100)
    rich.redis.hset(rich.keys.holds, number(100), changed(HOLD, bytes(HOLD.size), state=HoldState.OPEN))
    with pytest.raises(redis.ResponseError, match="^CORRUPT hold"):
        rich.hold(100)
