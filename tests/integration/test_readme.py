"""The README's Python examples do what their comments say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import redis

from engine import Engine, OpenWallet
from tests.fixtures.shard import new_shard

README = Path(__file__).parents[2] / "README.md"
FIRST, SHOP = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def url(valkey_url: str) -> str:
    """Of a server with an empty shard."""
    with redis.Redis.from_url(valkey_url) as client:
        new_shard(client)
    return valkey_url


def run(code: str, name: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": name}
    exec(compile(code, str(README), "exec"), names)
    return names


def test_the_first_example(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = FIRST.replace("unix:///path/to/valkey.sock", url)
    assert code != FIRST
    promised = [comment.split(":")[0] for comment in re.findall(r"print\(.*\)  # (.*)", FIRST)]
    run(code, "__main__")
    assert capsys.readouterr().out.splitlines()[-2:] == promised == ["POSTED 5 750", "True"]


@pytest.mark.parametrize(("funds", "promised"), [(1_000_00, "UNDER_REVIEW 1"), (200_00, "INSUFFICIENT_FUNDS 0")])
async def test_the_shop(url: str, capsys: pytest.CaptureFixture[str], funds: int, promised: str) -> None:
    payer, shop, fees = 1, 2, 3
    async with Engine.connect(url) as engine:
        await engine.open_wallets([OpenWallet(wallet, 1, "USD") for wallet in (payer, shop, fees)])
        await engine.top_up(payer, funds, key="funds")
        await run(SHOP, "shop")["a_shop"](engine, payer, shop, fees)
        [of_payer, of_shop, of_fees] = [balance for balance in await engine.balances([payer, shop, fees]) if balance]
    assert capsys.readouterr().out.splitlines()[-1] == promised
    assert (of_shop.available_minor, of_fees.available_minor) == (42_00 - 2_00 + 9_80, 20)
    assert of_payer.available_minor + of_payer.locked_minor == funds - 40_00 - 10_00 + 100_00
    assert of_payer.locked_minor == (600_00 if promised.startswith("UNDER") else 0)
