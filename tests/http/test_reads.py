"""What reads, over HTTP: pages, filters, the past, waiting for the ledger."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest

from tests.fixtures.http import HttpWorld, until


class Story:
    """A wallet with 30 entries: its opening, its funds, 28 payments of 1."""

    def __init__(self, world: HttpWorld) -> None:
        self.wallet, self.merchant = world.wallet(funds=100), world.wallet(8)
        self.paid: list[dict[str, Any]] = []
        for number in range(28):
            body = {
                "debit_wallet_id": self.wallet,
                "credit_wallet_id": self.merchant,
                "amount_minor": 1,
                "reference": f"=story {number % 2}",
                "metadata": {"order": str(number), "story": str(self.wallet)},
            }
            self.paid.append(world.operator.post("/v1/payments", body, id=world.new_name()).json)
            time.sleep(0.002)
        self.sequence = self.paid[-1]["sequence"]


@pytest.fixture(scope="module")
def story(world: HttpWorld) -> Story:
    return Story(world)


def pages(world: HttpWorld, path: str, name: str) -> Iterator[list[Any]]:
    mark = "&" if "?" in path else "?"
    cursor = ""
    while True:
        answer = world.operator.get(path + (f"{mark}cursor={cursor}" if cursor else ""))
        assert answer.status == 200, answer
        yield answer.json[name]
        cursor = answer.json["next_cursor"]
        if cursor is None:
            return


def test_the_statement_in_pages(world: HttpWorld, story: Story) -> None:
    path = f"/v1/wallets/{story.wallet}/entries?page_size=7&min_sequence={story.sequence}"
    found = list(pages(world, path, "entries"))
    assert [len(page) for page in found] == [7, 7, 7, 7, 2]
    entries = [entry for page in found for entry in page]
    assert [entry["version"] for entry in entries] == list(range(30, 0, -1))
    assert [entry["available_after_minor"] for entry in entries[:-1]] == list(range(72, 101))


def test_the_statement_filtered(world: HttpWorld, story: Story) -> None:
    path = f"/v1/wallets/{story.wallet}/entries"
    some = world.operator.get(f"{path}?kind=TOP_UP,OPEN_WALLET&min_sequence={story.sequence}").json["entries"]
    assert [entry["kind"] for entry in some] == ["TOP_UP", "OPEN_WALLET"]
    everything = world.operator.get(path).json["entries"]
    since, until_ = everything[20]["at"], everything[10]["at"]
    between = world.operator.get(f"{path}?since={quote(since)}&until={quote(until_)}").json["entries"]
    assert [entry["version"] for entry in between] == [
        entry["version"] for entry in everything if since <= entry["at"] < until_
    ]
    assert between
    paged = list(pages(world, f"{path}?kind=PAYMENT&page_size=10", "entries"))
    assert [len(page) for page in paged] == [10, 10, 8]
    assert world.operator.get(f"{path}?kind=NONE").json["field"] == "kind"
    assert world.operator.get("/v1/wallets/999999999/entries").code == "NOT_FOUND"


def test_the_statement_as_csv(world: HttpWorld, story: Story) -> None:
    answer = world.operator.get(f"/v1/wallets/{story.wallet}/entries?format=csv&kind=PAYMENT&page_size=3")
    assert answer.headers["content-type"] == "text/csv"
    rows = list(csv.DictReader(io.StringIO(answer.body.decode())))
    assert [row["amount_minor"] for row in rows] == ["-1", "-1", "-1"]
    assert rows[0]["reference"].startswith("'=story")


def test_balances_of_the_past(world: HttpWorld, story: Story) -> None:
    path = f"/v1/wallets/{story.wallet}/balance"
    now = world.operator.get(path).json
    assert (now["available_minor"], now["at"]) == (72, None)
    entries = f"/v1/wallets/{story.wallet}/entries?min_sequence={story.sequence}"
    for entry in world.operator.get(entries).json["entries"]:
        then = world.operator.get(f"{path}?at={quote(entry['at'])}").json
        assert then["available_minor"] in (entry["available_after_minor"], entry["available_after_minor"] - 1)
        assert then["at"] == entry["at"]
    opened = datetime.fromisoformat(entry["at"])
    before = (opened - timedelta(milliseconds=1)).isoformat()
    assert world.operator.get(f"{path}?at={quote(before)}").code == "NOT_FOUND"
    later = (opened + timedelta(days=1)).isoformat()
    assert world.operator.get(f"{path}?at={quote(later)}").json["available_minor"] == 72
    assert world.operator.get(f"{path}?at=2026-01-01T00:00:00").json["field"] == "at"


def test_transfers(world: HttpWorld, story: Story) -> None:
    one = story.paid[5]
    shown = world.operator.get(f"/v1/transfers/{one['id']}?min_sequence={story.sequence}").json
    assert (shown["kind"], shown["amount_minor"], shown["metadata"]["order"]) == ("PAYMENT", 1, "5")
    assert shown["debit_available_minor"] == one["debit_available_minor"]
    value = str(story.wallet)
    path = f"/v1/transfers?metadata_key=story&metadata_value={value}&page_size=10"
    found = [one["id"] for page in pages(world, path, "transfers") for one in page]
    assert found == [one["id"] for one in reversed(story.paid)]
    path = f"/v1/transfers?reference={quote('=story 1')}"
    references = [one for page in pages(world, path, "transfers") for one in page]
    assert {one["id"] for one in references} >= {one["id"] for one in story.paid[1::2]}
    assert world.operator.get("/v1/transfers").code == "INVALID_REQUEST"
    assert world.operator.get("/v1/transfers?reference=a&metadata_key=b&metadata_value=c").code == "INVALID_REQUEST"
    assert world.operator.get("/v1/transfers?metadata_key=b").code == "INVALID_REQUEST"


def test_wallets_of_an_owner(world: HttpWorld) -> None:
    made = [world.wallet(4242) for _ in range(5)]
    last = world.operator.post("/v1/top-ups", {"wallet_id": made[-1], "amount_minor": 9}, id=world.new_name()).json[
        "sequence"
    ]
    path = f"/v1/wallets?owner_id=4242&page_size=2&min_sequence={last}"
    found = [one for page in pages(world, path, "wallets") for one in page]
    assert [one["wallet_id"] for one in found] == made
    assert found[-1]["available_minor"] == 9
    assert world.operator.get("/v1/wallets").json["field"] == "owner_id"


def test_min_sequence_waits_a_while_at_most(world: HttpWorld, story: Story) -> None:
    began = time.monotonic()
    answer = world.operator.get(f"/v1/wallets/{story.wallet}/entries?min_sequence=9000000000000000")
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "NOT_YET_IN_LEDGER", "1")
    assert 1.9 <= time.monotonic() - began < 30


def test_declined_attempts(world: HttpWorld) -> None:
    debit, credit = world.wallet(funds=1), world.wallet()
    body = {"debit_wallet_id": debit, "credit_wallet_id": credit, "amount_minor": 2}
    for _ in range(3):
        assert world.client("owner 7").post("/v1/payments", body, id=world.new_name()).status == 402
    path = f"/v1/declined?wallet_id={debit}"
    until(lambda: len(world.operator.get(path).json["declined"]) == 3)
    listed = list(pages(world, f"{path}&page_size=2", "declined"))
    assert [len(page) for page in listed] == [2, 1]
    assert {one["status"] for page in listed for one in page} == {"INSUFFICIENT_FUNDS"}
    assert len(world.client("owner 7").get(path).json["declined"]) == 3


def test_reconciliations(world: HttpWorld) -> None:
    with world.ledger() as ledger:
        for number in range(3):
            ledger.execute(
                "INSERT INTO reconcile_run (shard, kind, began_at, seconds, after_sequence, sequence, chain, checked, "
                "differences) VALUES (0, 'full', now(), 0.5, 0, %s, '', 9, 0)",
                (number,),
            )
    found = [one for page in pages(world, "/v1/reconciliations?page_size=2", "runs") for one in page]
    assert [one["sequence"] for one in found[:3]] == [2, 1, 0]
    assert found[0]["differences"] == 0


def test_shards(world: HttpWorld, story: Story) -> None:
    [shard] = world.operator.get("/v1/shards").json["shards"]
    assert shard["open"] is True
    assert shard["persisted_sequence"] >= story.sequence
    assert len(shard["chain"]) == 64


@pytest.mark.parametrize("cursor", ["x", "AAAA", "eyJ9", "WyJhIl0", "WzEsMl0", "Wy0xXQ", "WzFlOTld", "%00", "é"])
def test_a_foreign_cursor_is_refused(world: HttpWorld, story: Story, cursor: str) -> None:
    for path in (f"/v1/wallets/{story.wallet}/entries", "/v1/holds", "/v1/declined"):
        answer = world.operator.get(f"{path}?cursor={quote(cursor, safe='%')}")
        assert (answer.status, answer.json["field"]) == (400, "cursor"), answer


@pytest.mark.parametrize("query", ["page_size=0", "page_size=1001", "page_size=x", "nope=1", "page_size=1&page_size=2"])
def test_wrong_parameters(world: HttpWorld, query: str) -> None:
    assert world.operator.get(f"/v1/holds?{query}").code == "INVALID_REQUEST"
    assert world.operator.get(f"/v1/tiers/1?{query}").code == "INVALID_REQUEST"
