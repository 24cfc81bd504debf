"""What the two languages say about each other: headers, keys and layouts."""

from __future__ import annotations

import re
from importlib.resources import files

import redis

from engine.domain.limits import DAY_MS
from engine.domain.status import Status
from engine.domain.transfer import Kind
from engine.keys import ShardKeys
from engine.library import _SOURCES, constants, library_code
from engine.wire import LAYOUTS, Layout
from tests.fixtures.clock import CLOCK_KEY
from tests.fixtures.shard import (
    EURO_OUTSIDE,
    OUTSIDE,
    ShardDriver,
    capture_record,
    hold_record,
    reference_record,
    request_record,
    terms,
    tier_limits,
    tier_record,
    wallet_change,
)


def source(path: str) -> str:
    return files("lua").joinpath(path).read_text(encoding="utf-8")


def _words(text: str) -> set[str]:
    return set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)*\b", text)) & {status.value for status in Status}


def test_posts_header_names_the_statuses_that_it_never_gives() -> None:
    """All others are somewhere in the library's code, and those nowhere."""
    header = source("functions/post.lua").partition("\n\n")[0]
    excepted = _words(header.split("Statuses", 1)[1].split("Errors", 1)[0])
    code = "\n".join(line.split("--", 1)[0] for path in _SOURCES for line in source(path).splitlines())
    assert _words(code) == {status.value for status in Status} - excepted


def test_every_constant_is_written_in_the_place_of_its_name() -> None:
    """A name that the assembler does not know would be nil in Lua."""
    code = re.sub(r"'(?:\\.|[^'\\])*'", "", "\n".join(line.split("--", 1)[0] for line in library_code().splitlines()))
    local_names = set(re.findall(r"\blocal ([A-Z][A-Z0-9_, ]+)\b", code))
    declared = {name for names in local_names for name in re.findall(r"[A-Z][A-Z0-9_]+", names)}
    assert set(re.findall(r"\b[A-Z][A-Z0-9_]{2,}\b", code)) <= declared | {"KEYS", "ARGV"}


def test_headers_name_their_functions_and_layouts() -> None:
    layouts = {layout.name for layout in LAYOUTS}
    for path in _SOURCES:
        if not path.startswith("functions/"):
            continue
        text = source(path)
        header = text.split("\n\n")[0]
        registered = set(re.findall(r"'(hotledger_\w+)'", text))
        assert registered <= set(re.findall(r"hotledger_\w+", header)), path
        assert set(re.findall(r"packed ([A-Z_]+?)s?\b", header)) <= layouts, path
        assert "KEYS[1]" in header


def test_every_lua_file_is_in_the_library() -> None:
    found = {
        f"{folder}/{entry.name}"
        for folder in ("lib", "functions")
        for entry in files("lua").joinpath(folder).iterdir()
        if entry.name.endswith(".lua")
    }
    assert found == set(_SOURCES)


def test_keys_are_the_same_in_both_languages(clocked: ShardDriver) -> None:
    limits = tier_limits(device_attempts=9, new_device_amount=500)
    asked = [
        hold_record(1, expires_in_ms=1000),
        hold_record(2),
        capture_record(3, 2),
        reference_record(4, Kind.REFUND, 9007, 1),
        tier_record(5, 1, limits),
        wallet_change(6, Kind.SET_TIER, 1, 1),
        request_record(7, attached=terms(device=b"device-1")),
        request_record(8, amount=10**6),
    ]
    assert clocked.statuses(asked) == ["POSTED"] * 7 + ["INSUFFICIENT_FUNDS"]
    clocked.call("hotledger_touch")
    keys = ShardKeys(0)
    expected = {keys.meta, keys.journal, keys.touch, keys.holds, keys.due, keys.tiers, keys.declined}
    expected |= {keys.idempotency(1), keys.resolved_holds(1), keys.refunded(1), keys.known_devices(1)}
    expected |= {keys.attempts(clocked.server_ms() // DAY_MS)}
    expected |= {keys.wallet(wallet_id) for wallet_id in (1, 2, 3, 4, OUTSIDE, EURO_OUTSIDE)}
    assert set(clocked.redis.scan_iter()) - {CLOCK_KEY} == expected
    assert all(key.startswith(keys.tag + b":") for key in expected)


def test_layout_sizes_are_the_same_in_both_languages(shard: ShardDriver) -> None:
    """Lua packs as many bytes as Python says; asked of the server itself."""
    for layout in LAYOUTS:
        size = shard.redis.eval(f"return struct.size('{layout.lua_format}')", 0)
        assert size == layout.size, layout.name
        assert constants()[f"{layout.name}_SIZE"] == str(size)


def test_numbers_survive_the_way_to_lua_and_back(shard: ShardDriver) -> None:
    layout = Layout("NUMBERS", (("a", "d"), ("b", "d"), ("c", "q"), ("d", "4s"), ("e", "H"), ("f", "B")))
    values = (2**53 - 1, -(2**53 - 1), 2**63 - 1, b"\0a\xff\n", 65535, 255)
    script = "return struct.pack(ARGV[2], struct.unpack(ARGV[2], ARGV[1]))"
    packed = layout.struct.pack(*values)
    assert shard.redis.eval(script, 0, packed, layout.lua_format) == packed
    assert tuple(layout.unpack(packed).values()) == values


def test_the_library_loads_over_itself(shard: ShardDriver) -> None:
    assert isinstance(shard.redis, redis.Redis)
    assert shard.redis.function_load(library_code(), replace=True) == b"hotledger"
