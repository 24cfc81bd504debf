"""Rows and arrays in Postgres' binary formats, made by numpy: a loop in Python would cost more than Postgres does.

A row of only fixed-width columns without NULLs has one size, so a table's rows are one structured array whose
memory is the COPY stream. The formats are in the PostgreSQL manual under COPY, "Binary Format".
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
from numpy.typing import ArrayLike, NDArray
from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.errors import error_from_result
from psycopg.pq import Format

from engine.errors import CorruptRecord
from engine.wire import IDEMPOTENCY

SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
_LAST_MESSAGES = (TRAILER, SIGNATURE + TRAILER)
_LAST_SIZES = tuple(map(len, _LAST_MESSAGES))

TYPES = {
    "int2": ">i2",
    "int4": ">i4",
    "int8": ">i8",
    "timestamptz": ">i8",
    "uuid": "V16",
    "char8": "V8",
    "digest": "V8",
    "sha1": "V20",
    "sha256": "V32",
    "idempotency": f"V{IDEMPOTENCY.size}",
}
"""A column's type to numpy's. timestamptz is microseconds since 2000-01-01 UTC."""

_INT8_OID, _INT8_ARRAY_OID = 20, 1016
_UUID_OID, _UUID_ARRAY_OID = 2950, 2951
_ARRAY_HEADER = struct.Struct("!iiiii")

Rows = NDArray[np.void]


class RowFormat:
    """The binary rows of a table. columns: name=type, in the order in which they are copied."""

    def __init__(self, table: str, **columns: str) -> None:
        self.table = table
        self.columns = tuple(columns)
        parts: list[tuple[str, str]] = [("column_count", ">i2")]
        for name, kind in columns.items():
            parts += [(f"{name} length", ">i4"), (name, TYPES[kind])]
        self.dtype = np.dtype(parts)
        blank = np.zeros(1, self.dtype)
        blank["column_count"] = len(columns)
        for name in columns:
            blank[f"{name} length"] = self.dtype[name].itemsize
        self._blank = blank.tobytes()

    def rows(self, count: int, **values: ArrayLike) -> Rows:
        """count rows; values: one array or scalar for each column. Bytes columns take arrays of the same width."""
        if values.keys() != set(self.columns):
            raise TypeError(f"{self.table} takes the columns {self.columns}, not {tuple(values)}")
        made: Rows = np.frombuffer(bytearray(self._blank * count), self.dtype)
        for name, value in values.items():
            made[name] = value
        return made

    def copy_in(self, cursor: psycopg.Cursor[Any], rows: Rows) -> None:
        """Append the rows to the table, in the transaction that is open."""
        columns = ", ".join(self.columns)
        with cursor.copy(f"COPY {self.table} ({columns}) FROM STDIN (FORMAT BINARY)") as copy:
            copy.write(b"".join((SIGNATURE, rows.tobytes(), TRAILER)))

    def copy_out(
        self, cursor: psycopg.Cursor[Any], tail: str, rows_at_once: int, values: dict[str, Any] | None = None
    ) -> Iterator[Rows]:
        """The table's rows in blocks. tail: what follows FROM <table>, such as an ORDER BY; trusted text.

        values: of named parameters in table or tail.
        """
        columns = ", ".join(self.columns)
        query = f"COPY (SELECT {columns} FROM {self.table} {tail}) TO STDOUT (FORMAT BINARY)"  # noqa: S608  our own names
        with cursor.copy(query, values) as copy:
            yield from self._blocks(_received(copy, cursor.connection), rows_at_once)

    def _blocks(self, received: Iterable[list[Buffer]], rows_at_once: int) -> Iterator[Rows]:
        # The server sends a message per row, the first one with the signature ahead, the last only the trailer.
        parts: list[Buffer] = []
        skip = len(SIGNATURE)
        for messages in received:
            parts += messages
            if len(parts) >= rows_at_once:
                yield self._block(parts, skip)
                parts, skip = [], 0
        yield self._block(parts, skip)

    def _block(self, parts: list[Buffer], skip: int) -> Rows:
        data = b"".join(parts)[skip:].removesuffix(TRAILER)
        if len(data) % self.dtype.itemsize:
            raise CorruptRecord(f"{self.table} has rows of another width than {self.dtype.itemsize} bytes")
        return np.frombuffer(data, self.dtype)


@dataclass(frozen=True, slots=True)
class BigintArray:
    """A parameter for a bigint[], for placeholders of the form %(name)b."""

    values: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class UuidArray:
    """A parameter for a uuid[], as BigintArray. values: 16 raw bytes each."""

    values: NDArray[np.void]


class BigintArrayDumper(Dumper):
    """psycopg's adapter of BigintArray."""

    format = Format.BINARY
    oid = _INT8_ARRAY_OID

    def dump(self, obj: BigintArray) -> Buffer:
        return _packed_array(obj.values, _INT8_OID, ">i8")


class UuidArrayDumper(Dumper):
    """psycopg's adapter of UuidArray."""

    format = Format.BINARY
    oid = _UUID_ARRAY_OID

    def dump(self, obj: UuidArray) -> Buffer:
        return _packed_array(obj.values, _UUID_OID, "V16")


def register_arrays(connection: psycopg.Connection[Any]) -> None:
    """Let the connection take both as parameters."""
    connection.adapters.register_dumper(BigintArray, BigintArrayDumper)
    connection.adapters.register_dumper(UuidArray, UuidArrayDumper)


def _received(copy: psycopg.Copy, connection: psycopg.Connection[Any]) -> Iterator[list[Buffer]]:
    """What a COPY TO sends, some hundred messages at a time.

    The first of them as copy gives it; what libpq received along with it is taken from there at once, because psycopg's
    way to one message takes longer than the row itself.
    """
    receive = connection.pgconn.get_copy_data
    while message := copy.read():
        messages: list[Buffer] = [message]
        size = 1
        while size > 0 and not (len(message) in _LAST_SIZES and message in _LAST_MESSAGES):
            size, message = receive(1)
            messages.append(message)
        if size < 0:
            result = connection.pgconn.get_result()
            raise error_from_result(result) if result else psycopg.OperationalError("the COPY broke off")
        if size == 0:
            messages.pop()  # nothing more is here yet
        yield messages


def _packed_array(values: NDArray[Any], item_oid: int, item_type: str) -> bytes:
    """One dimension, no NULLs, numbered from 1."""
    items = np.empty(len(values), [("length", ">i4"), ("value", item_type)])
    items["length"] = items.dtype["value"].itemsize
    items["value"] = values
    return _ARRAY_HEADER.pack(1, 0, item_oid, len(items), 1) + items.tobytes()
