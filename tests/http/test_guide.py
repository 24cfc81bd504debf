"""docs/http.md does what it says: its calls are answered, its Python runs, its bounds and tables are the code's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from gateway.http.app import BODY_TIMEOUT_S, MAX_BATCH_BODY_BYTES, MAX_BODY_BYTES, MAX_QUERY_FIELDS
from gateway.http.keyring import GRACE_S, SCOPES
from gateway.http.ledger import WAIT_S
from gateway.http.routes import OPERATIONS, Who
from gateway.http.server import DRAIN_S, HEADER_TIMEOUT_MS, MAX_CONNECTIONS, MAX_HEADER_BYTES
from tests.fixtures.http import HttpWorld

GUIDE = (Path(__file__).parents[2] / "docs" / "http.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def test_first_wallet_to_first_refund(world: HttpWorld) -> None:
    """The calls of the curl example, then the Python one on the same wallets."""
    shell = re.sub(r"\\\n\s*", "", blocks("sh")[1])
    answers: list[Any] = []
    for line in shell.splitlines():
        if not line.startswith("api localhost") and not line.startswith("api 'localhost"):
            continue
        words = shlex.split(line)
        path = words[1].removeprefix("localhost:8080")
        named = words[words.index("-H") + 1].partition(": ")[2] if "-H" in words else None
        body = words[words.index("-d") + 1] if "-d" in words else None
        if body is not None and "7d12..." in body:
            body = body.replace("7d12...", answers[3]["id"])
        method = "POST" if body else "GET"
        answer = world.operator(method, path, raw=body and body.encode(), id=named)
        assert answer.status in (200, 201), (line, answer)
        answers.append(answer.json)
    assert len(answers) == 7
    assert answers[3]["debit_available_minor"] == 7500
    script = blocks("python")[0].replace("localhost:8080", f"127.0.0.1:{world.port}")
    exec(compile(script, "docs/http.md", "exec"), {"KEY": world.keys["operator"]})
    assert world.available(900) == 2000


def test_the_bounds_are_the_codes() -> None:
    for said, value in (
        ("body 64 KiB (a batch 4 MiB) within 10 s", (MAX_BODY_BYTES, MAX_BATCH_BODY_BYTES, BODY_TIMEOUT_S)),
        ("headers about 32 KiB within 10 s", (MAX_HEADER_BYTES, HEADER_TIMEOUT_MS)),
        ("16,384 connections, queries 20\nparameters", (MAX_CONNECTIONS, MAX_QUERY_FIELDS)),
        ("good for 5 minutes", (GRACE_S,)),
        ("waits for it, 2 s at\nmost", (WAIT_S,)),
        ("(30 s at most)", (DRAIN_S,)),
    ):
        assert said in GUIDE, (said, value)
    assert (MAX_BODY_BYTES, MAX_BATCH_BODY_BYTES, BODY_TIMEOUT_S) == (65536, 4194304, 10)
    assert (MAX_HEADER_BYTES, HEADER_TIMEOUT_MS, MAX_CONNECTIONS, MAX_QUERY_FIELDS) == (32768, 10_000, 16_384, 20)
    assert (GRACE_S, WAIT_S, DRAIN_S) == (300, 2, 30)


def test_its_scopes_and_sides_are_the_route_tables() -> None:
    assert re.findall(r"^\| `(read|write|admin)` \|", GUIDE, re.MULTILINE) == list(SCOPES)
    operators = {one.id for one in OPERATIONS if one.who is Who.OPERATORS and one.scope != "read"}
    assert operators == {
        "changeWallet", "topUp", "confirmTopUp", "failTopUp", "confirmWithdrawal", "failWithdrawal", "chargeBack",
        "approveReview", "rejectReview", "setTier",
    }  # fmt: skip
