"""One service for all tests of this directory that do not hurt it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fixtures.http import HttpWorld, http_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpWorld]:
    with http_world(tmp_path_factory.mktemp("http")) as made:
        yield made
