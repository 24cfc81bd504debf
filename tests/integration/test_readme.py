"""The README's Python example does what its comments say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import redis

from tests.fixtures.shard import new_shard

README = Path(__file__).parents[2] / "README.md"


def test_the_python_example(valkey_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    [example] = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    code = example.replace("unix:///path/to/valkey.sock", valkey_url)
    assert code != example
    promised = [comment.split(":")[0] for comment in re.findall(r"print\(.*\)  # (.*)", example)]
    with redis.Redis.from_url(valkey_url) as client:
        new_shard(client)
        exec(compile(code, str(README), "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.splitlines()[-2:] == promised == ["POSTED 5 750", "True"]
