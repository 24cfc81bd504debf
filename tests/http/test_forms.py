"""What is no proper request: malformed, oversized, slow, random. It is refused as a problem, never with a 500."""

from __future__ import annotations

import os
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import orjson
import pytest

from gateway.http.app import MAX_BODY_BYTES
from gateway.http.routes import OPERATIONS
from gateway.http.server import MAX_HEADER_BYTES
from tests.fixtures.http import Client, HttpWorld

FUZZ = int(os.environ.get("HOTLEDGER_HTTP_FUZZ", "3000"))
WITH_METADATA = b'{"debit_wallet_id":1,"credit_wallet_id":2,"amount_minor":1,"metadata":'
WRONG_AMOUNTS = (0, -1, 1.5, 2**53, True, None, "", "0", "1.5", "-1", "９", "9" * 30, [], {}, "9007199254740992")
GOOD = {"debit_wallet_id": 1, "credit_wallet_id": 2, "amount_minor": 1}


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b"{}",
        b'{"debit_wallet_id":1,"credit_wallet_id":2,"amount_minor":1,"reference":"\xff"}',
        b'{"debit_wallet_id":1,"credit_wallet_id":2,"amount_minor":1,"reference":"\\ud800"}',
        b'{"debit_wallet_id":1,"credit_wallet_id":2,"amount_minor":1,"metadata":'
        + b"[" * 20_000
        + b"]" * 20_000
        + b"}",
        b'{"debit_wallet_id":1,"credit_wallet_id":2,"amount_minor":1,"metadata":' + b'{"a":' * 500 + b"1" + b"}" * 501,
        WITH_METADATA + b'{"a":"' + b"x" * 3000 + b'"}}',
        WITH_METADATA + b'{"a":"\\u0000"}}',
        WITH_METADATA + b'{"a":1e999}}',
        orjson.dumps(GOOD | {"unknown": 1}),
        *(
            orjson.dumps(GOOD | {"amount_minor": value})
            for value in (
                0,
                -1,
                1.5,
                2**53,
                True,
                None,
                "",
                "0",
                "1.5",
                "-1",
                "９",
                "9" * 30,
                [],
                {},
                "9007199254740992",
            )
        ),
        *(orjson.dumps(GOOD | {"debit_wallet_id": value}) for value in (0, -1, 2**63, "9" * 19, "x", 1.0, None)),
        orjson.dumps(GOOD | {"currency": "usd"}),
        orjson.dumps(GOOD | {"reference": ""}),
        orjson.dumps(GOOD | {"reference": "x" * 65}),
        orjson.dumps(GOOD | {"reference": "a\0b"}),
    ],
)
def test_malformed_bodies(world: HttpWorld, raw: bytes) -> None:
    answer = world.operator.post("/v1/payments", raw=raw, id=world.new_name())
    assert (answer.status, answer.code) == (400, "INVALID_REQUEST"), answer
    assert answer.json["field"]
    assert answer.json["bound"]


def test_the_field_is_named(world: HttpWorld) -> None:
    answer = world.operator.post("/v1/payments", GOOD | {"amount_minor": 2**53}, id="x").json
    assert (answer["field"], answer["bound"]) == ("amount_minor", "Expected `int` <= 9007199254740991")
    items = {"transfers": [GOOD, GOOD | {"amount_minor": "9007199254740992"}]}
    answer = world.operator.post("/v1/transfers/batch", items, id="x").json
    assert answer["field"] == "transfers[1].amount_minor"


@pytest.mark.parametrize("name", [None, b"", b"x" * 256, b"\xff"])
def test_idempotency_keys(world: HttpWorld, name: bytes | None) -> None:
    headers = {} if name is None else {"Idempotency-Key": name.decode("latin-1")}
    answer = world.operator.post("/v1/payments", GOOD, headers=headers)
    assert (answer.code, answer.json["field"]) == ("INVALID_REQUEST", "Idempotency-Key")


def test_headers(world: HttpWorld) -> None:
    wrong = world.operator.post("/v1/payments", GOOD, id="x", headers={"Content-Type": "text/plain"})
    assert (wrong.status, wrong.code) == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert (
        world.operator.post("/v1/payments", GOOD, id="x", headers={"Prefer": "durability=no"}).json["field"] == "Prefer"
    )
    given = world.operator.get("/v1/tiers/1", headers={"X-Request-Id": "abc-1"})
    assert given.headers["x-request-id"] == "abc-1"
    made = world.operator.get("/v1/tiers/1", headers={"X-Request-Id": "no good"})
    assert made.headers["x-request-id"] not in ("", "no good")
    charset = {"Content-Type": "application/json; charset=utf-8"}
    assert world.operator.post("/v1/payments", GOOD, id="x", headers=charset).code == "DEBIT_WALLET_NOT_FOUND"


def test_addresses_and_methods(world: HttpWorld) -> None:
    for path in ("/", "/v1", "/v1/wallets/x", "/v1/wallets/0", "/v1/wallets/-1", "/v1/transfers/x", "/v1/tiers/70000"):
        assert world.operator.get(path).code == "NOT_FOUND", path
    answer = world.operator("DELETE", "/v1/tiers/1")
    assert (answer.status, answer.code) == (405, "METHOD_NOT_ALLOWED")
    assert "PUT" in answer.headers["allow"]


def test_oversized(world: HttpWorld) -> None:
    big = world.operator.post("/v1/payments", raw=b" " * (MAX_BODY_BYTES + 1), id="x")
    assert (big.status, big.code) == (413, "TOO_LARGE")
    fits = world.operator.post("/v1/payments", raw=orjson.dumps(GOOD).ljust(MAX_BODY_BYTES), id="x")
    assert fits.code == "DEBIT_WALLET_NOT_FOUND"
    head = request_head(world, "Transfer-Encoding: chunked")
    assert b" 413 " in talk(world, head + (b"2000\r\n" + b" " * 0x2000 + b"\r\n") * 20 + b"0\r\n\r\n")
    assert b" 431 " in talk(world, request_head(world, "X-Big: " + "x" * MAX_HEADER_BYTES * 4))


def request_head(world: HttpWorld, *headers: str) -> bytes:
    lines = (
        "POST /v1/payments HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {world.keys['operator']}",
        "Content-Type: application/json",
        "Idempotency-Key: slow",
        *headers,
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def talk(world: HttpWorld, sent: bytes) -> bytes:
    """What comes back until the connection ends, or has answered."""
    with socket.create_connection(("127.0.0.1", world.port), timeout=60) as connection:
        try:
            connection.sendall(sent)
            return connection.recv(65536)
        except ConnectionError:
            return b""


def test_slow_clients_are_let_go(world: HttpWorld) -> None:
    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        headers = pool.submit(talk, world, b"POST /v1/payments HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        body = pool.submit(talk, world, request_head(world, "Content-Length: 100") + b'{"a":')
        assert b" 408 " in body.result()
        assert headers.result() == b"" or b" 408 " in headers.result()
    assert time.monotonic() - began < 50


class Fuzz:
    """Random requests, the same for the same seed: near enough to proper ones to get far."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def value(self, depth: int = 0) -> Any:
        draw = self.draw
        plain = [
            None, True, 0, -1, 1, 2, 7, 2**31, 2**53 - 1, 2**53, 2**63 - 1, 2**63, 10**30, 1.5, 1e300, "", "1", "0",
            "9007199254740991", "x" * 300, "USD", "\0", "\ud83d\ude00", "é", "2026-01-01T00:00:00Z", "TRANSFER",
            "00000000-0000-0000-0000-000000000000", "0197b2a1-5c3e-7f00-8a11-000000000015", "=1+1", "' OR 1=1 --",
        ]  # fmt: skip
        if depth < 3 and draw.random() < 0.2:
            return [self.value(depth + 1) for _ in range(draw.randrange(4))]
        if depth < 3 and draw.random() < 0.2:
            return {draw.choice(["a", "", "b" * 50]): self.value(depth + 1) for _ in range(draw.randrange(4))}
        return draw.choice(plain)

    def body(self, fields: list[str]) -> bytes:
        draw = self.draw
        if draw.random() < 0.05:
            return draw.randbytes(draw.randrange(60))
        chosen = {name: self.value() for name in fields if draw.random() < 0.8}
        likely = {"wallet_id": 1, "debit_wallet_id": 1, "credit_wallet_id": 2, "amount_minor": 1, "currency": "USD"}
        likely |= {"psp_reference": "r", "owner_id": 7, "transfer_id": "0197b2a1-5c3e-7f00-8a11-000000000015"}
        chosen |= {name: value for name, value in likely.items() if name in fields and draw.random() < 0.9}
        if draw.random() < 0.1:
            chosen[draw.choice(["x", "amount", "\ud83d\ude00"])] = self.value()
        return _json(chosen)

    def request(self) -> tuple[str, str, bytes | None, dict[str, str]]:
        draw = self.draw
        operation = draw.choice(OPERATIONS)
        id = draw.choice(["0197b2a1-5c3e-7f00-8a11-000000000015", str(draw.randrange(99)), "%00", "x"])
        path = operation.path.format(
            wallet_id=draw.choice([1, 2, 3, 0, -5, 2**63, "x", "%ff"]), id=id, tier=draw.choice([0, 1, 65535, 65536])
        )
        if operation.query is not None or draw.random() < 0.1:
            names = list(operation.query.__struct_fields__) if operation.query else ["a"]
            pairs = [(draw.choice(names), self.value(9)) for _ in range(draw.randrange(4))]
            path += "?" + "&".join(f"{quote(name)}={quote(str(value), errors='replace')}" for name, value in pairs)
        headers = {"Idempotency-Key": draw.choice(["k", f"k{draw.randrange(10**9)}", "x" * 255])}
        if draw.random() < 0.2:
            headers["Prefer"] = draw.choice(["durability=accepted", "durability=x", "return=minimal", ",;=="])
        if draw.random() < 0.05:
            headers["Authorization"] = draw.choice(["", "Bearer", "Bearer x", "Basic eA==", "Bearer hl_0_0"])
        method = operation.method if draw.random() < 0.95 else draw.choice(["GET", "PUT", "PATCH", "DELETE", "HEAD"])
        body = self.body(list(operation.body.__struct_fields__)) if operation.body else None
        return method, path, body, headers


def _json(value: Any) -> bytes:
    """With integers that orjson refuses."""
    import json

    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


@pytest.mark.timeout(3600)
def test_random_requests_never_break_it(world: HttpWorld) -> None:
    for wallet_id in (1, 2):
        world.operator.post("/v1/wallets", {"wallet_id": wallet_id, "owner_id": 7, "currency": "USD"})
    world.operator.post("/v1/top-ups", {"wallet_id": 1, "amount_minor": 10**9}, id="fuzz funds")
    fuzz = Fuzz(20261124)
    clients = [world.client("operator"), world.client("owner 7")]
    statuses: dict[int, int] = {}
    for _ in range(FUZZ):
        method, path, body, headers = fuzz.request()
        if "min_sequence" in path:  # it would only wait
            continue
        client: Client = fuzz.draw.choice(clients)
        answer = client(method, path, raw=body, headers=headers)
        assert answer.status != 500, (method, path, body, headers, answer)
        if answer.status >= 400 and method != "HEAD" and not path.startswith("/health"):
            assert answer.code
        statuses[answer.status] = statuses.get(answer.status, 0) + 1
    assert statuses.keys() >= {200, 201, 400, 403, 404, 422}, statuses
    assert world.operator.get("/health/ready").status == 200
