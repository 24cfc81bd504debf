"""Imports go one way: engine.domain <- engine <- persister <- gateway <- bench."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ["engine.domain", "engine", "persister", "gateway", "bench"]
LEAVES = {"engine.errors"}
"""Imports nothing of the project, so every layer may use it."""


def layer_of(module: str) -> int | None:
    """The number of a module's layer; None if it is not the project's."""
    for number, layer in enumerate(LAYERS):
        if module == layer or module.startswith(layer + "."):
            return number
    return None


def imported_by(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.append(node.module or "")
    return names


SOURCES = [path for package in ("engine", "persister", "gateway", "bench") for path in (ROOT / package).rglob("*.py")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    own = layer_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert own is not None
    for name in imported_by(path):
        layer = layer_of(name)
        assert name in LEAVES or layer is None or layer <= own, f"{path} imports {name}"
        assert not name.startswith("tests"), f"{path} imports {name}"


def test_leaves_import_nothing_of_the_project() -> None:
    for leaf in LEAVES:
        path = ROOT.joinpath(*leaf.split(".")).with_suffix(".py")
        assert all(layer_of(name) is None for name in imported_by(path))
