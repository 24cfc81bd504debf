"""Fixtures live one file per concern in tests/fixtures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

pytest_plugins = [
    "tests.fixtures.servers",
    "tests.fixtures.shard",
    "tests.fixtures.ledger",
    "tests.fixtures.replicas",
    "tests.fixtures.narrow",
    "tests.fixtures.tls",
]


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Async tests run on the loop that ships; those of the engine on the standard one too."""
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"uvloop": uvloop.new_event_loop}
    if item.path.name == "test_engine.py":
        loops["asyncio"] = asyncio.new_event_loop
    return loops
