"""`hotledger`: every command and example in its help, exit statuses, and the life of `up` beside other commands."""

from __future__ import annotations

import asyncio
import gzip
import os
import re
import shlex
import signal
import stat
import subprocess
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import psycopg
import pytest
import redis
import typer.main

from gateway import cli as program
from gateway import embedded, session
from gateway.commands.options import WritingPlace
from gateway.demo import Step
from gateway.embedded import EmbeddedServers
from gateway.exits import MEANINGS, Exit
from tests.fixtures.cli import PATIENCE_S, Cli, journalled, log_of, run_process, running_up, started, wait_for
from tests.fixtures.proxy import proxy_to
from tests.fixtures.servers import wipe_redis
from tests.fixtures.shard import ShardDriver

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DIGEST_KEY = "a digest key of a test"
NOBODYS = "0197b2a1-5c3e-7f00-8a11-00000000dead"


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory in which `up` runs on this user's default data directory, which is also ./money."""
    directory = tmp_path_factory.mktemp("town")
    data_dir = directory / "share" / "hotledger"
    with running_up(data_dir):
        (directory / "money").symlink_to(data_dir)
        yield directory


@pytest.fixture(scope="module")
def hotledger(town: Path) -> Cli:
    """Commands that find the running `up` by themselves."""
    return Cli(environment={"XDG_DATA_HOME": str(town / "share")})


@pytest.fixture(scope="module")
def people(hotledger: Cli) -> None:
    """For the examples: wallets 17 and 18 with 100,000, merchant 900, 19 and 20 with nothing, and 21 with 100,000 of
    which tier 2 lets no more than 100 go without an operator; tier 1 has limits."""
    for wallet in (17, 18, 19, 20, 21, 900):
        hotledger("wallet", "open", wallet, "--currency", "USD", "--owner", 4)
    for wallet in (17, 18, 21):
        hotledger.done("top-up", wallet, 100_000, "--key", f"start-{wallet}")
    hotledger.done("tier", "set", 1, "--day-count", 1000)
    hotledger.done("tier", "set", 2, "--max-amount", 100, "--review", "MAX_AMOUNT")
    hotledger.done("wallet", "tier", 21, 2)


# The help and the examples


def commands(group: Any = None, path: str = "hotledger") -> Iterator[tuple[str, Any]]:
    """(path, command) of every command that does something."""
    for name, command in (group or typer.main.get_command(program.app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


COMMANDS = dict(commands())
EXAMPLES = [line for command in COMMANDS.values() for line in re.findall(r"Example: (hotledger .*)", command.help)]
EXAMPLES += re.findall(r"^ +(hotledger .*)", program.HELP, re.M)
IN_README = re.findall(r"^(?:\$ )?(?:\.venv/bin/)?(hotledger .*)", README, re.M)
NOT_HERE = (
    "up",
    "persist",
    "demo",
    "reconcile --watch",
    "serve",
    "key rotate",
    "key revoke",
    "recover --redis-url",
    "torture",
)
"""Examples that run for ever or long, or need the prefix of a key (tests/http has these three), or servers of their own
(tests/recovery/test_recover_command.py), or have the test of tests/torture."""

QUICK = sorted({line for line in EXAMPLES if not line.startswith(tuple(f"hotledger {words}" for words in NOT_HERE))})


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_explains_itself_with_an_example(path: str) -> None:
    ended = Cli()(*path.split()[1:], "--help")
    assert ended.status == 0
    assert f"Example: {path}" in ended.out


def test_the_help_lists_commands_statuses_and_variables() -> None:
    shown = Cli()("--help").out
    for path in COMMANDS:
        assert path.split()[1] in shown
    for status in Exit:
        assert re.search(rf"^{status} ", MEANINGS, re.M)
        assert re.search(rf"^ *{status} ", shown, re.M)
    for variable in re.findall(r"HOTLEDGER_\w+", "".join(p.read_text() for p in (ROOT / "gateway").rglob("*.py"))):
        assert variable in shown


@pytest.mark.usefixtures("people")
@pytest.mark.parametrize("example", QUICK)
def test_the_examples_run(example: str, hotledger: Cli, town: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(town)
    (town / "payments.csv").write_text("key,debit,credit,amount_minor,currency\nex1,,71,500,USD\nex2,71,72,5,USD\n")
    header = "step,type,amount,nameOrig,oldbalanceOrg,newbalanceOrig,nameDest,oldbalanceDest,newbalanceDest,isFraud\n"
    (town / "paysim.csv.gz").write_bytes(gzip.compress(header.encode()))
    (town / "rules.toml").write_text("default_tier = {customers = 7, merchants = 0}\n[tiers.7]\nday_count = 5\n")
    fee = [{"kind": "payment", "debit": 17, "credit": 900, "amount_minor": amount} for amount in (1000, 15)]
    (town / "payment-with-fee.jsonl").write_bytes(b"\n".join(map(orjson.dumps, fee)))
    words = shlex.split(example, comments=True)[1:]
    prepare(hotledger, words)
    ended = hotledger(*words)
    # The same opening with and without an owner are two different requests; the second one is refused.
    assert ended.status == 0 or (words[0] == "wallet" and "EXISTS_WITH_DIFFERENT_OWNER" in ended.out), ended
    assert ended.out


BEGINS_WITH = {
    ("lookup", "--key"): ("transfer", 17, 18, 500, "--reference", "lunch"),
    ("refund",): ("pay", 17, 900, 1000),
    ("chargeback",): ("top-up", 17, 1000),
    ("hold",): ("hold", "place", 17, 900, 1000),
    ("pending", "confirm"): ("pending", "top-up", 17, 1000),
    ("pending", "fail"): ("pending", "withdraw", 17, 1000),
    ("review",): ("pay", 21, 900, 1000),
}
"""What there must be before an example that names it by its id or key."""


def prepare(hotledger: Cli, words: list[str]) -> None:
    if words[0] == "doctor":
        hotledger.done("reconcile")
    if words[0] == "lookup":
        hotledger(*BEGINS_WITH["lookup", "--key"], "--key", words[2])
    for id in [word for word in words if re.fullmatch(r"[0-9a-f-]{36}", word)]:
        begins = next(begins for start, begins in BEGINS_WITH.items() if tuple(words[: len(start)]) == start)
        assert hotledger(*begins, "--id", id).status in (0, Exit.UNDER_REVIEW)


def test_the_readme_runs_in_its_order(hotledger: Cli) -> None:
    assert len(IN_README) > 5
    for line in IN_README:
        words = shlex.split(line, comments=True)[1:]
        if words[0] not in ("up", "persist", "demo"):
            hotledger.done(*words)


def test_the_demo_reconciles_and_leaves_nothing(tmp_path: Path) -> None:
    environment = {"TMPDIR": str(tmp_path)}
    ended = run_process("demo", "--requests", "2000", "--seed", "7", "--json", environment=environment)
    assert ended.status == 0, ended
    shown = ended.json
    assert shown["wallets"] == 10_000
    assert shown["requests"] == sum(shown["by_status"].values()) == 2000
    usual = {"POSTED", "INSUFFICIENT_FUNDS", "EXISTS_WITH_DIFFERENT_AMOUNT", "UNDER_REVIEW"}
    assert usual <= set(shown["by_status"]) <= usual | {"LIMIT_EXCEEDED"}
    assert shown["replays"] >= 30
    later = {step: sum(row["count"] for row in shown["later"] if row["step"] == step) for step in Step}
    assert later[Step.APPROVE] + later[Step.REJECT] == shown["by_status"]["UNDER_REVIEW"] > 0
    assert all(later[step] > 0 for step in (Step.CAPTURE, Step.VOID, Step.REFUND, Step.CONFIRM))
    assert shown["reconciliation"]["ok"]
    assert shown["statement"][0]["kind"] == "PAYMENT"
    assert list(tmp_path.iterdir()) == []


# Money


def test_money_moves_and_the_ledger_says_so(hotledger: Cli) -> None:
    opened = hotledger.json("wallet", "open", 101, "--currency", "EUR", "--owner", 5, "--overdraft", 10)
    assert opened["status"] == "POSTED"
    hotledger.done("wallet", "open", 102, "--currency", "EUR")
    hotledger.done("top-up", 101, 1000, "--key", "m1")
    paid = hotledger.json(
        "pay", 101, 102, 300, "--key", "m2", "--reference", "rent [May]", "--metadata", '{"floor": 3}'
    )
    assert paid.items() >= {"status": "POSTED", "replayed": False, "key": "m2"}.items()
    assert (paid["debit_available_minor"], paid["credit_available_minor"]) == (700, 300)
    number = str(uuid4())
    assert hotledger.json("transfer", 102, 101, 50, "--id", number)["transfer_id"] == number
    hotledger.done("withdraw", 101, 760, "--key", "m3", "--currency", "EUR")

    shown = hotledger.json("wallet", "show", 101, 102)["wallets"]
    assert [(wallet["available_minor"], wallet["overdraft_limit_minor"]) for wallet in shown] == [(-10, 10), (250, 0)]
    lines = hotledger.json("statement", 101)["lines"]
    assert [(line["kind"], line["amount_minor"], line["available_after_minor"]) for line in lines] == [
        ("WITHDRAWAL", -760, -10),
        ("TRANSFER", 50, 750),
        ("PAYMENT", -300, 700),
        ("TOP_UP", 1000, 1000),
        ("OPEN_WALLET", 0, 0),
    ]
    assert (lines[2]["reference"], lines[2]["metadata"], lines[2]["counterparty_id"]) == (
        "rent [May]",
        {"floor": 3},
        102,
    )
    assert hotledger.json("reconcile").items() >= {"ok": True, "drift": 0, "differences": []}.items()


def test_a_statement_has_pages(hotledger: Cli) -> None:
    hotledger.done("wallet", "open", 111, "--currency", "USD")
    for number in range(4):
        hotledger.done("top-up", 111, number + 1, "--key", f"page-{number}")
    versions, before = [], []
    while True:
        page = hotledger.json("statement", 111, "--limit", 2, *before)
        versions += [line["version"] for line in page["lines"]]
        if page["next_before"] is None:
            break
        before = ["--before", page["next_before"]]
    assert versions == [5, 4, 3, 2, 1]
    table = hotledger.done("statement", 111, "--limit", 2).out
    assert "top up" in table
    assert "More: hotledger statement 111 --before 4" in table


def test_a_key_is_made_up_and_told_before_sending(hotledger: Cli) -> None:
    hotledger.done("wallet", "open", 121, "--currency", "USD")
    first = hotledger.done("top-up", 121, 5, "--json")
    key = first.json["key"]
    assert first.err.startswith(f"key: {key} ")
    again = hotledger.json("top-up", 121, 5, "--key", key)
    assert (again["replayed"], again["sequence"]) == (True, first.json["sequence"])
    found = hotledger.json("lookup", "--key", key)
    assert (
        found["transfer_id"]
        == first.json["transfer_id"]
        == hotledger.json("lookup", "--id", found["transfer_id"])["transfer_id"]
    )
    assert "as decided before" in hotledger.done("top-up", 121, 5, "--key", key).out


# Holds, refunds, two steps


@pytest.fixture
def pair(hotledger: Cli) -> Iterator[tuple[int, int]]:
    """A wallet with 1,000 and a merchant of this test alone."""
    payer = next(_pairs)
    for wallet in (payer, payer + 1):
        hotledger.done("wallet", "open", wallet, "--currency", "USD")
    hotledger.done("top-up", payer, 1000, "--key", f"pair-{payer}")
    return payer, payer + 1


_pairs = count(200, 2)


def owned(hotledger: Cli, *wallets: int) -> list[tuple[int, int]]:
    """(available, locked) of each."""
    shown = hotledger.json("wallet", "show", *wallets)["wallets"]
    return [(wallet["available_minor"], wallet["locked_minor"]) for wallet in shown]


def test_a_hold_is_raised_captured_in_parts_and_refunded(hotledger: Cli, pair: tuple[int, int]) -> None:
    payer, shop = pair
    placed = hotledger.json(
        "hold", "place", payer, shop, 300, "--key", f"room-{payer}", "--expires-in", "1h", "--reference", "room 12"
    )
    hold = placed["transfer_id"]
    assert (placed["amount_minor"], owned(hotledger, payer, shop)) == (300, [(700, 300), (0, 0)])
    hotledger.done("hold", "raise", hold, 100, "--key", f"raise-{payer}")
    hotledger.done("hold", "capture", hold, "--amount", 150, "--more-to-come", "--key", f"bar-{payer}")
    [listed] = hotledger.json("hold", "list", "--wallet", payer)["holds"]
    assert listed.items() >= {"id": hold, "purpose": "PAYMENT", "remaining_minor": 250, "captured_minor": 150}.items()
    assert (listed["reference"], listed["rule"], listed["review"]) == ("room 12", None, "NONE")
    assert "1h" in hotledger.done("hold", "list", "--wallet", payer).out or "59m" in hotledger.done("hold", "list").out

    last = hotledger.json("hold", "capture", hold, "--amount", 50)
    assert hotledger.json("hold", "capture", hold, "--amount", 50)["replayed"]
    assert owned(hotledger, payer, shop) == [(800, 0), (200, 0)]
    assert "HOLD_ALREADY_CAPTURED" in hotledger("hold", "void", hold).out
    assert hotledger.json("hold", "list", "--wallet", payer)["holds"] == []
    assert hotledger.done("hold", "list", "--wallet", payer).out == "Open holds: none.\n"

    shown = hotledger.json("hold", "show", hold)
    assert shown["hold"].items() >= {"state": "CAPTURED", "amount_minor": 300, "captured_minor": 200}.items()
    events = [(event["kind"], event["amount_minor"], event["released_minor"]) for event in shown["history"]]
    assert events == [("HOLD", 300, 0), ("RAISE_HOLD", 100, 0), ("CAPTURE", 150, 0), ("CAPTURE", 50, 200)]

    refund = ("refund", last["transfer_id"], "--amount", 30, "--key", f"back-{payer}")
    assert hotledger.json(*refund)["amount_minor"] == 30
    assert hotledger.json(*refund)["replayed"]
    assert "REFUND_EXCEEDS_TRANSFER" in hotledger("refund", last["transfer_id"], "--amount", 21, "--key", "over").out
    assert hotledger.json("refund", last["transfer_id"], "--key", f"rest-{payer}")["amount_minor"] == 20
    assert owned(hotledger, payer, shop) == [(850, 0), (150, 0)]
    [line, *_] = hotledger.json("statement", shop)["lines"]
    assert (line["kind"], line["amount_minor"]) == ("REFUND", -20)


def test_pending_top_ups_and_withdrawals(hotledger: Cli, pair: tuple[int, int]) -> None:
    wallet, _ = pair

    def begin(*words: object) -> str:
        return str(hotledger.json("pending", *words)["transfer_id"])

    paid_in = begin("top-up", wallet, 500, "--key", f"in-{wallet}", "--reference", f"card {wallet}")
    paid_out = begin("withdraw", wallet, 200, "--key", f"out-{wallet}", "--expires-in", "never")
    refused = begin("top-up", wallet, 70, "--key", f"refused-{wallet}")
    returned = begin("withdraw", wallet, 60, "--key", f"returned-{wallet}")
    assert owned(hotledger, wallet) == [(740, 260)]

    listed = {hold["id"]: hold for hold in hotledger.json("pending", "list", "--limit", 1000)["holds"]}
    assert listed[paid_in].items() >= {"purpose": "TOP_UP", "credit": wallet, "reference": f"card {wallet}"}.items()
    assert 0 <= listed[paid_in]["open_for_s"] < PATIENCE_S
    assert (listed[paid_out]["purpose"], listed[paid_out]["expires_at"]) == ("WITHDRAWAL", None)
    table = hotledger.done("pending", "list", "--limit", 1000).out
    assert f"{paid_in} │ top up     │ outside" in table
    assert "6d 23h" in table

    hotledger.done("pending", "confirm", paid_in, "PSP-1")
    assert hotledger.json("pending", "confirm", paid_in, "PSP-1")["replayed"]
    assert "EXISTS_WITH_DIFFERENT_DETAILS" in hotledger("pending", "confirm", paid_in, "PSP-2").out
    hotledger.done("pending", "confirm", paid_out, "PSP-3")
    for id in (refused, returned):
        hotledger.done("pending", "fail", id, "--reason", "card declined")
    assert "HOLD_ALREADY_VOIDED" in hotledger("pending", "confirm", refused, "PSP-4").out
    assert owned(hotledger, wallet) == [(1300, 0)]
    shown = hotledger.json("hold", "show", returned)
    assert shown["history"][-1].items() >= {"kind": "VOID", "metadata": {"reason": "card declined"}}.items()
    assert not {paid_in, paid_out, refused, returned} & {
        hold["id"] for hold in hotledger.json("pending", "list", "--limit", 1000)["holds"]
    }


def test_a_chargeback_leaves_a_debt(hotledger: Cli, pair: tuple[int, int]) -> None:
    wallet, shop = pair
    put_in = hotledger.json("top-up", wallet, 400, "--key", f"put-in-{wallet}")["transfer_id"]
    hotledger.done("pay", wallet, shop, 1400, "--key", f"spent-{wallet}")
    back = ("chargeback", put_in, "--key", f"back-{wallet}", "--reference", "C-77")
    assert hotledger(*back).status == Exit.USAGE
    assert hotledger.json(*back, "--i-have-permission")["debit_available_minor"] == -400
    debts = {debt["wallet_id"]: debt for debt in hotledger.json("wallet", "debts")["debts"]}
    assert debts[wallet]["debt_minor"] == 400
    assert "400" in hotledger.done("wallet", "debts").out
    hotledger.done("top-up", wallet, 400, "--key", f"repaid-{wallet}")
    assert wallet not in {debt["wallet_id"] for debt in hotledger.json("wallet", "debts")["debts"]}


# Conditions, chains, states


def test_balancing_and_conditions(hotledger: Cli, pair: tuple[int, int]) -> None:
    payer, shop = pair
    pay = ("pay", payer, shop)
    version = hotledger.json("wallet", "show", payer)["wallets"][0]["version"]
    hotledger.done(*pay, 100, "--key", f"v-{payer}", "--expect-version", version)
    assert hotledger(*pay, 100, "--key", f"w-{payer}", "--expect-version", version).status == Exit.REFUSED
    assert hotledger(*pay, 1, "--key", f"x-{payer}", "--min-available-after", 900).status == Exit.REFUSED
    swept = hotledger.json("transfer", payer, shop, 10**6, "--key", f"y-{payer}", "--balancing")
    assert (swept["amount_minor"], swept["debit_available_minor"]) == (900, 0)
    assert "Moved 900" in hotledger.done("transfer", payer, shop, 10**6, "--key", f"y-{payer}", "--balancing").out


def chain_file(directory: Path, requests: list[dict[str, Any]], *, lines: bool = True) -> Path:
    path = directory / "chain.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, requests)) if lines else orjson.dumps(requests))
    return path


def test_a_chain_happens_as_a_whole(hotledger: Cli, pair: tuple[int, int], tmp_path: Path) -> None:
    payer, shop = pair
    held = hotledger.json("hold", "place", payer, shop, 100, "--key", f"held-{payer}")["transfer_id"]
    requests: list[dict[str, Any]] = [
        {"kind": "payment", "debit": payer, "credit": shop, "amount_minor": 200, "reference": "cart"},
        {"kind": "transfer", "debit": shop, "credit": payer, "amount_minor": 5, "key": f"own-key-{payer}"},
        {"kind": "capture", "hold_id": held, "amount_minor": 60},
        {"kind": "hold", "debit": payer, "credit": shop, "amount_minor": 10, "expires_in_ms": 60_000},
        {"kind": "top_up", "wallet_id": payer, "currency": "USD", "amount_minor": 7},
        {"kind": "withdrawal", "wallet_id": payer, "currency": "USD", "amount_minor": 3, "id": str(uuid4())},
        {"kind": "freeze", "wallet_id": shop, "side": "credits"},
        {"kind": "set_overdraft_limit", "wallet_id": payer, "value": 50},
    ]
    chain = ("chain", chain_file(tmp_path, requests), "--key", f"chain-{payer}")
    first = hotledger.json(*chain)
    assert first["status"] == "POSTED"
    assert [outcome["key"] for outcome in first["outcomes"]][:3] == [
        f"chain-{payer}/1",
        f"own-key-{payer}",
        f"chain-{payer}/3",
    ]
    assert owned(hotledger, payer, shop) == [(739, 10), (255, 0)]
    again = hotledger.json("chain", chain_file(tmp_path, requests, lines=False), "--key", f"chain-{payer}")
    assert all(outcome["replayed"] for outcome in again["outcomes"])
    assert "All of it happened." in hotledger.done(*chain).out

    more = [{"kind": "unfreeze", "wallet_id": shop}, *requests[:1], requests[0] | {"amount_minor": 10_000}]
    failed = hotledger("chain", chain_file(tmp_path, more), "--key", f"failed-{payer}")
    assert failed.status == Exit.REFUSED
    assert "Nothing of it happened: INSUFFICIENT_FUNDS." in failed.out
    assert failed.out.count("LINKED_FAILED") == 2
    assert hotledger.json("wallet", "show", shop)["wallets"][0]["credit_frozen"]


def test_a_chain_from_the_standard_input(town: Path, pair: tuple[int, int]) -> None:
    payer, shop = pair
    request = orjson.dumps({"kind": "payment", "debit": payer, "credit": shop, "amount_minor": 5})
    ended = run_process("chain", "-", "--json", "--data", town / "money", input=request + b"\n\n" + request)
    assert ended.status == 0, ended
    assert "to retry safely, run this again with --key" in ended.err
    assert [outcome["debit_available_minor"] for outcome in ended.json["outcomes"]] == [995, 990]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "chain must be at least one request"),
        ("[]", "chain must be at least one request"),
        ("{", "request 1 must be a JSON object"),
        ('{"kind": "void"}\n[1]', "request 2 must be a JSON object"),
        ('{"kind": "chargeback", "transfer_id": "x"}', "request 1: kind must be one of transfer, "),
        ('{"kind": 7}', "request 1: kind must be one of transfer, "),
        ('{"debit": 1}', "request 1: kind must be one of transfer, "),
        ('{"kind": "void", "hold_id": 5}', "request 1: hold_id must be a UUID"),
        ('{"kind": "void"}', "request 1: hold_id must be given"),
        ('{"kind": "payment", "debit": 1, "credit": 2, "amount_minor": "5"}', "amount_minor must be an integer"),
        ('{"kind": "payment", "debit": 1, "credit": 2, "amount": 5}', "request 1: amount_minor must be given"),
        ('{"kind": "freeze", "wallet_id": 1, "side": "left"}', "request 1: side must be one of debits"),
        ('{"kind": "freeze", "wallet_id": 1, "linked": true}', "request 1: linked must be absent"),
        (
            '{"kind": "payment", "debit": 1, "credit": 2, "amount_minor": 5, "balancing": 1}',
            "balancing must be True or False",
        ),
        (
            '{"kind": "hold", "debit": 1, "credit": 2, "amount_minor": 5, "purpose": "refund"}',
            "request 1: purpose must be one of payment",
        ),
    ],
)
def test_a_wrong_chain_is_2(text: str, told: str, hotledger: Cli, tmp_path: Path) -> None:
    path = tmp_path / "chain.jsonl"
    path.write_text(text)
    ended = hotledger("chain", path, "--key", "wrong")
    assert (ended.status, ended.out) == (Exit.USAGE, "")
    assert told in ended.err


def test_states_of_a_wallet(hotledger: Cli, pair: tuple[int, int]) -> None:
    payer, shop = pair

    def pay(key: str) -> str:
        return str(hotledger("pay", payer, shop, 1, "--key", f"{key}-{payer}", "--json").json["status"])

    hotledger.done("wallet", "freeze", payer, "--side", "debits")
    assert pay("s1") == "DEBIT_FROZEN"
    assert "debits frozen" in hotledger.done("wallet", "show", payer).out
    hotledger.done("wallet", "unfreeze", payer)
    assert pay("s2") == "POSTED"
    hotledger.done("wallet", "freeze", shop)
    assert pay("s3") == "CREDIT_FROZEN"
    hotledger.done("wallet", "unfreeze", shop)
    hotledger.done("wallet", "overdraft", payer, 20)
    hotledger.done("pay", payer, shop, 1019, "--key", f"s4-{payer}")
    hotledger.done("top-up", payer, 20, "--key", f"s5-{payer}")
    hotledger.done("wallet", "close", payer)
    assert pay("s6") == "WALLET_CLOSED"
    shown = hotledger.json("wallet", "show", payer)["wallets"][0]
    assert (shown["closed"], shown["overdraft_limit_minor"]) == (True, 20)
    lines = hotledger.done("statement", payer).out
    assert "freeze: debits" in lines
    assert "unfreeze: both" in lines
    assert "overdraft limit: 20" in lines


def test_currencies(hotledger: Cli) -> None:
    hotledger.done("currency", "define", "MILES", 3)
    assert hotledger.json("currency", "define", "MILES", 3)["replayed"]
    assert hotledger("currency", "define", "MILES", 2).status == Exit.REFUSED
    assert {"code": "MILES", "exponent": 3} in hotledger.json("currency", "list")["currencies"]


# Fraud rules


def test_limits_of_a_tier(hotledger: Cli, tmp_path: Path) -> None:
    path = tmp_path / "tier.toml"
    path.write_text('max_amount_minor = 500\nreview = ["MAX_AMOUNT", "NEW_DEVICE"]\ndebt_first = false\n')
    hotledger.done("tier", "set", 11, "--file", path, "--day-count", 3)
    limits = hotledger.json("tier", "show", 11)["limits"]
    assert limits.items() >= {"max_amount_minor": 500, "day_count": 3, "hour_amount_minor": None}.items()
    assert (limits["review"], limits["debt_first"], limits["window_minutes"]) == (
        ["MAX_AMOUNT", "NEW_DEVICE"],
        False,
        60,
    )
    hotledger.done("tier", "set", 11, "--keep", "--day-count", 4, "--debt-first")
    assert hotledger.json("tier", "show", 11)["limits"] == limits | {"day_count": 4, "debt_first": True}
    listed = {tier["tier"]: tier["limits"] for tier in hotledger.json("tier", "list")["tiers"]}
    assert listed[11] == limits | {"day_count": 4, "debt_first": True}
    assert "max_amount_minor 500, day_count 4, review MAX_AMOUNT, NEW_DEVICE" in hotledger.done("tier", "list").out
    hotledger.done("tier", "set", 11, "--max-amount", 0)
    assert hotledger.json("tier", "show", 11)["limits"].items() >= {"max_amount_minor": 0, "day_count": None}.items()

    path.write_text("max_amount = 500\n")
    wrong = hotledger("tier", "set", 11, "--file", path)
    assert (wrong.status, "max_amount must be one of max_amount_minor" in wrong.err) == (Exit.USAGE, True)
    path.write_text("max_amount_minor = \n")
    wrong = hotledger("tier", "set", 11, "--file", path)
    assert (wrong.status, "--file must be a TOML file" in wrong.err) == (Exit.USAGE, True)


def test_reviews_and_what_was_declined(hotledger: Cli, pair: tuple[int, int]) -> None:
    payer, shop = pair
    hotledger.done("tier", "set", 12, "--max-amount", 100, "--day-amount", 700, "--review", "MAX_AMOUNT")
    hotledger.done("wallet", "tier", payer, 12)
    device, ip = f"phone {payer}", f"address {payer}"
    origin = ("--device", device, "--ip", ip)

    reviewed = {}
    for name, amount in (("good", 300), ("bad", 200)):
        ended = hotledger("pay", payer, shop, amount, "--key", f"{name}-{payer}", *origin, "--json")
        assert (ended.status, ended.json["status"], ended.json["rule"]) == (6, "UNDER_REVIEW", "MAX_AMOUNT")
        reviewed[name] = ended.json["transfer_id"]
    told = hotledger("pay", payer, shop, 300, "--key", f"good-{payer}", *origin)
    assert told.status == Exit.UNDER_REVIEW
    assert f"hotledger review approve {reviewed['good']}" in told.out
    listed = {hold["id"]: hold for hold in hotledger.json("review", "list")["holds"]}
    assert listed[reviewed["good"]].items() >= {"rule": "MAX_AMOUNT", "review": "TRANSFER", "debit": payer}.items()
    assert "MAX_AMOUNT" in hotledger.done("review", "list").out
    assert "HOLD_UNDER_REVIEW" in hotledger("hold", "capture", reviewed["good"]).out
    hotledger.done("review", "approve", reviewed["good"])
    hotledger.done("review", "reject", reviewed["bad"], "--reason", "stolen phone")
    assert owned(hotledger, payer, shop) == [(700, 0), (300, 0)]
    assert not set(reviewed.values()) & {hold["id"] for hold in hotledger.json("review", "list")["holds"]}

    declined = hotledger("pay", payer, shop, 600, "--key", f"day-{payer}", *origin, "--json")
    assert declined.status == Exit.REFUSED
    assert declined.json.items() >= {"status": "LIMIT_EXCEEDED", "rule": "DAY_AMOUNT", "used": 500}.items()
    assert declined.json["retry_at_ms"] > 1.7e12
    told = hotledger("pay", payer, shop, 600, "--key", f"day-{payer}", *origin)
    assert "Rule DAY_AMOUNT, of which 500 was used before; it may be tried again at" in told.out
    assert "waiting does not help" in hotledger("pay", payer, shop, 900, "--key", f"never-{payer}", *origin).out

    def attempts() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = hotledger.json("declined", "list", "--since", "1h", "--wallet", payer)["declined"]
        return found

    wait_for(lambda: len(attempts()) == 2, "the declined attempts")
    assert [(one["amount_minor"], one["rule"], one["status"]) for one in attempts()] == [
        (900, "DAY_AMOUNT", "LIMIT_EXCEEDED"),
        (600, "DAY_AMOUNT", "LIMIT_EXCEEDED"),
    ]
    digest = attempts()[0]["device"]
    assert device not in hotledger.done("declined", "list").out
    assert len(hotledger.json("declined", "list", "--device", digest)["declined"]) == 2
    assert hotledger.json("declined", "list", "--ip", digest)["declined"] == []
    for by, subject in (("device", digest), ("ip", attempts()[0]["ip"]), ("wallet", str(payer))):
        found = hotledger.json("declined", "offenders", "--by", by, "--since", "1h")["offenders"]
        [offender] = [one for one in found if one["subject"] == subject]
        assert (offender["attempts"], offender["amount_minor"]) == (2, 1500)
        assert offender["reasons"][0].items() >= {"status": "LIMIT_EXCEEDED", "rule": "DAY_AMOUNT"}.items()
    assert "2 DAY_AMOUNT" in hotledger.done("declined", "offenders").out


# Durability


def test_commands_wait_for_durability(
    hotledger: Cli, town: Path, pair: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    payer, merchant = pair
    asked = ("pay", payer, merchant, 5, "--key", f"durable-{payer}")
    paid = hotledger.json(*asked, "--durability", "persisted")
    servers = session.published(town / "money")
    assert servers is not None
    with psycopg.connect(servers.postgres_url) as ledger:
        [found] = ledger.execute("SELECT id FROM journal_event WHERE sequence = %s", [paid["sequence"]]).fetchone() or [
            0
        ]
    assert str(found) == paid["transfer_id"]
    assert hotledger.json(*asked, "--durability", "replicated", "--replicas", 0)["replayed"]
    settings = {"durability": "replicated", "timeout_ms": 300}
    monkeypatch.setattr(WritingPlace, "engine_settings", property(lambda _: settings))
    unknown = hotledger(*asked)
    assert unknown.status == Exit.UNKNOWN
    assert "It was accepted, but is not known to be durable enough yet." in unknown.err
    assert "(on 0 of 1 replicas)" in unknown.err


def test_the_guarantee(hotledger: Cli, town: Path) -> None:
    found = hotledger.json("guarantee")
    assert found["accepted"] == "the death of the server process and a power loss; not the loss of its machine"
    assert (found["default"], found["replicas"], found["warnings"]) == ("accepted", 1, [])
    assert (found["redis"]["appendfsync"], found["postgres"]["fsync"]) == ("always", True)
    with redis.Redis.from_url(f"unix://{town}/money/run/valkey.sock") as server:
        server.config_set("appendfsync", "everysec")
        try:
            shown = hotledger.done("guarantee")
        finally:
            server.config_set("appendfsync", "always")
    assert "the death of the server process at most" in shown.out
    assert "warning: appendfsync is everysec" in shown.err


# Exit statuses


@pytest.mark.usefixtures("people")
@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("transfer 17 18 99999999 --key r1", "INSUFFICIENT_FUNDS"),
        ("transfer 17 17 1 --key r2", "SAME_WALLET"),
        ("transfer 17 777 1 --key r3", "CREDIT_WALLET_NOT_FOUND"),
        ("top-up 777 1 --key r4", "CREDIT_WALLET_NOT_FOUND"),
        ("withdraw 777 1 --key r5", "DEBIT_WALLET_NOT_FOUND"),
        ("transfer 17 18 1 --key r6 --currency EUR", "CURRENCY_MISMATCH"),
        ("top-up 17 7 --key start-17", "EXISTS_WITH_DIFFERENT_AMOUNT"),
        ("wallet open 17 --currency EUR --owner 4", "EXISTS_WITH_DIFFERENT_CURRENCY"),
        ("lookup --key never-sent", "NOT_APPLIED"),
        ("wallet show 17 777", "not found: 777"),
        ("statement 777", "not in the ledger"),
        (f"hold show {NOBODYS}", "not in the ledger"),
        (f"hold capture {NOBODYS}", "HOLD_NOT_FOUND"),
        (f"hold void {NOBODYS}", "HOLD_NOT_FOUND"),
        (f"pending confirm {NOBODYS} PSP-1", "HOLD_NOT_FOUND"),
        (f"refund {NOBODYS} --key r7", "TRANSFER_NOT_FOUND"),
        ("tier show 77", "has no limits"),
        ("wallet tier 17 77", "TIER_NOT_FOUND"),
        ("wallet close 17", "WALLET_NOT_EMPTY"),
        ("currency define USD 3", "EXISTS_WITH_DIFFERENT_OVERDRAFT_LIMIT"),
        ("pay 17 900 1 --expect-version 999999 --key r8", "CONDITION_FAILED"),
        ("pay 17 900 1 --min-available-after 999999999 --key r9", "CONDITION_FAILED"),
    ],
)
def test_refused_is_1(command: str, told: str, hotledger: Cli) -> None:
    ended = hotledger(*command.split())
    assert ended.status == Exit.REFUSED
    assert told in ended.out + ended.err


@pytest.mark.parametrize(
    ("command", "answer"),
    [("tier show 77", {"tier": 77, "limits": None}), (f"hold show {NOBODYS}", {"hold": None, "history": []})],
)
def test_what_is_not_there_is_an_answer_for_machines_too(
    command: str, answer: dict[str, object], hotledger: Cli
) -> None:
    ended = hotledger(*command.split(), "--json")
    assert (ended.status, ended.json) == (Exit.REFUSED, answer)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("transfer 17 18 0 --key u1", "amount_minor must be an integer from 1 to 9007199254740991"),
        ("transfer 17 18 9007199254740992 --key u1", "amount_minor must be"),
        ("transfer 17 18 1.5 --key u1", "AMOUNT"),
        ("transfer 0 18 1 --key u1", "debit must be an integer from 1"),
        ("transfer 17 18 1 --key u1 --id 0195d3c4-0000-7000-8000-000000000001", "--id must be absent"),
        ("transfer 17 18 1 --id nonsense", "--id must be a UUID"),
        ("transfer 17 18 1 --id 00000000-0000-0000-0000-000000000000", "id must be"),
        ("transfer 17 18 1 --key u1 --currency usd", "currency must be 3 to 8"),
        ("transfer 17 18 1 --key u1 --metadata [1]", "metadata must be a JSON object"),
        ("transfer 17 18 1 --key u1 --metadata {", "metadata must be a JSON object"),
        (f"transfer 17 18 1 --key {'k' * 256}", "key must be text of 1 to 255"),
        (f"transfer 17 18 1 --key u1 --reference {'r' * 65}", "reference must be text of 1 to 64"),
        ("wallet open 0 --currency USD", "wallet_id must be"),
        ("wallet open 5 --currency U", "currency must be"),
        ("wallet open 5", "--currency"),
        ("statement 17 --limit 1001", "1000"),
        ("lookup", "--key or --id"),
        ("replay nothing.csv --format csv", "nothing.csv"),
        ("nothing", "nothing"),
        ("transfer 17", "TO"),
        ("migrate --redis-url redis://localhost", "--postgres-url must be given too, or HOTLEDGER_POSTGRES_URL set"),
        ("migrate --postgres-url postgresql:///x", "--redis-url must be given too, or HOTLEDGER_REDIS_URL set"),
        ("migrate --redis-url nonsense --postgres-url postgresql:///x", "--redis-url must be redis://"),
        ("migrate --redis-url redis://h --postgres-url postgresql:///x --data d", "--data must be absent"),
        (f"hold capture {NOBODYS} --more-to-come --amount 0 --key u1", "amount_minor must be"),
        ("hold void nonsense", "HOLD must be a UUID"),
        ("hold place 17 900 1 --expires-in soon", "--expires-in must be a number and ms, s, m, h or d"),
        ("hold place 17 900 1 --expires-in 367d --key u1", "expires_in_ms must be"),
        (f"pending confirm {NOBODYS} {'r' * 65}", "reference must be"),
        (f"chargeback {NOBODYS}", "--i-have-permission must be given"),
        ("tier set 0 --day-count 1", "tier must be an integer from 1"),
        ("tier set 1 --device-wallets 17", "device_wallets must be an integer from 0 to 16"),
        ("tier set 1 --review LUCK", "review must be a list of MAX_AMOUNT"),
        ("tier set 1 --file nothing.toml", "--file must be a file that can be read"),
        ("wallet freeze 17 --side left", "--side"),
        ("currency define USDX 9", "exponent must be an integer from 0 to 8"),
        ("declined list --device 12", "--device must be 16 hexadecimal digits"),
        ("declined list --since ever", "--since must be"),
        ("chain nothing.jsonl", "nothing.jsonl"),
        ("persist", "--redis-url"),
        ("demo --requests 5", "--requests"),
    ],
)
def test_wrong_usage_is_2(command: str, told: str, hotledger: Cli) -> None:
    ended = hotledger(*command.split())
    assert ended.status == Exit.USAGE
    assert told in ended.err
    assert "Traceback" not in ended.err
    assert ended.out == ""


@pytest.mark.parametrize(
    "variable", [("HOTLEDGER_LOG_LEVEL", "loud"), ("HOTLEDGER_LOG_FORMAT", "xml"), ("HOTLEDGER_DIGEST_KEY", "short")]
)
def test_a_wrong_variable_is_2(variable: tuple[str, str], town: Path) -> None:
    ended = Cli(town / "money", dict([variable]))("wallet", "show", 17)
    assert (ended.status, variable[0] in ended.err) == (Exit.USAGE, True)


def test_unavailable_is_3_and_secrets_stay_secret(servers: EmbeddedServers) -> None:
    redis_url, postgres_url = "redis://user:hunter2@127.0.0.1:1/0", "postgresql://user:hunter2@127.0.0.1:1/x"
    for urls in ((redis_url, servers.postgres_url), (servers.redis_url, postgres_url)):
        ended = Cli()("wallet", "show", 1, "--redis-url", urls[0], "--postgres-url", urls[1])
        assert ended.status == Exit.UNAVAILABLE
        assert "cannot be reached" in ended.err
        assert "hunter2" not in ended.err + ended.out


def test_a_busy_directory_is_3(town: Path, hotledger: Cli) -> None:
    for command in ("up", "demo"):
        ended = hotledger(command, "--data", town / "money")
        assert ended.status == Exit.UNAVAILABLE
        assert "is in use by process" in ended.err


def test_a_file_of_another_process_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "BUSY_PATIENCE_S", 0.2)
    lock = embedded._claim(tmp_path / "data")
    content = {"pid": os.getpid() + 1, "redis_url": "unix:///nowhere", "postgres_url": "postgresql:///nowhere"}
    (tmp_path / "data" / "servers.json").write_bytes(orjson.dumps(content))
    ended = Cli(tmp_path / "data")("wallet", "show", 1)
    embedded._release(lock)
    assert ended.status == Exit.UNAVAILABLE
    assert f"is in use by process {os.getpid()}" in ended.err


async def test_an_unknown_outcome_is_4_and_can_be_looked_up(town: Path, tmp_path: Path) -> None:
    data = ("--data", town / "money")
    await asyncio.to_thread(run_process, "wallet", "open", 131, "--currency", "USD", *data)
    content = orjson.loads((town / "money" / "servers.json").read_bytes())
    async with proxy_to(content["redis_url"], tmp_path) as (proxy, redis_url):

        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(65536):
                proxy.swallow_replies |= b"hotledger_post" in data
                writer.write(data)
            writer.close()

        proxy._forward = forward  # type: ignore[method-assign]
        words = ("top-up", 131, 5, "--currency", "USD", "--key", "lost")
        urls = {"HOTLEDGER_REDIS_URL": redis_url, "HOTLEDGER_POSTGRES_URL": content["postgres_url"]}
        ended = await asyncio.to_thread(run_process, *words, environment=urls)
    assert ended.status == Exit.UNKNOWN, ended
    assert "hotledger lookup --key lost" in ended.err
    found = await asyncio.to_thread(run_process, "lookup", "--key", "lost", "--json", *data)
    assert found.json["status"] == "POSTED"


def test_another_digest_key_is_5(town: Path) -> None:
    ended = Cli(town / "money", {"HOTLEDGER_DIGEST_KEY": DIGEST_KEY})("top-up", 17, 1, "--key", "d")
    assert ended.status == Exit.FATAL
    assert "digest key" in ended.err


# The life of `up`


def test_up_survives_a_kill_with_all_data_and_its_file_is_not_believed(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    money = Cli(data_dir, {"HOTLEDGER_DIGEST_KEY": DIGEST_KEY})
    with running_up(data_dir, environment=money.environment) as process:
        money.done("wallet", "open", 1, "--currency", "USD")
        money.done("top-up", 1, 500, "--key", "k1")
        published = data_dir / "servers.json"
        assert stat.S_IMODE(published.stat().st_mode) == 0o600
        process.kill()
        process.wait()
    assert published.exists()

    # No `up` runs: a command must start servers itself, once those of the killed one are gone, and a second one
    # waits for its turn.
    show = ("wallet", "show", 1, "--json", "--data", data_dir)
    with started(*show, environment=money.environment) as other:
        for out in (run_process(*show, environment=money.environment).out, other.communicate(timeout=PATIENCE_S)[0]):
            assert orjson.loads(out)["wallets"][0]["available_minor"] == 500
    with running_up(data_dir, environment=money.environment) as process:
        assert orjson.loads(published.read_bytes())["pid"] == process.pid
        assert money.json("top-up", 1, 500, "--key", "k1")["replayed"]
        assert [line["amount_minor"] for line in money.json("statement", 1)["lines"]] == [500, 0]
        assert money.json("reconcile")["ok"]
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
    assert not published.exists()
    assert run_process("wallet", "show", 1, "--data", data_dir).status == Exit.FATAL  # without the digest key


def test_up_replaces_a_killed_persister_and_ends_with_a_broken_one(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    money = Cli(data_dir)
    with running_up(data_dir) as process:
        money.done("wallet", "open", 1, "--currency", "USD")
        [persister] = children(process.pid, "persist")
        os.kill(persister, signal.SIGKILL)
        wait_for(lambda: children(process.pid, "persist") not in ([persister], []))
        money.done("top-up", 1, 5, "--key", "k1")
        assert money.json("statement", 1)["lines"][0]["amount_minor"] == 5

        with redis.Redis.from_url(f"unix://{data_dir}/run/valkey.sock") as client:
            client.set(ShardDriver(client).keys.meta, b"damaged")
        assert process.wait(PATIENCE_S) == Exit.FATAL
        assert "CorruptRecord" in log_of(data_dir).read_text()
    assert children_of_directory(data_dir) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_long_command_ends_cleanly(tmp_path: Path, number: signal.Signals, status: int) -> None:
    # SIGINT is ignored in what a script starts in the background; SIGTERM has to end it all the same.
    ignoring = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    with started("demo", environment={"TMPDIR": str(tmp_path)}, preexec_fn=ignoring) as process:
        wait_for(lambda: any(journalled(made / "data") > 12_000 for made in tmp_path.iterdir()), "the day")
        process.send_signal(number)
        output = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == status
    assert "Traceback" not in output[1]
    assert list(tmp_path.iterdir()) == []
    assert children_of_directory(tmp_path) == []


def test_urls_a_persister_and_migrate(valkey_url: str, servers: EmbeddedServers) -> None:
    """Servers of somebody else: the schema, a persister of its own, and commands beside it."""
    with psycopg.connect(servers.postgres_url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    urls = {"HOTLEDGER_REDIS_URL": valkey_url, "HOTLEDGER_POSTGRES_URL": servers.postgres_url}
    money = Cli(environment=urls)
    assert money.json("migrate")["applied"][0] == "0001"
    assert money.json("migrate")["applied"] == []
    with started("persist", environment=urls) as process:
        opened = run_process("wallet", "open", 1, "--currency", "USD", "--json", environment=urls)
        assert opened.json["status"] == "POSTED"
        assert run_process("reconcile", environment=urls).status == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    wipe_redis(valkey_url)
    # An empty Redis is filled from the ledger again by whoever opens the shard.
    rebuilt = run_process("wallet", "show", 1, "--json", environment=urls).json
    assert ([wallet["wallet_id"] for wallet in rebuilt["wallets"]], rebuilt["not_found"]) == ([1], [])


def children(parent: int, word: str) -> list[int]:
    """The pids of the child processes with this word on their command line."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    return [int(pid) for pid, ppid, args in rows if int(ppid) == parent and word in args.split()]


def children_of_directory(directory: Path) -> list[str]:
    """The processes that name the directory on their command line."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if str(directory) in line]
