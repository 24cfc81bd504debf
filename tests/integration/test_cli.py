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
from gateway.embedded import EmbeddedServers
from gateway.exits import MEANINGS, Exit
from tests.fixtures.cli import PATIENCE_S, Cli, journalled, log_of, run_process, running_up, started, wait_for
from tests.fixtures.proxy import proxy_to
from tests.fixtures.servers import wipe_redis
from tests.fixtures.shard import ShardDriver

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DIGEST_KEY = "a digest key of a test"


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
    """Wallets 17 and 18 with 100,000 and merchant 900, for the examples."""
    for wallet in (17, 18, 900):
        hotledger("wallet", "open", wallet, "--currency", "USD", "--owner", 4)
    for wallet in (17, 18):
        hotledger.done("top-up", wallet, 100_000, "--key", f"start-{wallet}")


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
QUICK = sorted({line for line in EXAMPLES if line.split()[1] not in ("up", "persist", "demo")})


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
    header = "step,type,amount,nameOrig,oldbalanceOrg,newbalanceOrig,nameDest,oldbalanceDest,newbalanceDest\n"
    (town / "paysim.csv.gz").write_bytes(gzip.compress(header.encode()))
    words = shlex.split(example, comments=True)[1:]
    if words[0] == "lookup":
        hotledger("transfer", 17, 18, 500, "--key", words[2], "--reference", "lunch")
    ended = hotledger(*words)
    # The same opening with and without an owner are two different requests; the second one is refused.
    assert ended.status == 0 or (words[0] == "wallet" and "EXISTS_WITH_DIFFERENT_OWNER" in ended.out), ended
    assert ended.out


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
    assert set(shown["by_status"]) == {"POSTED", "INSUFFICIENT_FUNDS", "EXISTS_WITH_DIFFERENT_AMOUNT"}
    assert shown["replays"] >= 30
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
    ],
)
def test_refused_is_1(command: str, told: str, hotledger: Cli) -> None:
    ended = hotledger(*command.split())
    assert ended.status == Exit.REFUSED
    assert told in ended.out + ended.err


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
    lost = run_process("wallet", "show", 1, environment=urls)
    assert (lost.status, "Redis lost its data" in lost.err) == (Exit.FATAL, True)


def children(parent: int, word: str) -> list[int]:
    """The pids of the child processes with this word on their command line."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    return [int(pid) for pid, ppid, args in rows if int(ppid) == parent and word in args.split()]


def children_of_directory(directory: Path) -> list[str]:
    """The processes that name the directory on their command line."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if str(directory) in line]
