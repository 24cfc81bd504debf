"""The wheel, installed in an empty environment outside the checkout, has all that the main job needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import orjson
import pytest

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 280
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("HOTLEDGER_", "PYTHON"))}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing of a build is left in the checkout."""
    directory = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "tests", "build", "dist", "__pycache__")
    shutil.copytree(ROOT, directory / "source", ignore=ignored)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", directory, directory / "source"]
    built = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    [path] = directory.glob("*.whl")
    return path


def test_lua_and_sql_are_inside(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, pattern in (
        ("lua", "*.lua"),
        ("persister", "*.sql"),
        ("gateway", "*.py"),
        ("gateway", "*.toml"),
        ("engine", "py.typed"),
    ):
        files = [path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob(pattern)]
        assert files
        assert set(files) <= names


def test_the_demo_runs_from_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    install(wheel, environment / "bin" / "python")
    ended = subprocess.run(
        [environment / "bin" / "hotledger", "demo", "--requests", "500", "--json"],
        cwd=tmp_path,
        env=CLEAN,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr.decode()
    shown = orjson.loads(ended.stdout.splitlines()[-1])
    assert shown["requests"] == 500
    assert shown["reconciliation"]["ok"]


def install(wheel: Path, python: Path) -> None:
    """With the versions of constraints.txt; where no index can be reached, beside the packages that are here."""
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile"]
    whole = subprocess.run(
        [*pip, "-c", ROOT / "constraints.txt", wheel], env=CLEAN, capture_output=True, timeout=TIMEOUT_S, check=False
    )
    if whole.returncode != 0:
        subprocess.run([*pip, "--no-deps", "--no-index", wheel], env=CLEAN, check=True, timeout=TIMEOUT_S)
        [packages] = python.parents[1].glob("lib/python*/site-packages")
        (packages / "here.pth").write_text(sysconfig.get_path("purelib"))
