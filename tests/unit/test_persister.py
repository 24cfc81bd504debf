"""The persister's pure parts: what each pair of histories leads to, blocks of the chain, details, server checks."""

from __future__ import annotations

import re
from hashlib import sha256

import numpy as np
import pytest

from engine.domain.ids import id_deriver, origin_digester
from engine.domain.transfer import Transfer
from engine.errors import CorruptRecord, ServerRefused
from engine.requests import RequestPacker
from engine.servers import check_redis, redact_url
from engine.wire import (
    DECLINED,
    ENTRY_HEADER,
    HOLD,
    JOURNAL_RECORD,
    LINK,
    ORIGIN,
    REQUEST,
    TIER_CHANGE,
    WALLET,
)
from persister import details
from persister.chain import HASHED_TABLES, TableHasher, contents
from persister.copy_binary import (
    SIGNATURE,
    TRAILER,
    BigintArray,
    BigintArrayDumper,
    RowFormat,
    UuidArray,
    UuidArrayDumper,
)
from persister.journal import numpy_type


class TestChain:
    ROWS = RowFormat("t", sequence="int8")

    def hashes(self, sequences: list[int], ends: list[int], block: int) -> list[bytes]:
        rows, hasher = self.ROWS.rows(len(sequences), sequence=sequences), TableHasher(ends)
        for start in range(0, len(rows), block):
            part = rows[start : start + block]
            hasher.add(part, part["sequence"])
        return hasher.finish()

    @pytest.mark.parametrize("block", [1, 2, 3, 100])
    def test_blocks_do_not_matter(self, block: int) -> None:
        sequences, ends = [1, 1, 2, 5, 5, 6, 9], [1, 4, 5, 8, 9, 12]
        rows = self.ROWS.rows(len(sequences), sequence=sequences)
        parts = [(0, 2), (2, 3), (3, 5), (5, 6), (6, 7), (7, 7)]
        assert self.hashes(sequences, ends, block) == [sha256(rows[a:b].tobytes()).digest() for a, b in parts]

    def test_rows_behind_the_last_entry_are_strays(self) -> None:
        hasher = TableHasher([2])
        rows = self.ROWS.rows(3, sequence=[2, 3, 4])
        hasher.add(rows, rows["sequence"])
        hasher.add(rows[2:], rows["sequence"][2:])
        assert hasher.stray == 3
        assert hasher.finish() == [sha256(rows[:1].tobytes()).digest()]

    def test_a_later_table_is_part_of_a_link_only_where_it_has_rows(self) -> None:
        """So that links made before there was such a table verify for ever."""
        always = [[b"a1", b"a2"], [b"b1", b"b2"], [b"c1", b"c2"], [b"d1", b"d2"]]
        nothing = [sha256().digest()] * 2
        later = [nothing] * (len(HASHED_TABLES) - len(always))
        assert contents([*always, *later]) == [b"a1b1c1d1", b"a2b2c2d2"]
        later[2] = [nothing[0], b"e2"]
        assert contents([*always, *later]) == [b"a1b1c1d1", b"a2b2c2d2hold_changee2"]


class TestFormats:
    def test_numpy_types_are_the_wire_layouts(self) -> None:
        for layout in (JOURNAL_RECORD, ORIGIN, LINK, TIER_CHANGE, DECLINED, WALLET, HOLD):
            assert numpy_type(layout).itemsize == layout.size, layout.name
        values = [
            bytes(range(16)), 3, 1, 9, -5, 7, 12.0, b"USD\0\0\0\0\0", b"digest!!", b"terms...", *map(float, range(6))
        ]  # fmt: skip
        record = np.frombuffer(JOURNAL_RECORD.struct.pack(*values), numpy_type(JOURNAL_RECORD))[0]
        assert [record[name] for name in ("debit", "credit", "amount", "credit_version")] == [-5, 7, 12, 5]
        assert record["id"].tobytes() == bytes(range(16))

    def test_rows_are_what_the_manual_says(self) -> None:
        rows = RowFormat("t", a="int2", b="int8").rows(2, a=[1, -1], b=5)
        assert rows.tobytes().hex() == "0002000000020001000000080000000000000005" + (
            "000200000002ffff000000080000000000000005"
        )
        assert SIGNATURE.startswith(b"PGCOPY\n")
        assert TRAILER == b"\xff\xff"

    def test_rows_need_every_column(self) -> None:
        with pytest.raises(TypeError, match="takes the columns"):
            RowFormat("t", a="int2", b="int8").rows(1, a=1)

    def test_bigint_arrays(self) -> None:
        dumped = bytes(BigintArrayDumper(BigintArray).dump(BigintArray(np.array([1, -2], np.int64))))
        assert dumped.hex() == "0000000100000000000000140000000200000001" + (
            "00000008000000000000000100000008fffffffffffffffe"
        )

    def test_uuid_arrays(self) -> None:
        ids = np.frombuffer(bytes(range(32)), "V16")
        dumped = bytes(UuidArrayDumper(UuidArray).dump(UuidArray(ids)))
        assert dumped.hex() == "000000010000000000000b860000000200000001" + (
            "00000010" + bytes(range(16)).hex() + "00000010" + bytes(range(16, 32)).hex()
        )

    def test_a_header_without_its_size_is_no_header(self) -> None:
        assert ENTRY_HEADER.size == 1 + 4 * 8 + 2 * 40


class TestDetails:
    @pytest.mark.parametrize(
        ("reference", "metadata"),
        [("r", None), (None, {}), ('é"\\\n', {"b": 1, "a": [1.5, None, "\ud7ff"]}), (None, {"x": "null"})],
    )
    def test_split_and_join_keep_what_the_engine_packs(
        self, reference: str | None, metadata: dict[str, object]
    ) -> None:
        packer = RequestPacker(id_deriver(b"k"), origin_digester(b"k"), "", 0)
        packed = packer.pack(Transfer(1, 2, 3, key="k", reference=reference, metadata=metadata))
        split_reference, split_metadata = details.split(packed.details)
        assert split_reference == reference
        text = None if split_metadata is None else split_metadata.decode()
        assert details.join(split_reference, text) == packed.details
        digest = REQUEST.unpack(packed.record)["details_digest"]
        assert isinstance(digest, bytes)
        assert details.digest_of(split_reference, text) == int.from_bytes(digest, "little", signed=True)

    @pytest.mark.parametrize("packed", [b"", b"{}", b"[1,null]", b"[null]", b'["a",null,1]', b"\xff"])
    def test_refuses_what_no_engine_packs(self, packed: bytes) -> None:
        with pytest.raises(CorruptRecord):
            details.split(packed)


VALKEY = {"server_name": "valkey", "valkey_version": "8.0.1", "redis_version": "7.2.4"}
GOOD = {"maxmemory_policy": "noeviction", "aof_enabled": 1}
ALWAYS = {"appendfsync": "always", "no-appendfsync-on-rewrite": "no"}


class TestServers:
    @pytest.mark.parametrize("version", ["7.2.0", "8.2.3", "10.0.0"])
    def test_takes_redis(self, version: str) -> None:
        server = check_redis(GOOD | {"redis_version": version}, ALWAYS)
        assert server[:2] == ("redis", version)

    @pytest.mark.parametrize(
        ("info", "message"),
        [
            (GOOD | {"redis_version": "7.0.15"}, "redis 7.0.15 is too old"),
            (GOOD | VALKEY | {"valkey_version": "7.2.9"}, "valkey 7.2.9 is too old"),
            (GOOD | VALKEY | {"maxmemory_policy": "allkeys-lru"}, "allkeys-lru"),
            (VALKEY, "unknown"),
        ],
    )
    def test_refuses(self, info: dict[str, object], message: str) -> None:
        with pytest.raises(ServerRefused, match=re.escape(message)):
            check_redis(info, ALWAYS)

    @pytest.mark.parametrize(
        ("info", "config", "synced"),
        [
            ({}, ALWAYS, True),
            ({"aof_enabled": 0}, ALWAYS, False),
            ({}, None, False),
            ({}, ALWAYS | {"appendfsync": "everysec"}, False),
            ({}, ALWAYS | {"no-appendfsync-on-rewrite": "yes"}, False),
        ],
    )
    def test_knows_what_accepted_means(self, info: dict[str, object], config: dict[str, str], synced: bool) -> None:
        assert check_redis(VALKEY | GOOD | info, config).synced is synced

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("redis://:secret@h:1/0", "redis://:***@h:1/0"),
            ("rediss://u:sec/r@et@h", "rediss://u:***@h"),
            ("postgresql://u:secret@h/db?sslmode=require", "postgresql://u:***@h/db?sslmode=require"),
            ("postgresql://u@/db?host=/s&password=secret&x=1", "postgresql://u@/db?host=/s&password=***&x=1"),
            ("host=a password='sec ret' user=b", "host=a password=*** user=b"),
            ("unix:///a/b?db=1", "unix:///a/b?db=1"),
        ],
    )
    def test_urls_lose_their_secrets(self, url: str, shown: str) -> None:
        assert redact_url(url) == shown
