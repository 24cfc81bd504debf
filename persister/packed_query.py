"""Queries whose rows come as one value: the server packs them end to end, and numpy reads them where they lie.

A message per row, as COPY sends them, costs three times as much as the row itself. What is too much for one value (the
server's bound is a gigabyte) is asked for in blocks, by the query's own parameters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg

from persister.copy_binary import TYPES, Rows
from persister.sql import sql

_SENDS = {
    "int2": "int2send",
    "int4": "int4send",
    "int8": "int8send",
    "timestamptz": "timestamptz_send",
    "uuid": "uuid_send",
    "char8": "bpcharsend",
}
"""The function that gives a column's binary form; what is bytes already needs none."""


class PackedQuery:
    """A query of persister/sql. columns: name=type of copy_binary.TYPES; none of them may be NULL in any row."""

    def __init__(self, name: str, **columns: str) -> None:
        self.dtype = np.dtype([(column, TYPES[kind]) for column, kind in columns.items()])
        packed = " || ".join(f"{_SENDS.get(kind, '')}({column})" for column, kind in columns.items())
        self._query = f"SELECT string_agg({packed}, '') FROM ({sql(name)}) AS packed"  # noqa: S608

    def fetch(self, connection: psycopg.Connection[Any], **values: Any) -> Rows:
        """The rows, in the query's order. Raises psycopg.Error."""
        with connection.cursor(binary=True) as cursor:
            # Never prepared: a plan for any range of sequences is the wrong one for a short range.
            row = cursor.execute(self._query, values, prepare=False).fetchone()
        return np.frombuffer((row and row[0]) or b"", self.dtype)
