"""Who may do what: generated from the route table, so that no operation is forgotten."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from gateway.http.routes import OPERATIONS, Operation, Who
from tests.fixtures.http import Client, HttpWorld

KEYED = [operation for operation in OPERATIONS if operation.who is not Who.ANYBODY]
SCOPE_KEYS = {"read": "reader", "write": "writer", "admin": "admin"}
UNKNOWN = str(UUID(int=0x19C0FFEE))


def named(operation: Operation) -> str:
    return operation.id


def path_of(operation: Operation, wallet: int = 1, id: str = UNKNOWN) -> str:
    return operation.path.format(wallet_id=wallet, id=id, tier=3)


def body_of(operation: Operation, wallet: int, other: int, id: str = UNKNOWN) -> Any:
    """A body that the operation takes."""
    both = {"debit_wallet_id": wallet, "credit_wallet_id": other, "amount_minor": 1}
    bodies: dict[str, Any] = {
        "openWallet": {"wallet_id": wallet, "owner_id": 7, "currency": "USD"},
        "topUp": {"wallet_id": wallet, "amount_minor": 1},
        "withdraw": {"wallet_id": wallet, "amount_minor": 1},
        "transfer": both,
        "pay": both,
        "hold": both,
        "postBatch": {"transfers": [both]},
        "confirmTopUp": {"psp_reference": "x"},
        "confirmWithdrawal": {"psp_reference": "x"},
        "raiseHold": {"amount_minor": 1},
        "refund": {"transfer_id": id},
        "chargeBack": {"transfer_id": id},
        "changeWallet": {"debit_frozen": True},
    }
    return bodies.get(operation.id, {} if operation.body else None)


def ask(client: Client, operation: Operation, world: HttpWorld, body: Any = None, **where: Any) -> Any:
    path = path_of(operation, **where)
    queries = {"findTransfers": "?reference=x", "getOutcome": "?key=x", "listWallets": "?owner_id=7"}
    return client(operation.method, path + queries.get(operation.id, ""), body, id=world.new_name())


@pytest.mark.parametrize("operation", KEYED, ids=named)
def test_without_a_key(world: HttpWorld, operation: Operation) -> None:
    bad = [None, "", "hl_", "x" * 5000, f"hl_{'0' * 16}_{'A' * 43}", world.keys["operator"][:-1] + "!"]
    changed = world.keys["operator"]
    bad.append(changed[:-1] + ("A" if changed[-1] != "A" else "B"))
    for key in bad:
        answer = ask(world.with_key(key), operation, world, body_of(operation, 1, 2))
        assert answer.status == 401, (key, answer)
        assert answer.code == "UNAUTHENTICATED"
        assert "www-authenticate" in answer.headers


@pytest.mark.parametrize("operation", KEYED, ids=named)
def test_with_another_scope(world: HttpWorld, operation: Operation) -> None:
    for scope, name in SCOPE_KEYS.items():
        if scope != operation.scope:
            answer = ask(world.client(name), operation, world, body_of(operation, 1, 2))
            assert answer.code == "FORBIDDEN", (name, answer)


@pytest.mark.parametrize("operation", [one for one in KEYED if one.who is Who.OPERATORS], ids=named)
def test_what_is_for_operators(world: HttpWorld, operation: Operation) -> None:
    answer = ask(world.client("owner 7"), operation, world, body_of(operation, 1, 2))
    assert answer.code == "FORBIDDEN"


class Others:
    """What belongs to owner 8: a wallet, a transfer between two of its wallets, and a hold."""

    def __init__(self, world: HttpWorld) -> None:
        self.wallet, second = world.wallet(8, funds=1000), world.wallet(8)
        body = {"debit_wallet_id": self.wallet, "credit_wallet_id": second, "amount_minor": 10, "reference": "secret"}
        moved = world.operator.post("/v1/transfers", body, id=world.new_name())
        held = world.operator.post("/v1/holds", body, id=world.new_name())
        assert (moved.status, held.status) == (201, 201)
        self.transfer, self.hold = moved.json["id"], held.json["id"]
        self.sequence = held.json["sequence"]
        world.operator.get(f"/v1/transfers/{self.transfer}?min_sequence={self.sequence}")

    def id_for(self, operation: Operation) -> str:
        return self.transfer if "transfer" in operation.path or operation.id == "refund" else self.hold


@pytest.fixture(scope="module")
def others(world: HttpWorld) -> Others:
    return Others(world)


NAMING = [
    one
    for one in KEYED
    if one.who is Who.OWNERS
    and ("{" in one.path or one.id in ("transfer", "pay", "hold", "withdraw", "postBatch", "refund"))
]


@pytest.mark.parametrize("operation", NAMING, ids=named)
def test_another_owners_ids_are_as_unknown_ones(world: HttpWorld, others: Others, operation: Operation) -> None:
    mine = world.wallet(7, funds=100)
    client = world.client("owner 7")
    theirs = others.id_for(operation)
    before = world.available(others.wallet)
    hidden = ask(
        client, operation, world, body_of(operation, others.wallet, mine, theirs), wallet=others.wallet, id=theirs
    )
    unknown = ask(client, operation, world, body_of(operation, 999_999_999, mine), wallet=999_999_999)
    assert hidden.status == 404, hidden
    assert (unknown.status, unknown.code) == (404, hidden.code)
    differs = {"instance", "detail"}
    assert {k: v for k, v in hidden.json.items() if k not in differs} == {
        k: v for k, v in unknown.json.items() if k not in differs
    }
    assert world.available(others.wallet) == before


def test_lists_show_an_owners_own_alone(world: HttpWorld, others: Others) -> None:
    client = world.client("owner 7")
    sequence = others.sequence
    assert client.get(f"/v1/transfers?reference=secret&min_sequence={sequence}").json["transfers"] == []
    assert world.operator.get(f"/v1/transfers?reference=secret&min_sequence={sequence}").json["transfers"]
    assert others.hold not in [one["id"] for one in client.get("/v1/holds?page_size=1000").json["holds"]]
    assert client.get("/v1/wallets?owner_id=8").status == 404
    assert client.get(f"/v1/holds?wallet_id={others.wallet}").status == 404
    assert client.get(f"/v1/declined?wallet_id={others.wallet}").status == 404
    assert {one["owner_id"] for one in client.get("/v1/wallets?page_size=1000").json["wallets"]} == {7}
    for declined in client.get("/v1/declined").json["declined"]:
        assert world.operator.get(f"/v1/wallets/{declined['debit_wallet_id']}").json["owner_id"] == 7


def test_a_payment_to_another_owner_does_not_tell_its_balance(world: HttpWorld) -> None:
    mine, theirs = world.wallet(7, funds=100), world.wallet(8, funds=5000)
    body = {"debit_wallet_id": mine, "credit_wallet_id": theirs, "amount_minor": 30}
    client = world.client("owner 7")
    paid = client.post("/v1/payments", body, id=world.new_name())
    assert paid.status == 201
    assert (paid.json["debit_available_minor"], paid.json["credit_available_minor"]) == (70, None)
    batch = client.post("/v1/transfers/batch", {"transfers": [body]}, id=world.new_name()).json["results"][0]
    assert (batch["debit_available_minor"], batch["credit_available_minor"]) == (40, None)
    seen = client.get(f"/v1/transfers/{paid.json['id']}?min_sequence={batch['sequence']}").json
    assert (seen["debit_available_minor"], seen["credit_available_minor"]) == (70, None)
    theirs_seen = world.client("owner 8").get(f"/v1/transfers/{paid.json['id']}").json
    assert (theirs_seen["debit_available_minor"], theirs_seen["credit_available_minor"]) == (None, 5030)


def test_the_sides_of_a_hold(world: HttpWorld) -> None:
    """The debit side may raise, both may capture, the credit side may void; and only it may refund what it got."""
    payer, merchant = world.client("owner 7"), world.client("owner 8")
    mine, theirs = world.wallet(7, funds=100), world.wallet(8)
    body = {"debit_wallet_id": mine, "credit_wallet_id": theirs, "amount_minor": 30}
    held = payer.post("/v1/holds", body, id=world.new_name()).json["id"]
    assert payer.post(f"/v1/holds/{held}/void", {}).code == "FORBIDDEN"
    assert merchant.post(f"/v1/holds/{held}/raise", {"amount_minor": 1}, id=world.new_name()).code == "FORBIDDEN"
    assert payer.post(f"/v1/holds/{held}/raise", {"amount_minor": 5}, id=world.new_name()).status == 201
    taken = merchant.post(f"/v1/holds/{held}/capture", {}, id=world.new_name())
    assert (taken.json["amount_minor"], taken.json["debit_available_minor"]) == (35, None)
    transfer = {"transfer_id": taken.json["id"]}
    assert payer.post("/v1/refunds", transfer, id=world.new_name()).code == "FORBIDDEN"
    assert merchant.post("/v1/refunds", transfer, id=world.new_name()).status == 201
    again = payer.post("/v1/holds", body, id=world.new_name()).json["id"]
    assert merchant.post(f"/v1/holds/{again}/void", {}).status == 200
    assert world.available(mine) == 100


def test_an_owners_key_opens_its_own_wallets_without_credit(world: HttpWorld) -> None:
    client = world.client("owner 7")
    body = {"wallet_id": 5_000_001, "owner_id": 8, "currency": "USD"}
    assert client.post("/v1/wallets", body).code == "FORBIDDEN"
    assert client.post("/v1/wallets", body | {"owner_id": 7, "overdraft_limit_minor": 1}).code == "FORBIDDEN"
    assert world.client("writer").post("/v1/wallets", body | {"overdraft_limit_minor": 1}).code == "FORBIDDEN"
    assert client.post("/v1/wallets", body | {"owner_id": 7}).status == 201


def test_no_owner_can_replay_anothers_request(world: HttpWorld) -> None:
    mine, theirs = world.wallet(7, funds=100), world.wallet(8, funds=100)
    name = world.new_name()
    ids = set()
    for client, wallet, other in ((world.client("owner 7"), mine, theirs), (world.client("owner 8"), theirs, mine)):
        body = {"debit_wallet_id": wallet, "credit_wallet_id": other, "amount_minor": 10}
        answer = client.post("/v1/payments", body, id=name)
        assert answer.status == 201
        assert "idempotent-replayed" not in answer.headers
        ids.add(answer.json["id"])
        assert client.get(f"/v1/outcomes?key={name}").json["id"] == answer.json["id"]
    assert len(ids) == 2


def test_admin_actions_are_noted_before_they_are_done(world: HttpWorld) -> None:
    wallet = world.wallet(7)
    answer = world.operator("PATCH", f"/v1/wallets/{wallet}", {"debit_frozen": True}, headers={"X-Request-Id": "r-17"})
    assert answer.status == 200
    with world.ledger() as ledger:
        row = ledger.execute(
            "SELECT actor, request_id, details FROM admin_action WHERE action = 'wallet.change' AND subject = %s",
            (str(wallet),),
        ).fetchone()
        assert row == (f"key:{world.keys['operator'].split('_')[1]}", "r-17", {"FREEZE": 2})
        with pytest.raises(Exception, match="append-only"):
            ledger.execute("DELETE FROM admin_action")
