"""What the two languages say about each other: headers, keys and layouts."""

from __future__ import annotations

import re
from importlib.resources import files

import redis

from engine.domain.status import Status
from engine.keys import ShardKeys
from engine.library import _SOURCES, library_code
from engine.wire import LAYOUTS, Layout
from tests.fixtures.shard import ShardDriver, request_record


def source(path: str) -> str:
    return files("lua").joinpath(path).read_text(encoding="utf-8")


def test_posts_header_names_exactly_the_statuses_that_its_code_uses() -> None:
    header, _, code = source("functions/post.lua").partition("\n\n")
    statuses = {status.value for status in Status}
    named = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)*\b", header.split("Statuses", 1)[1].split("Errors", 1)[0])) & statuses
    used = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)*\b", code)) & statuses
    assert named == used


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


def test_keys_are_the_same_in_both_languages(funded: ShardDriver) -> None:
    funded.post([request_record(1)])
    funded.call("hotledger_touch")
    keys = ShardKeys(0)
    expected = {keys.meta, keys.journal, keys.touch, keys.idempotency(1)}
    expected |= {keys.wallet(wallet_id) for wallet_id in (1, 2, 3, 4)}
    found = set(funded.redis.scan_iter())
    assert expected <= found
    assert len(found - expected) == 2, "the two external wallets"
    assert all(key.startswith(keys.tag + b":") for key in found)


def test_layout_sizes_are_the_same_in_both_languages(shard: ShardDriver) -> None:
    """Lua packs as many bytes as Python says; asked of the server itself."""
    for layout in LAYOUTS:
        size = shard.redis.eval(f"return struct.size('{layout.lua_format}')", 0)
        assert size == layout.size, layout.name
        assert f"local {layout.name}_SIZE, {layout.name}_FORMAT = {layout.size}," in library_code()


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
