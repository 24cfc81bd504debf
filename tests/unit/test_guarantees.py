"""Every cell of GUARANTEES.md's table names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT, LIST = (ROOT / "GUARANTEES.md").read_text(encoding="utf-8").split("## The tests\n")
TESTS = {int(number): names for number, names in re.findall(r"^(\d+)\. (.+)$", LIST, re.MULTILINE)}
ROWS = [row.strip("|").split("|") for row in re.findall(r"^\|.+\|$", TEXT, re.MULTILINE)]
FAULTS = [row for row in ROWS if len(row) == 4][2:]


def test_the_table_was_found() -> None:
    assert len(FAULTS) > 15
    assert len(TESTS) > 30


@pytest.mark.parametrize("row", FAULTS, ids=lambda row: row[0].strip())
def test_each_cell_names_a_test(row: list[str]) -> None:
    for cell in row[1:]:
        assert re.search(r"\[\d+\]", cell), f"{row[0]}: {cell}"


def test_each_number_is_a_test_and_each_test_is_used() -> None:
    used = {int(number) for number in re.findall(r"\[(\d+)\]", TEXT)}
    assert used == set(TESTS) == set(range(1, len(TESTS) + 1))


@pytest.mark.parametrize("number", TESTS)
def test_the_tests_exist(number: int) -> None:
    names = re.findall(r"`(test_\w+\.py)::((?:Test\w+::)?test_\w+)`", TESTS[number])
    assert ", ".join(f"`{file}::{name}`" for file, name in names) == TESTS[number]
    for file, name in names:
        there = [path for path in (ROOT / "tests").rglob(file) if name in names_in(path)]
        assert there, f"no {file} has {name}"


def names_in(path: Path) -> set[str]:
    """test_x, and TestY::test_x."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    classes = [node for node in body if isinstance(node, ast.ClassDef)]
    return functions_of(body) | {f"{node.name}::{name}" for node in classes for name in functions_of(node.body)}


def functions_of(body: list[ast.stmt]) -> set[str]:
    return {node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
