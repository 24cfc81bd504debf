"""Each key and each field corrupted in turn: the answer is an error, nothing is written, the server lives on."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import redis

from engine.domain.transfer import Kind
from engine.wire import ANSWER, IDEMPOTENCY, MAX_BATCH, REPLY_HEADER, REQUEST, WALLET
from tests.fixtures.shard import NONE, ShardDriver, changed, opening_record, request_record

NAN, INFINITY = float("nan"), float("inf")
BEYOND = 2.0**53

WALLET_DAMAGE: list[tuple[str, Any]] = [
    ("layout", 0),
    ("layout", 2),
    ("flags", 2),
    ("flags", 255),
    ("tier", 1),
    *product(("available", "locked", "version", "overdraft_limit"), (NAN, INFINITY, BEYOND, 0.5)),
    *[(field, -1.0) for field in ("locked", "version", "overdraft_limit")],
    ("version", 0.0),
    ("currency", b"\0" * 8),
    ("currency", b"us\0\0\0\0\0\0"),
    ("currency", b"US\0D\0\0\0\0"),
]

META_DAMAGE: list[tuple[str, Any]] = [
    ("layout", 0),
    ("layout", 9),
    *product(
        ("epoch", "sequence", "time_ms", "persisted", "generation", "generation_sequence"),
        (NAN, INFINITY, -1.0, 0.5, BEYOND),
    ),
    ("epoch", 0.0),
    ("generation", 0.0),
    ("hash", b"z" * 40),
    ("hash", b"0" * 39 + b"\0"),
    ("persisted", 10.0**9),
]


def assert_refused(shard: ShardDriver, word: str = "CORRUPT", **call: Any) -> None:
    before = shard.image()
    with pytest.raises(redis.ResponseError, match=rf"^{word}"):
        shard.post([request_record(1)], **call)
    assert shard.image() == before
    assert shard.redis.ping()


@pytest.mark.parametrize("side", [1, 2])
@pytest.mark.parametrize(("field", "value"), WALLET_DAMAGE)
def test_a_damaged_wallet(funded: ShardDriver, field: str, value: Any, side: int) -> None:
    key = funded.keys.wallet(side)
    funded.redis.set(key, changed(WALLET, funded.redis.get(key), **{field: value}))
    assert_refused(funded)


@pytest.mark.parametrize(("field", "value"), META_DAMAGE)
def test_a_damaged_meta(funded: ShardDriver, field: str, value: Any) -> None:
    funded.set_meta(**{field: value})
    assert_refused(funded)


@pytest.mark.parametrize("field", ["sequence", "epoch", "hash"])
def test_a_meta_from_another_history_closes_the_shard(funded: ShardDriver, field: str) -> None:
    assert funded.statuses([request_record(2)]) == ["POSTED"]
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


@pytest.mark.parametrize("change", [lambda v: v[:-1], lambda v: v + b"\0", lambda _: b"", lambda v: v[1:]])
@pytest.mark.parametrize("which", ["meta", "debit", "credit"])
def test_a_record_of_the_wrong_size(funded: ShardDriver, which: str, change: Callable[[bytes], bytes]) -> None:
    key = {"meta": funded.keys.meta, "debit": funded.keys.wallet(1), "credit": funded.keys.wallet(2)}[which]
    funded.redis.set(key, change(funded.redis.get(key)))
    assert_refused(funded)


@pytest.mark.parametrize("which", ["meta", "debit", "credit", "opening", "journal", "current", "previous"])
def test_a_key_of_the_wrong_type(funded: ShardDriver, which: str) -> None:
    generation = funded.meta()["generation"]
    key = {
        "meta": funded.keys.meta,
        "debit": funded.keys.wallet(1),
        "credit": funded.keys.wallet(2),
        "opening": funded.keys.wallet(5),
        "journal": funded.keys.journal,
        "current": funded.keys.idempotency(generation),
        "previous": funded.keys.idempotency(generation - 1),
    }[which]
    funded.redis.delete(key)
    funded.redis.sadd(key, "x")
    before = funded.image()
    with pytest.raises(redis.ResponseError, match=r"^(CORRUPT|WRONGTYPE)"):
        funded.post([request_record(1), opening_record(2, 5)])
    assert funded.image() == before


def test_a_missing_meta(funded: ShardDriver) -> None:
    funded.redis.delete(funded.keys.meta)
    assert_refused(funded)


def test_a_missing_wallet_is_not_found_and_nothing_is_written(funded: ShardDriver) -> None:
    funded.redis.delete(funded.keys.wallet(2))
    before = funded.image()
    assert funded.statuses([request_record(1)]) == ["CREDIT_WALLET_NOT_FOUND"]
    assert funded.image() == before


def test_a_missing_or_shortened_journal(funded: ShardDriver) -> None:
    journal, sequence = funded.keys.journal, funded.meta()["sequence"]
    funded.redis.xdel(journal, f"{sequence}-0")
    assert funded.statuses([request_record(1)]) == ["POSTED"], "its last id still stands"
    funded.redis.delete(journal)
    assert_refused(funded)
    with pytest.raises(redis.ResponseError, match="CORRUPT"):
        funded.open()


def test_a_foreign_entry_in_the_journal(funded: ShardDriver) -> None:
    funded.redis.xadd(funded.keys.journal, {"a": "b"}, id=f"{funded.meta()['sequence'] + 5}-0")
    assert_refused(funded)
    funded.redis.xadd(funded.keys.journal, {"a": "b"}, id=f"{funded.meta()['sequence'] + 6}-7")
    assert_refused(funded)


def test_a_damaged_outcome(funded: ShardDriver) -> None:
    funded.post([request_record(1)])
    key = funded.keys.idempotency(1)
    [record] = funded.redis.hmget(key, [request_record(1)[:16]])
    assert len(record) == IDEMPOTENCY.size
    for value in (record[:-1], b"", record + b"x"):
        funded.redis.hset(key, request_record(1)[:16], value)
        assert_refused(funded)


OUTCOME_DAMAGE: list[tuple[str, Any]] = [
    *[("status", status) for status in (1, 2, 4, 10, 26, 40, 50, 62, 64, 99, 101, 254, 255)],
    *product(("sequence", "debit_available", "credit_available", "amount"), (NAN, INFINITY, -INFINITY, BEYOND, 0.5)),
    ("sequence", -5.0),
    ("sequence", 10.0**6),
    ("amount", -1.0),
    ("replayed", 1),
    ("replayed", 255),
]


@pytest.mark.parametrize("generation", ["current", "previous"])
@pytest.mark.parametrize("kept", ["POSTED", "INSUFFICIENT_FUNDS"])
@pytest.mark.parametrize(("field", "value"), OUTCOME_DAMAGE)
def test_a_damaged_field_of_an_outcome(funded: ShardDriver, field: str, value: Any, kept: str, generation: str) -> None:
    request = request_record(1, amount=100 if kept == "POSTED" else 10**6)
    assert funded.statuses([request]) == [kept]
    if generation == "previous":
        assert funded.call("hotledger_end_generation", 1, 1) == 1
    key, transfer_id = funded.keys.idempotency(1), request[:16]
    funded.redis.hset(key, transfer_id, changed(IDEMPOTENCY, funded.redis.hget(key, transfer_id), **{field: value}))
    before = funded.image()
    for _ in range(2):
        with pytest.raises(redis.ResponseError, match=f"^CORRUPT idempotency record: {field}"):
            funded.post([request_record(2), request])
    with pytest.raises(redis.ResponseError, match=f"^CORRUPT idempotency record: {field}"):
        funded.lookup(2, 1)
    assert funded.image() == before
    assert funded.statuses([request_record(2)]) == ["POSTED"], "the others are not concerned"


def test_what_was_posted_has_a_sequence(funded: ShardDriver) -> None:
    """A refusal may have been given at sequence 0, but nothing is posted there."""
    key = funded.keys.idempotency(1)
    for request, status in ((request_record(1), "POSTED"), (request_record(2, amount=10**6), "INSUFFICIENT_FUNDS")):
        funded.post([request])
        funded.redis.hset(key, request[:16], changed(IDEMPOTENCY, funded.redis.hget(key, request[:16]), sequence=0.0))
        if status == "POSTED":
            assert_refused(funded)
        else:
            assert funded.statuses([request]) == [status]


@pytest.mark.parametrize(
    "records",
    [
        b"",
        b"x",
        request_record(1)[:-1],
        request_record(1) + b"x",
        request_record(1) * (MAX_BATCH + 1),
        request_record(1, kind=0),
        request_record(1, kind=5),
        request_record(1, kind=Kind.END_GENERATION),
        request_record(1, kind=255),
        request_record(1, flags=1),
        request_record(1, details_size=5),
        opening_record(1, 5, currency=NONE),
        opening_record(1, 5, currency=b"usdollar"),
        request_record(1, Kind.OPEN_WALLET, 5, 1, 0, flags=2, currency=b"USD\0\0\0\0\0"),
    ],
)
def test_requests_that_no_engine_sends(funded: ShardDriver, records: bytes) -> None:
    before = funded.image()
    with pytest.raises(redis.ResponseError, match="^INVALID"):
        funded.post_raw(records)
    assert funded.image() == before


def test_details_that_do_not_add_up(funded: ShardDriver) -> None:
    before = funded.image()
    with pytest.raises(redis.ResponseError, match="^INVALID"):
        funded.post_raw(request_record(1, details_size=5), b"1234")
    assert funded.image() == before


@pytest.mark.parametrize("version", [0, 2, "x", ""])
def test_an_unknown_wire_version(funded: ShardDriver, version: Any) -> None:
    assert_refused(funded, word="WIRE", version=version)


@pytest.mark.parametrize("not_after_ms", ["soon", "", "nan", "inf", "-inf", "0.5", 2**53])
def test_a_bad_deadline(funded: ShardDriver, not_after_ms: Any) -> None:
    assert_refused(funded, word="INVALID", not_after_ms=not_after_ms)


def test_random_bytes(funded: ShardDriver) -> None:
    """Whatever comes in: an error or answers, conservation, and a server that is alive."""
    chance = random.Random(7)
    for _ in range(300):
        count = chance.randint(1, 20)
        records = bytearray(b"".join(request_record(chance.getrandbits(100)) for _ in range(count)))
        for _ in range(chance.randint(1, 30)):
            records[chance.randrange(len(records))] = chance.randrange(256)
        before = funded.image()
        if chance.random() < 0.2:
            records = bytearray(chance.randbytes(chance.randint(0, 500)))
        try:
            reply = funded.post_raw(bytes(records))
        except redis.ResponseError as error:
            refused = str(error)
        else:
            assert len(reply) == REPLY_HEADER.size + ANSWER.size * (len(records) // REQUEST.size)
            continue
        assert refused.startswith("INVALID")
        assert funded.image() == before
    packed = [funded.redis.get(key) for key in funded.redis.scan_iter(match=b"{s0}:w:*")]
    balances = [WALLET.unpack(wallet) for wallet in packed]
    for currency in {balance["currency"] for balance in balances}:
        assert sum(balance["available"] for balance in balances if balance["currency"] == currency) == 0


def test_reads_refuse_bad_input_and_a_closed_shard(funded: ShardDriver) -> None:
    for function, size in (("hotledger_wallets", 8), ("hotledger_lookup", 16)):
        for packed in (b"", b"x" * (size - 1), b"x" * (size * (MAX_BATCH + 1))):
            with pytest.raises(redis.ResponseError, match="^INVALID"):
                funded.call(function, packed)
    funded.call("hotledger_close")
    with pytest.raises(redis.ResponseError, match="^CLOSED"):
        funded.call("hotledger_wallets", struct.pack("<q", 1))
    with pytest.raises(redis.ResponseError, match="^CLOSED"):
        funded.call("hotledger_lookup", b"i" * 16)
