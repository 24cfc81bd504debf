"""What moves money, over HTTP: outcomes, replays, refusals, batches, holds, two steps, refunds, reviews, tiers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.fixtures.http import Client, HttpWorld, Reply


def pay(world: HttpWorld, debit: int, credit: int, amount: Any, *, id: str | None = None, **more: Any) -> Reply:
    body = {"debit_wallet_id": debit, "credit_wallet_id": credit, "amount_minor": amount} | more.pop("body", {})
    return world.operator.post("/v1/payments", body, id=id or world.new_name(), **more)


def test_a_wallet_is_opened_once(world: HttpWorld) -> None:
    body = {"wallet_id": "5100001", "owner_id": 7, "currency": "EUR"}
    first, again = (world.operator.post("/v1/wallets", body) for _ in range(2))
    assert (first.status, again.status) == (201, 201)
    assert first.body == again.body
    assert ("idempotent-replayed" in first.headers, again.headers["idempotent-replayed"]) == (False, "true")
    other = world.operator.post("/v1/wallets", body | {"owner_id": 8})
    assert (other.status, other.code) == (422, "EXISTS_WITH_DIFFERENT_OWNER")
    shown = world.operator.get("/v1/wallets/5100001").json
    assert (shown["currency"], shown["owner_id"], shown["available_minor"]) == ("EUR", 7, 0)


@pytest.mark.parametrize("path", ["/v1/payments", "/v1/transfers"])
def test_a_replay_is_the_same_answer(world: HttpWorld, path: str) -> None:
    debit, credit = world.wallet(funds=100), world.wallet(8)
    body = {"debit_wallet_id": debit, "credit_wallet_id": str(credit), "amount_minor": "60", "metadata": {"a": [1]}}
    name = f"naïve ключ {world.new_name()}"
    first, again = (
        world.operator.post(path, body, headers={"Idempotency-Key": name.encode().decode("latin-1")}) for _ in "12"
    )
    assert first.status == again.status == 201
    assert first.body == again.body
    assert again.headers["idempotent-replayed"] == "true"
    assert first.json | {"id": 0, "sequence": 0} == {
        "status": "POSTED",
        "id": 0,
        "sequence": 0,
        "amount_minor": 60,
        "debit_available_minor": 40,
        "credit_available_minor": 60,
        "rule": None,
    }
    assert (world.available(debit), world.available(credit)) == (40, 60)


def test_a_refusal_replays_too_with_the_same_body(world: HttpWorld) -> None:
    debit, credit = world.wallet(funds=10), world.wallet()
    name = world.new_name()
    first = pay(world, debit, credit, 60, id=name)
    assert (first.status, first.code, first.json["debit_available_minor"]) == (402, "INSUFFICIENT_FUNDS", 10)
    again = pay(world, debit, credit, 60, id=name)
    assert (again.status, again.body) == (402, first.body)
    assert again.headers["idempotent-replayed"] == "true"
    found = world.operator.get(f"/v1/outcomes?key={name}")
    assert (found.status, found.json["status"]) == (200, "INSUFFICIENT_FUNDS")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"amount_minor": 6}, "EXISTS_WITH_DIFFERENT_AMOUNT"),
        ({"reference": "other"}, "EXISTS_WITH_DIFFERENT_DETAILS"),
        ({"expect_version": 2}, "EXISTS_WITH_DIFFERENT_TERMS"),
    ],
)
def test_other_content_under_a_key_is_422(world: HttpWorld, change: dict[str, Any], code: str) -> None:
    debit, credit, name = world.wallet(funds=10), world.wallet(), world.new_name()
    assert pay(world, debit, credit, 5, id=name).status == 201
    answer = pay(world, debit, credit, 5, id=name, body=change)
    assert (answer.status, answer.code) == (422, code)
    assert world.available(debit) == 5


def test_the_id_depends_on_the_owner_and_not_on_the_key(world: HttpWorld) -> None:
    """So a retry after a rotation of keys is a replay."""
    debit, credit, name = world.wallet(7, funds=10), world.wallet(8), world.new_name()
    other = world.with_key(world.make_key(world.new_name(), "write", owner_id=7))
    body = {"debit_wallet_id": debit, "credit_wallet_id": credit, "amount_minor": 5}
    first = world.client("owner 7").post("/v1/payments", body, id=name)
    again = other.post("/v1/payments", body, id=name)
    assert (again.status, again.body) == (201, first.body)
    assert again.headers["idempotent-replayed"] == "true"
    assert world.available(debit) == 5


def test_a_race_under_one_key_pays_once(world: HttpWorld) -> None:
    debit, credit, name = world.wallet(funds=100), world.wallet(), world.new_name()
    body = {"debit_wallet_id": debit, "credit_wallet_id": credit, "amount_minor": 5}

    def send(_: int) -> Reply:
        client = Client(world.port, world.keys["operator"])
        try:
            return client.post("/v1/payments", body, id=name)
        finally:
            client.close()

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(send, range(48)))
    assert {(answer.status, answer.body) for answer in answers} == {(201, answers[0].body)}
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    assert world.available(debit) == 95


def test_statuses(world: HttpWorld) -> None:
    debit, credit, euros = world.wallet(funds=10), world.wallet(), world.wallet(currency="EUR")
    assert pay(world, debit, 999_999_999, 1).code == "CREDIT_WALLET_NOT_FOUND"
    assert pay(world, debit, debit, 1).code == "SAME_WALLET"
    assert pay(world, debit, euros, 1).code == "CURRENCY_MISMATCH"
    assert pay(world, debit, credit, 1, body={"currency": "EUR"}).code == "CURRENCY_MISMATCH"
    failed = pay(world, debit, credit, 1, body={"expect_version": 999})
    assert (failed.status, failed.code) == (412, "CONDITION_FAILED")
    moved = pay(world, debit, credit, 50, body={"balancing": True})
    assert (moved.status, moved.json["amount_minor"]) == (201, 10)


@pytest.mark.parametrize("level", ["accepted", "persisted"])
def test_durability(world: HttpWorld, level: str) -> None:
    debit, credit = world.wallet(funds=10), world.wallet()
    answer = pay(world, debit, credit, 1, headers={"Prefer": f"respond-async, durability={level}"})
    assert (answer.status, answer.headers["preference-applied"]) == (201, f"durability={level}")
    if level == "persisted":
        with world.ledger() as ledger:
            assert ledger.execute("SELECT FROM transfer WHERE id = %s", (answer.json["id"],)).fetchone() is not None


def test_a_durability_that_cannot_be_known_is_an_unknown_outcome(world: HttpWorld) -> None:
    """There is no replica: the payment is made, and that it would be on one is not known."""
    debit, credit, name = world.wallet(funds=10), world.wallet(), world.new_name()
    answer = pay(world, debit, credit, 1, id=name, headers={"Prefer": "durability=replicated"})
    assert (answer.status, answer.code) == (504, "OUTCOME_UNKNOWN")
    assert world.operator.get(f"/v1/outcomes?key={name}").json["status"] == "POSTED"
    assert answer.json["id"] == world.operator.get(f"/v1/outcomes?key={name}").json["id"]


def test_an_outcome_that_there_is_not(world: HttpWorld) -> None:
    assert world.operator.get("/v1/outcomes?key=never-sent").code == "NOT_APPLIED"


def test_batches(world: HttpWorld) -> None:
    debit, credit, name = world.wallet(funds=10), world.wallet(), world.new_name()
    items = [
        {"debit_wallet_id": debit, "credit_wallet_id": credit, "amount_minor": amount, "kind": kind}
        for amount, kind in ((4, "PAYMENT"), (7, "TRANSFER"), (6, "TRANSFER"))
    ]
    first, again = (world.operator.post("/v1/transfers/batch", {"transfers": items}, id=name) for _ in "12")
    found = [(one["status"], one["http_status"]) for one in first.json["results"]]
    assert found == [("POSTED", 201), ("INSUFFICIENT_FUNDS", 402), ("POSTED", 201)]
    assert world.available(debit) == 0
    assert again.headers["idempotent-replayed"] == "true"
    assert [one | {"replayed": False} for one in again.json["results"]] == first.json["results"]


def test_a_linked_batch_happens_whole_or_not(world: HttpWorld) -> None:
    debit, credit = world.wallet(funds=10), world.wallet()
    items = [{"debit_wallet_id": debit, "credit_wallet_id": credit, "amount_minor": amount} for amount in (4, 7)]
    refused = world.operator.post(
        "/v1/transfers/batch", {"transfers": items, "linked": True}, id=world.new_name()
    ).json["results"]
    assert [one["status"] for one in refused] == ["LINKED_FAILED", "INSUFFICIENT_FUNDS"]
    assert world.available(debit) == 10
    single = world.operator.post(
        "/v1/transfers/batch", {"transfers": items[:1], "linked": True}, id=world.new_name()
    ).json["results"]
    assert single[0]["status"] == "POSTED"


def test_a_batch_of_a_thousand(world: HttpWorld) -> None:
    debit, credit = world.wallet(funds=5000), world.wallet()
    item = {"debit_wallet_id": debit, "credit_wallet_id": credit, "amount_minor": 1}
    done = world.operator.post("/v1/transfers/batch", {"transfers": [item] * 1000}, id=world.new_name())
    assert {one["status"] for one in done.json["results"]} == {"POSTED"}
    assert world.available(credit) == 1000
    assert world.operator.post("/v1/transfers/batch", {"transfers": [item] * 1001}, id="x").code == "INVALID_REQUEST"
    assert world.operator.post("/v1/transfers/batch", {"transfers": []}, id="x").code == "INVALID_REQUEST"


def test_holds(world: HttpWorld) -> None:
    debit, credit = world.wallet(funds=100), world.wallet(8)
    body = {"debit_wallet_id": debit, "credit_wallet_id": credit, "amount_minor": 50, "expires_in_ms": 60_000}
    held = world.operator.post("/v1/holds", body, id=world.new_name())
    assert (held.status, held.json["debit_available_minor"]) == (201, 50)
    path = f"/v1/holds/{held.json['id']}"
    shown = world.operator.get(path).json
    assert (shown["state"], shown["remaining_minor"], shown["purpose"]) == ("OPEN", 50, "PAYMENT")
    assert shown["expires_at"].endswith("Z")
    raised = world.operator.post(f"{path}/raise", {"amount_minor": 10}, id=world.new_name())
    assert raised.json["debit_available_minor"] == 40
    part = world.operator.post(f"{path}/capture", {"amount_minor": 20, "final": False}, id=world.new_name())
    assert (part.status, part.json["credit_available_minor"]) == (201, 20)
    assert world.operator.post(f"{path}/capture", {"amount_minor": 99}, id=world.new_name()).code == "EXCEEDS_HOLD"
    listed = world.operator.get(f"/v1/holds?wallet_id={credit}&min_sequence={part.json['sequence']}").json["holds"]
    assert [(one["id"], one["remaining_minor"], one["captured_minor"]) for one in listed] == [(held.json["id"], 40, 20)]
    first, again = (world.operator.post(f"{path}/void", {}) for _ in "12")
    assert (first.status, again.status, again.headers["idempotent-replayed"]) == (200, 200, "true")
    assert (world.available(debit), world.available(credit)) == (80, 20)
    assert world.operator.post(f"{path}/capture", {}, id=world.new_name()).code == "HOLD_ALREADY_VOIDED"
    assert world.operator.post(f"/v1/holds/{uuid4()}/capture", {}, id=world.new_name()).code == "HOLD_NOT_FOUND"
    assert world.operator.post(f"/v1/holds/{UUID(int=0)}/void").code == "INVALID_REQUEST"


def test_two_steps(world: HttpWorld) -> None:
    wallet = world.wallet()
    body = {"wallet_id": wallet, "amount_minor": 70, "two_step": True, "reference": "card"}
    started = world.operator.post("/v1/top-ups", body, id=world.new_name())
    assert (started.status, world.available(wallet)) == (201, 0)
    pending = world.operator.get(f"/v1/pending?page_size=1000&min_sequence={started.json['sequence']}").json["holds"]
    assert started.json["id"] in [one["id"] for one in pending]
    path = started.json["id"]
    assert world.operator.post(f"/v1/withdrawals/{path}/confirm", {"psp_reference": "r"}).code == "HOLD_NOT_FOUND"
    for _ in "12":
        assert world.operator.post(f"/v1/top-ups/{path}/confirm", {"psp_reference": "psp-1"}).status == 200
    assert world.available(wallet) == 70
    assert world.operator.post(f"/v1/top-ups/{path}/fail", {"reason": "late"}).code == "HOLD_ALREADY_CAPTURED"
    out = {"wallet_id": wallet, "amount_minor": 30, "two_step": True, "expires_in_ms": 60_000}
    leaving = world.client("owner 7").post("/v1/withdrawals", out, id=world.new_name())
    assert (leaving.status, leaving.json["credit_available_minor"], world.available(wallet)) == (201, None, 40)
    assert world.operator.post(f"/v1/withdrawals/{leaving.json['id']}/fail").status == 200
    assert world.available(wallet) == 70
    gone = {"wallet_id": wallet, "amount_minor": 70}
    assert world.client("owner 7").post("/v1/withdrawals", gone, id=world.new_name()).status == 201
    assert world.operator.post("/v1/top-ups", gone | {"expires_in_ms": 5}, id="x").json["field"] == "expires_in_ms"


def test_refunds_and_chargebacks(world: HttpWorld) -> None:
    debit, credit = world.wallet(funds=100), world.wallet(8)
    paid = pay(world, debit, credit, 60).json["id"]
    part = world.operator.post("/v1/refunds", {"transfer_id": paid, "amount_minor": 20}, id=world.new_name())
    rest = world.operator.post("/v1/refunds", {"transfer_id": paid, "reference": "back"}, id=world.new_name())
    assert (part.json["amount_minor"], rest.json["amount_minor"]) == (20, 40)
    more = world.operator.post("/v1/refunds", {"transfer_id": paid}, id=world.new_name())
    assert (more.status, more.code) == (409, "REFUND_EXCEEDS_TRANSFER")
    page = world.operator.get(f"/v1/transfers/{paid}/refunds?page_size=1&min_sequence={rest.json['sequence']}").json
    following = world.operator.get(f"/v1/transfers/{paid}/refunds?cursor={page['next_cursor']}").json
    assert [one["total_minor"] for one in page["refunds"] + following["refunds"]] == [20, 60]
    assert following["next_cursor"] is None
    assert world.operator.get(f"/v1/transfers/{paid}").json["refunded_minor"] == 60
    body = {"wallet_id": debit, "amount_minor": 5}
    bought = world.operator.post("/v1/top-ups", body, id=world.new_name()).json["id"]
    assert pay(world, debit, credit, 105).status == 201
    back = world.operator.post("/v1/chargebacks", {"transfer_id": bought}, id=world.new_name())
    assert (back.status, back.json["debit_available_minor"]) == (201, -5)
    assert world.operator.post("/v1/refunds", {"transfer_id": str(uuid4())}, id=world.new_name()).status == 404


def test_a_wallets_state(world: HttpWorld) -> None:
    debit, credit = world.wallet(funds=10), world.wallet()
    path = f"/v1/wallets/{debit}"
    name = world.new_name()
    both = {"debit_frozen": True, "overdraft_limit_minor": 40}
    first, again = (world.operator("PATCH", path, both, id=name) for _ in "12")
    assert (first.status, first.json["debit_frozen"], first.json["overdraft_limit_minor"]) == (200, True, 40)
    assert again.headers["idempotent-replayed"] == "true"
    assert pay(world, debit, credit, 1).code == "DEBIT_FROZEN"
    assert world.operator("PATCH", path, {"debit_frozen": False}).json["debit_frozen"] is False
    assert pay(world, debit, credit, 50).status == 201
    assert world.operator("PATCH", path, {"closed": True}).code == "WALLET_NOT_EMPTY"
    assert world.operator("PATCH", path, {"tier": 999}).code == "TIER_NOT_FOUND"
    assert world.operator("PATCH", path, {}).code == "INVALID_REQUEST"
    assert world.operator("PATCH", path, {"closed": False}).code == "INVALID_REQUEST"
    assert world.operator("PATCH", "/v1/wallets/999999999", {"tier": 0}).status == 404
    empty = world.wallet()
    assert world.operator("PATCH", f"/v1/wallets/{empty}", {"closed": True}).json["closed"] is True


def test_tiers_and_reviews(world: HttpWorld) -> None:
    limits = {"max_amount_minor": 50, "day_count": 3, "review": ["MAX_AMOUNT"]}
    assert world.operator("PUT", "/v1/tiers/7", limits).status == 200
    assert world.operator.get("/v1/tiers/7").json["review"] == ["MAX_AMOUNT"]
    assert world.operator.get("/v1/tiers/8").code == "TIER_NOT_FOUND"
    debit, credit = world.wallet(funds=1000), world.wallet()
    assert world.operator("PATCH", f"/v1/wallets/{debit}", {"tier": 7}).json["tier"] == 7
    stopped, name = pay(world, debit, credit, 60), world.new_name()
    assert (stopped.status, stopped.json["status"], stopped.json["rule"]) == (202, "UNDER_REVIEW", "MAX_AMOUNT")
    other = pay(world, debit, credit, 70, id=name)
    waiting = world.operator.get(f"/v1/reviews?page_size=1000&min_sequence={other.json['sequence']}").json["holds"]
    assert {stopped.json["id"], other.json["id"]} <= {one["id"] for one in waiting}
    assert pay(world, debit, credit, 70, id=name).headers["idempotent-replayed"] == "true"
    approved = world.operator.post(f"/v1/reviews/{stopped.json['id']}/approve")
    assert (approved.status, world.available(credit)) == (200, 60)
    assert world.operator.post(f"/v1/reviews/{other.json['id']}/reject", {"reason": "no"}).status == 200
    assert pay(world, debit, credit, 1).status == 201
    refused = pay(world, debit, credit, 1)
    assert (refused.status, refused.code, refused.json["rule"], refused.json["used"]) == (
        409,
        "LIMIT_EXCEEDED",
        "DAY_COUNT",
        3,
    )
    assert refused.json["retry_at"]
    assert int(refused.headers["retry-after"]) > 0
    assert 7 in [one["tier"] for one in world.operator.get("/v1/tiers?min_sequence=1").json["tiers"]]
