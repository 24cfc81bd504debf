"""`hotledger replay`: its figures against an independent simulation, its order, its bad rows, running it again."""

from __future__ import annotations

import csv
import gzip
import hashlib
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis

from engine import Engine, OpenWallet, Outcome, OutcomeUnknown, Status, Transfer, Unavailable
from engine.domain.transfer import Request
from gateway.replay import settle
from gateway.replay_rules import PAYSIM_RULES
from tests.fixtures.cli import Cli, journalled, running_up, started, wait_for
from tests.fixtures.servers import wipe_redis
from tests.fixtures.shard import OUTSIDE, ShardDriver, new_shard

PAYSIM = Path(__file__).parents[3] / "shared" / "data" / "paysim_head.csv.gz"
HEADER = "key,debit,credit,amount_minor,currency,kind\n"
FIGURES = {
    "rows",
    "wallets",
    "posted",
    "declined",
    "replayed",
    "volume_minor",
    "balances_sha256",
    "ledger_sum_minor",
    "drift",
    "seconds",
    "transfers_per_s",
}

needs_paysim = pytest.mark.skipif(not PAYSIM.exists(), reason=f"{PAYSIM} is not here")


@pytest.fixture(scope="module")
def paysim_cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """Servers that take nothing but PaySim, because its sha256 is over every wallet."""
    data_dir = tmp_path_factory.mktemp("paysim") / "data"
    with running_up(data_dir):
        yield Cli(data_dir)


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """Servers for csv files; each test has wallets and keys of its own."""
    data_dir = tmp_path_factory.mktemp("csv") / "data"
    with running_up(data_dir):
        yield Cli(data_dir)


@pytest.fixture
def replay_csv(cli: Cli, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def replay(rows: Sequence[str], *options: str) -> dict[str, Any]:
        return cli.json("replay", file_of(tmp_path, rows), "--format", "csv", *options)

    return replay


def file_of(tmp_path: Path, rows: Sequence[str]) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text(HEADER + "".join(f"{row}\n" for row in rows))
    return path


def balances(cli: Cli, *wallet_ids: int) -> list[int]:
    return [wallet["available_minor"] for wallet in cli.json("wallet", "show", *wallet_ids)["wallets"]]


# PaySim


class Limits(NamedTuple):
    """In cents, of wallets of C...: more than review waits for an operator, more than a day's sum is refused."""

    review: int
    day: int


def simulate(limit: int | None = None, limits: Limits | None = None) -> dict[str, Any]:
    """The rules of a paysim replay on plain dicts, knowing nothing of the engine."""
    available: dict[int, int] = {}
    locked: Counter[int] = Counter()
    used: Counter[int] = Counter()
    statuses: Counter[str] = Counter()
    labelled: dict[str, Counter[str]] = {"1": Counter(), "0": Counter()}
    volume = 0
    with gzip.open(PAYSIM, "rt") as file:
        for number, row in enumerate(csv.DictReader(file)):
            if number == limit:
                break
            sides = []
            for name, balance in ((row["nameOrig"], row["oldbalanceOrg"]), (row["nameDest"], row["oldbalanceDest"])):
                wallet = 2 * int(name[1:]) + {"C": 0, "M": 1}[name[0]]
                sides.append(wallet)
                if wallet not in available:
                    available[wallet] = max(0, cents(balance))
            debit, credit = reversed(sides) if row["type"] == "CASH_IN" else sides
            amount = cents(row["amount"])
            rules = limits if debit % 2 == 0 else None
            if debit == credit:
                status = "SAME_WALLET"
            elif rules and used[debit] + amount > rules.day:
                status = "LIMIT_EXCEEDED"
            elif available[debit] < amount:
                status = "INSUFFICIENT_FUNDS"
            elif rules and amount > rules.review:
                status = "UNDER_REVIEW"
                locked[debit] += amount
            else:
                status = "POSTED"
                available[credit] += amount
                volume += amount
            if status in ("POSTED", "UNDER_REVIEW"):
                available[debit] -= amount
                used[debit] += amount
            statuses[status] += 1
            labelled[row["isFraud"]] += Counter({status: 1, "rows": 1, f"cents {status}": amount, "cents": amount})
    lines = "".join(f"{wallet}:{available[wallet] + locked[wallet]}\n" for wallet in sorted(available))
    return {
        "rows": statuses.total(),
        "wallets": len(available),
        "posted": statuses["POSTED"],
        "declined": statuses.total() - statuses["POSTED"],
        "volume_minor": volume,
        "balances_sha256": hashlib.sha256(lines.encode()).hexdigest(),
        "ledger_sum_minor": 0,
        "drift": 0,
        "by_status": dict(statuses),
    } | ({"rules": {"fraud": group(labelled["1"]), "honest": group(labelled["0"])}} if limits else {})


def group(found: Counter[str]) -> dict[str, Any]:
    stopped = found["UNDER_REVIEW"] + found["LIMIT_EXCEEDED"]
    stopped_cents = found["cents UNDER_REVIEW"] + found["cents LIMIT_EXCEEDED"]
    by_rule = {"MAX_AMOUNT": found["UNDER_REVIEW"], "DAY_AMOUNT": found["LIMIT_EXCEEDED"]}
    return {
        "rows": found["rows"],
        "stopped": stopped,
        "stopped_share": round(stopped / found["rows"], 6),
        "declined": found["LIMIT_EXCEEDED"],
        "reviewed": found["UNDER_REVIEW"],
        "posted": found["POSTED"],
        "by_rule": {name: count for name, count in by_rule.items() if count},
        "volume_minor": found["cents"],
        "stopped_minor": stopped_cents,
        "stopped_minor_share": round(stopped_cents / found["cents"], 6),
    }


def cents(text: str) -> int:
    return int((Decimal(text) * 100).quantize(Decimal(1), ROUND_HALF_EVEN))


@needs_paysim
def test_paysim_figures_through_a_kill_and_again(paysim_cli: Cli) -> None:
    """A part, a run that is killed somewhere, the whole, and the whole again: the simulation's figures each time."""

    def replay(*options: object) -> dict[str, Any]:
        return paysim_cli.json("replay", PAYSIM, "--format", "paysim", *options)

    part = replay("--limit", 3000)
    assert set(part) >= FIGURES
    assert part.items() >= (simulate(3000) | {"replayed": 0}).items()

    data_dir = paysim_cli.data_dir
    assert data_dir is not None
    words = ("replay", PAYSIM, "--format", "paysim", "--data", data_dir)
    with started(*words) as process:
        wait_for(lambda: journalled(data_dir) > 30_000, "progress")
        process.kill()
    expected = simulate()
    whole = replay()
    assert whole.items() >= expected.items()
    assert 3000 < whole["replayed"] < whole["rows"]

    again = replay()
    assert again.items() >= (expected | {"replayed": expected["rows"]}).items()


@needs_paysim
def test_the_shipped_rules_do_as_they_say(tmp_path: Path) -> None:
    """The figures of an independent simulation, and those that the file states at its top; and again as replays."""
    limits = Limits(review=40_000_000, day=500_000_000)
    rules = tomllib.loads(PAYSIM_RULES.read_text())
    assert rules["default_tier"] == {"customers": 1, "merchants": 0}
    assert rules["tiers"]["1"] == {
        "max_amount_minor": limits.review,
        "day_amount_minor": limits.day,
        "review": ["MAX_AMOUNT"],
    }
    with running_up(tmp_path / "data"):
        cli = Cli(tmp_path / "data")
        words = ("replay", PAYSIM, "--format", "paysim", "--rules", PAYSIM_RULES)
        figures = cli.json(*words)
        assert figures.items() >= simulate(limits=limits).items()
        assert figures["replayed"] == 0
        again = cli.json(*words, "--limit", 3000)
        assert (again["rows"], again["replayed"], again["drift"]) == (3000, 3000, 0)
        assert again["rules"] == simulate(3000, limits)["rules"]
        assert cli.json("wallet", "show", 2 * 1231006815)["wallets"][0]["tier"] == 1
        assert cli.json("wallet", "show", 2 * 1979787155 + 1)["wallets"][0]["tier"] == 0

    stated = re.findall(
        r"^# +(fraud|honest) +([\d,]+) +([\d,]+) +\(([\d.]+) %\) +([\d,]+) +([\d,]+) +([\d.]+) %$",
        PAYSIM_RULES.read_text(),
        re.MULTILINE,
    )
    assert stated == [
        (
            label,
            f"{found['rows']:,}",
            f"{found['stopped']:,}",
            f"{100 * found['stopped_share']:.2f}",
            f"{found['declined']:,}",
            f"{found['reviewed']:,}",
            f"{100 * found['stopped_minor_share']:.2f}",
        )
        for label, found in figures["rules"].items()
    ]


PAYSIM_HEADER = (
    "step,type,amount,nameOrig,oldbalanceOrg,newbalanceOrig,nameDest,oldbalanceDest,newbalanceDest,isFraud\n"
)


def paysim_file(tmp_path: Path, rows: Sequence[str], header: str = PAYSIM_HEADER) -> Path:
    path = tmp_path / "paysim.csv"
    path.write_text(header + "".join(f"{row}\n" for row in rows))
    return path


def test_rules_go_by_wallet_and_are_reported(tmp_path: Path) -> None:
    rows = [
        "1,TRANSFER,5.00,C1,100.0,0,C2,0.0,0,0",
        "1,TRANSFER,5.01,C1,100.0,0,C2,0.0,0,1",  # declined
        "1,TRANSFER,9.00,C3,100.0,0,C2,0.0,0,1",  # C3 may, with an operator's word
        "1,TRANSFER,9.00,M4,100.0,0,C2,0.0,0,0",  # merchants have no limits
        "1,TRANSFER,0.50,C5,0.0,0,C2,0.0,0,0",
    ]
    rules = tmp_path / "rules.toml"
    rules.write_text(
        """
        default_tier = {customers = 1, merchants = 0}
        wallet_tier = {C3 = 2}
        [tiers.1]
        max_amount_minor = 500
        [tiers.2]
        max_amount_minor = 800
        review = ["MAX_AMOUNT"]
        """
    )
    with running_up(tmp_path / "data"):
        cli = Cli(tmp_path / "data")
        path = paysim_file(tmp_path, rows)
        words = ("replay", path, "--format", "paysim", "--rules", rules)
        figures = cli.json(*words)
        statuses = {"POSTED": 2, "LIMIT_EXCEEDED": 1, "UNDER_REVIEW": 1, "INSUFFICIENT_FUNDS": 1}
        assert figures["by_status"] == statuses
        fraud, honest = figures["rules"]["fraud"], figures["rules"]["honest"]
        assert (fraud["rows"], fraud["declined"], fraud["reviewed"], fraud["stopped_share"]) == (2, 1, 1, 1.0)
        assert (honest["rows"], honest["stopped"], honest["posted"], honest["by_rule"]) == (3, 0, 2, {})
        assert cli.json(*words, "--limit", 0)["rules"]["fraud"].items() >= {"rows": 0, "stopped_share": None}.items()
        table = cli.done(*words).out
        assert "What the fraud rules stopped" in table
        assert "100.00%" in table
        # What was decided stays decided; new rules are in force for what comes.
        rules.write_text("default_tier = {customers = 0, merchants = 0}\n")
        assert cli.json(*words).items() >= {"by_status": statuses, "replayed": 5}.items()
        assert {wallet["tier"] for wallet in cli.json("wallet", "show", 2, 6)["wallets"]} == {0}
        assert "rules" not in cli.json("replay", path, "--format", "paysim")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1", "x must be one of the tables default_tier, wallet_tier, tiers"),
        ("", "default_tier must be a table"),
        ("default_tier = {customers = 0}", "default_tier must be a table of customers and merchants"),
        ("default_tier = {customers = 0, merchants = 0, banks = 0}", "default_tier must be a table of customers"),
        ("default_tier = {customers = 1, merchants = 0}", "default_tier.customers must be 0 or a tier"),
        ("default_tier = {customers = true, merchants = 0}", "default_tier.customers must be 0 or a tier"),
        (
            "default_tier = {customers = 0, merchants = 0}\nwallet_tier = {X1 = 0}",
            "wallet_tier must be C or M and digits",
        ),
        ("default_tier = {customers = 0, merchants = 0}\nwallet_tier = {C1 = 3}", "wallet_tier.C1 must be 0 or a tier"),
        ("tiers = 5", "tiers must be a table"),
        ("tiers = {one = {}}", "tiers must be tables named by the tier's number"),
        ("tiers = {0 = {}}", "tier must be an integer from 1"),
        ("tiers = {1 = 5}", "tiers.1 must be a table"),
        ("[tiers.1]\nmax = 5", "tiers.1.max must be one of max_amount_minor"),
        ("[tiers.1]\nday_count = -1", "tiers.1.day_count must be an integer from 0"),
        ("[tiers.1]\nreview = 'MAX_AMOUNT'", "tiers.1.review must be a list of MAX_AMOUNT"),
        ("[tiers", "--rules must be a TOML file"),
    ],
)
def test_wrong_rules_are_2(cli: Cli, tmp_path: Path, text: str, told: str) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(text)
    ended = cli("replay", paysim_file(tmp_path, []), "--format", "paysim", "--rules", rules)
    assert (ended.status, ended.out) == (2, "")
    assert told in ended.err


def test_rules_need_labels(cli: Cli, tmp_path: Path) -> None:
    wrong = cli("replay", file_of(tmp_path, []), "--format", "csv", "--rules", PAYSIM_RULES)
    assert (wrong.status, "--rules must be absent" in wrong.err) == (2, True)
    unlabelled = paysim_file(tmp_path, [], PAYSIM_HEADER.replace(",isFraud", ""))
    wrong = cli("replay", unlabelled, "--format", "paysim", "--rules", PAYSIM_RULES)
    assert (wrong.status, "isFraud" in wrong.err) == (2, True)


# csv


def test_csv_figures_and_every_kind(cli: Cli, replay_csv: Callable[..., dict[str, Any]]) -> None:
    rows = [
        "a1,,11,1000,USD,top_up",
        "a2,11,12,300,USD,",
        "a3,11,13,200,USD,payment",
        "a4,12,,100,USD,withdrawal",
        "a5,12,11,201,USD,transfer",  # 200 are left
        "a6,12,11,200,USD,transfer",
        "a7,13,13,1,USD,transfer",
        "a8,14,13,1,USD,payment",  # opened by its row, with nothing in it
    ]
    first = replay_csv(rows)
    assert (
        first.items()
        >= {
            "rows": 8,
            "wallets": 4,
            "posted": 5,
            "declined": 3,
            "replayed": 0,
            "bad": 0,
            "volume_minor": 1800,
            "ledger_sum_minor": 0,
            "drift": 0,
            "by_status": {"POSTED": 5, "INSUFFICIENT_FUNDS": 2, "SAME_WALLET": 1},
        }.items()
    )
    assert balances(cli, 11, 12, 13, 14) == [700, 0, 200, 0]

    again = replay_csv(rows)
    assert again.items() >= {"posted": 5, "declined": 3, "replayed": 8, "volume_minor": 1800}.items()
    assert again["balances_sha256"] == first["balances_sha256"]


def test_the_order_of_rows_decides_who_is_refused(cli: Cli, replay_csv: Callable[..., dict[str, Any]]) -> None:
    """A coin goes down a long line of empty wallets and back, across many chunks: any swap would refuse a row."""
    first, count = 1_000_000, 3000
    down = [f"d{n},{first + n},{first + n + 1},1,USD," for n in range(count)]
    back = [f"u{n},{first + n + 1},{first + n},1,USD," for n in reversed(range(count))]
    figures = replay_csv([f"d,,{first},1,USD,top_up", *down, *back])
    assert figures.items() >= {"rows": 2 * count + 1, "declined": 0, "wallets": count + 1, "replayed": 0}.items()
    assert balances(cli, first, first + count) == [1, 0]


def test_the_sha256_is_of_every_wallet_but_the_external(cli: Cli, replay_csv: Callable[..., dict[str, Any]]) -> None:
    biggest = 2**63 - 1
    rows = [
        f"s1,,{biggest},{2**53 - 2},BIG,top_up",
        "s2,,9,1,BIG,top_up",
        f"s3,9,{biggest},1,BIG,",
        "s4,,9,1,BIG,top_up",  # the outside world has no more
    ]
    figures = replay_csv(rows)
    assert figures["by_status"] == {"POSTED": 3, "BALANCE_OUT_OF_RANGE": 1}
    known = [*range(1, 15), *range(1_000_000, 1_003_001), biggest]
    shown = cli("wallet", "show", *known, "--json").json["wallets"]
    lines = "".join(f"{wallet['wallet_id']}:{wallet['available_minor']}\n" for wallet in shown)
    assert figures["balances_sha256"] == hashlib.sha256(lines.encode()).hexdigest()


def test_currencies(cli: Cli, replay_csv: Callable[..., dict[str, Any]]) -> None:
    rows = [
        "c1,,21,500,USD,top_up",
        "c2,,22,500,EUR,top_up",
        "c3,21,22,1,USD,",  # two currencies
        "c4,22,23,1,USD,",  # opens 23 in USD, but 22 is EUR
        "c5,21,23,1,EUR,",  # both are USD
        "c6,21,,1,EUR,withdrawal",
        "c7,21,23,1,USD,",
        "c8,,24,7,KES12345,",
    ]
    figures = replay_csv(rows)
    assert figures["by_status"] == {"POSTED": 4, "CURRENCY_MISMATCH": 4}
    shown = cli.json("wallet", "show", 21, 22, 23, 24)["wallets"]
    assert [(wallet["currency"], wallet["available_minor"]) for wallet in shown] == [
        ("USD", 499),
        ("EUR", 500),
        ("USD", 1),
        ("KES12345", 7),
    ]


def test_wallets_that_exist_stay_as_they_are(cli: Cli, replay_csv: Callable[..., dict[str, Any]]) -> None:
    cli.done("wallet", "open", 31, "--currency", "USD", "--owner", 7, "--overdraft", 50)
    assert replay_csv(["e1,31,32,50,USD,"])["by_status"] == {"POSTED": 1}
    assert balances(cli, 31, 32) == [-50, 50]


def test_a_key_twice_in_a_file(cli: Cli, replay_csv: Callable[..., dict[str, Any]]) -> None:
    rows = ["f1,,41,10,USD,top_up", "f1,,41,10,USD,top_up", "f1,,41,11,USD,top_up", "f1,,42,10,USD,top_up"]
    figures = replay_csv(rows)
    assert figures["by_status"] == {
        "POSTED": 2,
        "EXISTS_WITH_DIFFERENT_AMOUNT": 1,
        "EXISTS_WITH_DIFFERENT_CREDIT": 1,
    }
    assert figures.items() >= {"posted": 2, "declined": 2, "replayed": 1, "volume_minor": 20}.items()
    assert balances(cli, 41, 42) == [10, 0]


def test_a_bad_row_stops_before_anything_of_it_happens(cli: Cli, tmp_path: Path) -> None:
    rows = ["g1,,51,10,USD,top_up", "g2,52,53,0,USD,", "g3,,54,10,USD,top_up"]
    path = file_of(tmp_path, rows)
    stopped = cli("replay", path, "--format", "csv", "--json")
    assert stopped.status == 2
    assert "line 3: amount_minor: must be" in stopped.err
    assert "1 rows before it were applied" in stopped.err
    assert stopped.out == ""
    shown = cli("wallet", "show", 51, 52, 53, 54, "--json")
    assert (shown.status, shown.json["not_found"]) == (1, [52, 53, 54])

    skipped = cli.json("replay", path, "--format", "csv", "--skip-bad")
    assert skipped.items() >= {"rows": 3, "posted": 2, "declined": 0, "bad": 1, "replayed": 1, "wallets": 2}.items()


@pytest.mark.parametrize("rows", [[], ["g9,1,2,x,USD,"]])
def test_a_file_without_a_good_row(replay_csv: Callable[..., dict[str, Any]], rows: list[str]) -> None:
    assert replay_csv(rows, "--skip-bad").items() >= {"posted": 0, "declined": 0, "bad": len(rows), "drift": 0}.items()


def test_what_is_no_such_file_is_refused(cli: Cli, tmp_path: Path) -> None:
    path = file_of(tmp_path, ["h1,,1,1,USD,"])
    other = cli("replay", path, "--format", "paysim")
    assert (other.status, "header" in other.err) == (2, True)
    assert cli("replay", path, "--format", "ofx").status == 2
    assert cli("replay", tmp_path / "none.csv", "--format", "csv").status == 2


def test_people_get_tables(cli: Cli, tmp_path: Path) -> None:
    ended = cli.done("replay", file_of(tmp_path, ["i1,,61,10,USD,top_up"]), "--format", "csv")
    assert "balances_sha256" in ended.out
    assert "Reconciled: no difference." in ended.out


# A server that takes nothing for a while


@pytest.fixture
def small_shard(valkey_url: str) -> Iterator[ShardDriver]:
    """A shard whose ledger may be no more than ten records behind."""
    with redis.Redis.from_url(valkey_url) as client:
        shard = new_shard(client)
        shard.open(max_backlog=10)
        yield shard
    wipe_redis(valkey_url)


def line_of(count: int) -> list[Request]:
    """A coin through count empty wallets, which posts in no other order."""
    requests: list[Request] = [OpenWallet(OUTSIDE, 0, "USD"), *(OpenWallet(n + 1, 1, "USD") for n in range(count))]
    requests += [Transfer(OUTSIDE, 1, 1, "coin"), *(Transfer(n, n + 1, 1, f"line:{n}") for n in range(1, count))]
    return requests


async def test_a_full_backlog_is_waited_for_in_order(small_shard: ShardDriver, valkey_url: str) -> None:
    reasons: list[str] = []

    async def persist(reason: str) -> None:
        reasons.append(reason)
        meta = small_shard.meta()
        small_shard.call("hotledger_advance", int(meta["epoch"]), int(meta["sequence"]), 0)

    requests, known = line_of(60), 50
    async with Engine.connect(valkey_url) as engine:
        await engine.post(requests[known : known + 1])  # answered at once, amid others that are put off
        outcomes = await settle(engine, requests, persist)
    assert {outcome.status for outcome in outcomes} == {Status.POSTED}
    assert [at for at, outcome in enumerate(outcomes) if outcome.replayed] == [known]
    assert [outcome.sequence for outcome in outcomes if not outcome.replayed] == list(range(2, len(requests) + 1))
    assert len(reasons) >= 12
    assert set(reasons) == {"status LEDGER_BACKLOG"}


async def test_lost_answers_are_asked_for_again() -> None:
    requests = line_of(3)
    answers: list[Any] = [Unavailable("away"), OutcomeUnknown([]), "all"]
    waits: list[str] = []

    class Flaky:
        async def post(self, sent: Sequence[Request], **_: int) -> list[Outcome]:
            assert list(sent) == requests
            if isinstance(answer := answers.pop(0), Exception):
                raise answer
            return [Outcome(Status.POSTED, 1, False, 0, 0, b"") for _ in sent]

    async def wait(reason: str) -> None:
        waits.append(reason)

    outcomes = await settle(Flaky(), requests, wait)  # type: ignore[arg-type]
    assert len(outcomes) == len(requests)
    assert len(waits) == 2
