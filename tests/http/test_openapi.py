"""The OpenAPI document and the documents about errors are as the code is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from engine import Status
from engine.domain.status import RETRYABLE
from gateway.http import types
from gateway.http.openapi import document, refusals
from gateway.http.problems import HTTP_OF, OWN
from gateway.http.routes import OPERATIONS, Who
from tests.fixtures.http import HttpWorld

ROOT = Path(__file__).parents[2]


def test_every_status_has_its_http_status() -> None:
    assert HTTP_OF.keys() == set(Status)
    for status, http in HTTP_OF.items():
        assert (http == 503) == (status in RETRYABLE), status
        assert (http == 402) == (status is Status.INSUFFICIENT_FUNDS)
        assert (http == 422) or not status.startswith("EXISTS_WITH_DIFFERENT"), status
    assert not OWN.keys() & {status.value for status in Status}


def test_docs_errors_lists_them_all() -> None:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\d{3}) \| (yes|no) \| (.+) \|$", text, re.MULTILINE)
    assert {code: int(http) for code, http, _, _ in rows} == {
        **{status.value: http for status, http in HTTP_OF.items()},
        **{code: own.http for code, own in OWN.items()},
    }
    meanings = {code: meaning for code, _, _, meaning in rows}
    assert all(meanings[code] == own.meaning for code, own in OWN.items())
    retried = {code for code, _, retry, _ in rows if retry == "yes"}
    assert retried >= {status.value for status in RETRYABLE}


def test_the_document_is_complete() -> None:
    found = document()
    assert found["openapi"] == "3.1.0"
    listed = {
        (method, path): operation for path, methods in found["paths"].items() for method, operation in methods.items()
    }
    assert len(listed) == len(OPERATIONS) == len({operation.id for operation in OPERATIONS})
    schemas = found["components"]["schemas"]
    assert set(re.findall(r"#/components/schemas/(\w+)", str(found))) <= schemas.keys()
    for operation in OPERATIONS:
        shown = listed[operation.method.lower(), operation.path]
        assert shown["operationId"] == operation.id
        assert ("security" in shown) == (operation.who is not Who.ANYBODY)
        assert {int(status) for status in shown["responses"]} == {*operation.success, *refusals(operation)}
        names = re.findall(r"{(\w+)}", operation.path)
        assert [one["name"] for one in shown["parameters"] if one["in"] == "path"] == names
        keys = [one["required"] for one in shown["parameters"] if one["name"] == "Idempotency-Key"]
        assert keys == ([operation.needs_id] if operation.needs_id or operation.may_have_id else [])


def test_what_moves_money_needs_an_idempotency_key() -> None:
    moving = {
        "topUp",
        "transfer",
        "pay",
        "withdraw",
        "postBatch",
        "hold",
        "captureHold",
        "raiseHold",
        "refund",
        "chargeBack",
    }
    assert {operation.id for operation in OPERATIONS if operation.needs_id} == moving
    assert all(operation.scope != "read" for operation in OPERATIONS if operation.writes)
    assert all(operation.scope == "read" for operation in OPERATIONS if not operation.writes)


def test_it_is_served_with_its_page(world: HttpWorld) -> None:
    anybody = world.with_key(None)
    assert anybody.get("/openapi.json").json == document()
    page = anybody.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(rb"(src|href)=\"https?:", page.body)
    for path in ("/health/live", "/health/ready"):
        assert anybody.get(path).json == {"status": "ok"}


def test_metrics_are_of_all_workers(world: HttpWorld) -> None:
    def count() -> float:
        text = world.client("reader").get("/metrics").body.decode()
        assert "hotledger_shard_open 1.0" in text
        found = re.findall(r'^hotledger_http_requests_total{operation="listTiers",status="200"} (\S+)$', text, re.M)
        return float(found[0]) if found else 0.0

    world.wallet()
    before = count()
    for _ in range(20):
        assert world.operator.get("/v1/tiers").status == 200
    assert count() == before + 20
    text = world.client("reader").get("/metrics").body.decode()
    for name in ("http_request_seconds_bucket", "outcomes_total", "engine_batches_total", "engine_queued"):
        assert f"hotledger_{name}" in text
    assert "hl_" not in text


def fields_of(answer: Any) -> set[str]:
    return set(answer.__struct_fields__)


def test_problems_say_what_they_may() -> None:
    assert fields_of(types.Problem) >= {"type", "title", "status", "detail", "code", "field", "bound", "instance"}


schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is of the test extra")


@pytest.mark.timeout(900)
def test_schemathesis_finds_nothing(world: HttpWorld) -> None:
    """Requests made from the document get answers that the document has, and no server error."""
    from hypothesis import HealthCheck, Phase, settings
    from schemathesis.checks import CHECKS, load_all_checks

    load_all_checks()
    checks = CHECKS.get_by_names(
        ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]
    )
    schema = schemathesis.openapi.from_dict(document())
    limits = settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path in ("/metrics", "/docs"):
            continue

        @limits
        @__import__("hypothesis").given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            if case.query:
                case.query.pop("min_sequence", None)
            case.headers.pop("Prefer", None)  # nobody has replicas here
            case.headers["Authorization"] = f"Bearer {world.keys['operator']}"
            response = case.call(base_url=f"http://127.0.0.1:{world.port}")
            if response.status_code == 503 and response.headers["content-type"] == "application/problem+json":
                return
            case.validate_response(response, checks=checks)

        ask()


EXAMPLES = int(__import__("os").environ.get("HOTLEDGER_HTTP_EXAMPLES", "8"))
