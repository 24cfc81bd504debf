"""Bugs that the torture has to find, planted in its programs and nowhere else.

python -m tests.torture.planted BUG torture [options of hotledger torture]   has to end with status 1

Every program of such a torture is started through this module, which spoils it and then lets it run. Production code
knows nothing of it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import psycopg

from engine import library
from engine.durability import DurabilityWaits
from gateway import cli
from gateway.torture import run, world
from gateway.torture.client import run_client
from persister.journal import Batch
from persister.ledger import Ledger

_original_code = library.library_code


def plant_offset() -> None:
    """The ledger's place is committed ahead of the data, in a transaction of its own."""
    advance = Ledger._advance

    def advance_and_commit(self: Ledger, cursor: psycopg.Cursor[Any], batch: Batch, *more: Any) -> None:
        advance(self, cursor, batch, *more)
        cursor.execute("COMMIT")
        cursor.execute("BEGIN")

    Ledger._advance = advance_and_commit  # type: ignore[method-assign]


def plant_fence() -> None:
    """Every primary takes payments, whatever its history is."""
    _replace_in_library(
        (
            r"^local function fence_check\(tag, m\)\n.*?^end\n",
            "local function fence_check(tag, m)\n"
            "  if not m or not replication_id() then return nil end\n"
            "  local fence = fences[tag] or { max_backlog = 1e6, max_outcomes = 1e7 }\n"
            "  fences[tag] = fence\n"
            "  return fence\n"
            "end\n",
        ),
        (r"if not fences\[tag\] then return refuse_all", "if false then return refuse_all"),
    )


def plant_xadd() -> None:
    """One batch in a thousand is not journalled."""
    _replace_in_library(
        (
            r"redis\.call\('XADD', journal_key\(tag\), journal_id\(last\), unpack\(fields, 1, n\)\)",
            "if tonumber(sub(hash, 1, 5), 16) % 1000 > 0 then\n"
            "    redis.call('XADD', journal_key(tag), journal_id(last), unpack(fields, 1, n))\n"
            "  end",
        )
    )


def plant_levels() -> None:
    """Whatever durability is asked for, the answer comes when it is accepted."""

    async def at_once(*_: Any) -> None:
        pass

    DurabilityWaits.until = at_once  # type: ignore[assignment, method-assign]


BUGS: dict[str, Callable[[], None]] = {
    "offset": plant_offset,
    "fence": plant_fence,
    "xadd": plant_xadd,
    "levels": plant_levels,
}


def programs(bug: str) -> world.Programs:
    """The torture's programs with the bug in them. Its servers' library is theirs."""
    here = (sys.executable, "-m", "tests.torture.planted", bug)
    return world.Programs(persist=(*here, "persist"), client=(*here, "client"))


def _replace_in_library(*changes: tuple[str, str]) -> None:
    code = _original_code()
    for pattern, text in changes:
        code, count = re.subn(pattern, lambda _, text=text: text, code, flags=re.DOTALL | re.MULTILINE)
        assert count == 1, f"the library has no {pattern} any more"
    library.library_code = lambda: code  # type: ignore[assignment]


def main(bug: str, program: str, arguments: list[str]) -> None:
    BUGS[bug]()
    if program == "client":
        run_client(arguments)
        return
    if program == "torture":
        # The default of torture() is made when it is called.
        run.Programs = lambda: programs(bug)  # type: ignore[assignment, misc]
    sys.argv = ["hotledger", program, *arguments]
    cli.main()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
