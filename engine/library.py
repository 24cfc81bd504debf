"""Assembles, versions and loads the Lua function library.

The code on the server is: a generated head (constants, statuses, kinds and layouts from the Python definitions),
then lua/lib/*.lua, then lua/functions/*.lua. A server's newer version is never replaced by an older one, and the
same version with other code is refused: two builds that call themselves the same must not decide money in turns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError, WatchError

from engine.domain.limits import DAY_MS, HOUR_MS, KNOWN_DEVICES, MAX_DEVICE_WALLETS, Condition, Rule
from engine.domain.money import MAX_AMOUNT_MINOR, MAX_EXPONENT
from engine.domain.status import STATUS_RULES
from engine.domain.transfer import MAX_EXPIRY_MS, HoldState, Kind, RequestFlag, Review
from engine.domain.wallet import FLAG_CLOSED, FLAG_CREDIT_FROZEN, FLAG_DEBIT_FROZEN, FLAG_EXTERNAL, MAX_TIER
from engine.errors import LibraryMismatch, ShardNotOpen
from engine.wire import (
    ACCEPTED_WIRE_VERSIONS,
    ATTACHMENTS,
    ATTEMPTS,
    CONTENT_REST,
    LAYOUT_VERSION,
    LAYOUTS,
    MAX_BATCH,
    TERMS,
    USAGE,
    WALLET,
)

LIBRARY_NAME = "hotledger"
LIBRARY_VERSION = 3
"""Grows by one with each released change of the Lua code or of anything generated into it."""

VERSION_KEY = "hotledger:library"
"""Written in the transaction that loads the library, and watched by it: concurrent loaders take turns."""

# In this order, because a Lua local is visible only to what follows it.
_SOURCES = (
    "lib/errors.lua",
    "lib/keys.lua",
    "lib/meta.lua",
    "lib/journal.lua",
    "lib/fence.lua",
    "lib/wallet.lua",
    "lib/batch.lua",
    "lib/idempotency.lua",
    "lib/holds.lua",
    "lib/rules.lua",
    "lib/answers.lua",
    "lib/movements.lua",
    "lib/hold_changes.lua",
    "lib/refunds.lua",
    "lib/wallet_changes.lua",
    "lib/decide.lua",
    "lib/chains.lua",
    "functions/lifecycle.lua",
    "functions/post.lua",
    "functions/read.lua",
    "functions/access.lua",
    "functions/load.lua",
    "functions/confirm.lua",
)

# unpack() of more than about 8,000 values overflows Lua's stack.
_CHUNK = 2000

# Refused movements that wait for the persister: entries of at most MAX_BATCH of them.
_MAX_DECLINED_ENTRIES = 1024

# post refuses while more than this share of maxmemory is used, and looks at it at most so often: what it takes in one
# such time must fit into the rest, beside what the persister needs to go on.
_MEMORY_SHARE = 0.9
_MEMORY_CHECK_MS = 100

_VERSION_LINE = re.compile(r"^local LIBRARY_VERSION = (\d+)$", re.MULTILINE)

# What to leave alone (comments, strings), or a constant's name.
_TOKEN = re.compile(r"--[^\n]*|'(?:\\.|[^'\\])*'|\b[A-Z][A-Z0-9_]*\b")


@cache
def constants() -> dict[str, str]:
    """Every constant that the Lua code may name, as Lua literals; its Python definition is the only one."""
    found: dict[str, int] = {
        "MAX_AMOUNT": MAX_AMOUNT_MINOR,
        "MAX_BATCH": MAX_BATCH,
        "MAX_EXPIRY_MS": MAX_EXPIRY_MS,
        "MAX_EXPONENT": MAX_EXPONENT,
        "MAX_TIER": MAX_TIER,
        "MAX_DEVICE_WALLETS": MAX_DEVICE_WALLETS,
        "MAX_DECLINED_ENTRIES": _MAX_DECLINED_ENTRIES,
        "KNOWN_DEVICES": KNOWN_DEVICES,
        "HOUR_MS": HOUR_MS,
        "DAY_MS": DAY_MS,
        "LAYOUT_VERSION": LAYOUT_VERSION,
        "CHUNK": _CHUNK,
        "MEMORY_CHECK_MS": _MEMORY_CHECK_MS,
        "FLAG_EXTERNAL": FLAG_EXTERNAL,
        "FLAG_DEBIT_FROZEN": FLAG_DEBIT_FROZEN,
        "FLAG_CREDIT_FROZEN": FLAG_CREDIT_FROZEN,
        "FLAG_CLOSED": FLAG_CLOSED,
        "ALL_WALLET_FLAGS": FLAG_EXTERNAL | FLAG_DEBIT_FROZEN | FLAG_CREDIT_FROZEN | FLAG_CLOSED,
        "WALLET_AND_USAGE_SIZE": WALLET.size + USAGE.size,
    }
    found |= {kind.name: kind.value for kind in Kind}
    found |= {rule.status.value: rule.number for rule in STATUS_RULES}
    found |= {flag.name: flag.value for flag in RequestFlag if flag.name}
    for prefix, names in (
        ("HOLD_STATE", HoldState),
        ("REVIEW", Review),
        ("RULE", Rule),
        ("CONDITION", Condition),
    ):
        found |= {f"{prefix}_{member.name}": member.value for member in names}
    found |= {f"ATTACHMENT_{layout.name}": number for number, layout in enumerate(ATTACHMENTS) if layout}
    found |= {f"{layout.name}_SIZE": layout.size for layout in LAYOUTS}
    # A record in Lua is the list that unpacking gives; its fields are numbers there.
    for layout in (USAGE, TERMS, ATTEMPTS):
        found |= {f"{layout.name}_{name.upper()}": at for at, (name, _) in enumerate(layout.fields, 1)}
    literals = {name: str(value) for name, value in found.items()}
    literals["MEMORY_SHARE"] = str(_MEMORY_SHARE)
    formats = {f"{layout.name}_FORMAT": layout.lua_format for layout in LAYOUTS}
    formats["WALLET_AND_USAGE_FORMAT"] = f"{WALLET.lua_format}c{USAGE.size}"
    formats["ATTEMPTS_OF_ONE_FORMAT"] = f"{ATTEMPTS.lua_format}c8"
    for name, size in (("CURRENCY", 8), ("DIGEST", 8), ("ID", 8), ("REST", CONTENT_REST.size), ("USAGE", USAGE.size)):
        formats[f"NO_{name}"] = "\\0" * size
    return literals | {name: f"'{text}'" for name, text in formats.items()}


def _with_constants(source: str) -> str:
    """The Lua code with each constant's value in the place of its name: Lua has no constants, and 200 locals."""
    literals = constants()
    return _TOKEN.sub(lambda token: literals.get(token.group(), token.group()), source)


def _generated_head() -> str:
    def set_of(numbers: Iterable[object]) -> str:
        return "{ " + ", ".join(f"[{number}] = true" for number in numbers) + " }"

    return "\n".join(
        (
            f"#!lua name={LIBRARY_NAME}",
            "-- Generated by engine/library.py, which also writes every constant's value in the place of its name.",
            f"local LIBRARY_VERSION = {LIBRARY_VERSION}",
            f"local ACCEPTED_WIRE_VERSIONS = {set_of(map(repr, map(str, ACCEPTED_WIRE_VERSIONS)))}",
            f"local RECORDED = {set_of(rule.number for rule in STATUS_RULES if rule.recorded)}",
            f"local KINDS = {set_of(kind.value for kind in Kind)}",
        )
    )


@cache
def library_code() -> str:
    """The whole library as one text, the same on every machine."""
    root = files("lua")
    parts = [_generated_head()]
    for path in _SOURCES:
        source = _with_constants(root.joinpath(path).read_text(encoding="utf-8"))
        # Nothing uses the locals of functions/: in a block they do not count against Lua's 200.
        parts.append(f"-- {path}\ndo\n{source}end\n" if path.startswith("functions/") else f"-- {path}\n{source}")
    return "\n\n".join(parts)


def check_loaded(loaded_code: str) -> bool:
    """True if the server's code can stay, False if ours is newer; LibraryMismatch if neither."""
    if loaded_code == library_code():
        return True
    found = _VERSION_LINE.search(loaded_code)
    if not found:
        raise LibraryMismatch(f"a library called {LIBRARY_NAME} is on the server that is not this program's")
    version = int(found.group(1))
    if version == LIBRARY_VERSION:
        raise LibraryMismatch(
            f"the server has version {version} of the library with other code: "
            "two builds call themselves the same; load one version everywhere"
        )
    return version > LIBRARY_VERSION


def _loaded_code(listing: Any) -> str | None:
    """The code in a reply of FUNCTION LIST, whichever protocol it came over."""
    if not listing:
        return None
    library = listing[0]
    if not isinstance(library, dict):
        library = dict(zip(library[::2], library[1::2], strict=True))
    code = library.get(b"library_code", library.get("library_code"))
    return code.decode() if isinstance(code, bytes) else code


async def ensure_library(redis: Redis) -> bool:
    """Load the library unless the server has it or a newer one. Returns True if it was loaded now.

    Loading closes every open shard of that server (the fence lives in the library's process-local variables);
    the persister opens them again. Raises LibraryMismatch, ShardNotOpen if it has to be loaded and this user may not,
    and redis' errors as they come.
    """
    if _may_stay(await redis.execute_command(*_LISTING)):
        return False
    try:
        return await _load(redis)
    except NoPermissionError as error:
        raise ShardNotOpen("this user may not load the function library: a persister has to") from error


_LISTING = ("FUNCTION", "LIST", "LIBRARYNAME", LIBRARY_NAME, "WITHCODE")


def _may_stay(listing: Any) -> bool:
    """Whether the server's reply to _LISTING has a library that need not be replaced. Raises LibraryMismatch."""
    loaded = _loaded_code(listing)
    return loaded is not None and check_loaded(loaded)


async def _load(redis: Redis) -> bool:
    """As ensure_library, but one of those that load it at the same time."""
    async with redis.pipeline(transaction=True) as pipe:
        while True:
            try:
                await pipe.watch(VERSION_KEY)
                if _may_stay(await pipe.execute_command(*_LISTING)):
                    return False
                pipe.multi()
                pipe.set(VERSION_KEY, LIBRARY_VERSION)
                pipe.execute_command("FUNCTION", "LOAD", "REPLACE", library_code())
                await pipe.execute()
                structlog.get_logger().info("library.loaded", version=LIBRARY_VERSION)
                return True
            except WatchError:
                continue
            except ResponseError as error:
                if "compiling" in str(error) or "registering" in str(error):
                    raise LibraryMismatch(f"the server refused the library: {error}") from error
                raise
