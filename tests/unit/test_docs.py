"""The documents agree with the code where they repeat it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.domain.status import STATUS_RULES

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), ROOT / "lua" / "README.md"])


def test_the_glossarys_status_table_is_the_codes() -> None:
    text = (ROOT / "GLOSSARY.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| (\w+) \| (\w+) \| (.+) \|$", text, re.MULTILINE)
    assert rows == [
        (
            str(rule.number),
            rule.status.value,
            "retryable" if rule.retryable else "final",
            "yes" if rule.recorded else "no",
            rule.meaning,
        )
        for rule in STATUS_RULES
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_files_that_are_named_exist(document: Path) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:engine|persister|gateway|bench|lua|tests)/[\w./]*)`", text))
    named |= set(re.findall(r"\]\(([\w./]+)\)", text))
    for name in named:
        base = ROOT / document.parent if (ROOT / document.parent / name).exists() else ROOT
        assert (base / name).exists(), f"{document} names {name}"


def test_tests_that_invariants_name_exist() -> None:
    text = (ROOT / "INVARIANTS.md").read_text(encoding="utf-8")
    sources = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    for file, _, test in re.findall(r"(test_\w+\.py)(::(test_\w+))?", text):
        assert file in sources, file
        assert not test or f"def {test}(" in sources[file], test
