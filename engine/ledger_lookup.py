"""What an engine asks Postgres: who the deployment is, how safe the server is, what became of a transfer that Redis no
longer knows, and whether a request is in the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg import errors

from engine.domain.status import Status
from engine.domain.transfer import Outcome
from engine.errors import Fatal, Unavailable
from engine.guarantee import PostgresSettings
from engine.requests import Claim
from engine.urls import check_postgres_url


class Deployment(NamedTuple):
    id: bytes
    key_fingerprint: bytes


class LedgerLookup:
    """Short queries, a connection each: they are rare, and must not hold one while idle."""

    def __init__(self, postgres_url: str, timeout_s: int = 5) -> None:
        self._url = check_postgres_url(postgres_url)
        self._timeout_s = timeout_s

    async def deployment(self) -> Deployment | None:
        """The deployment that this ledger belongs to; None for a new one. Raises Unavailable, Fatal."""
        try:
            row = await self._one("select id, key_fingerprint from deployment")
        except errors.UndefinedTable:
            return None
        return Deployment(row[0].bytes, bytes(row[1])) if row else None

    async def settings(self) -> PostgresSettings:
        """What the server does to keep what it commits. Raises Unavailable."""
        row = await self._one(_SETTINGS)
        assert row is not None
        return PostgresSettings._make(row)

    async def recorded(self, shard: int, places: Sequence[tuple[int, bytes]]) -> list[bool]:
        """Of each (sequence, 16-byte id) whether the ledger has that request there. Raises Unavailable, Fatal."""
        sequences = [sequence for sequence, _ in places]
        ids = [UUID(bytes=id) for _, id in places]
        try:
            row = await self._one(_RECORDED, sequences, ids, shard)
        except errors.UndefinedTable as error:
            raise Fatal(f"the database has no ledger: {error}") from error
        return list(row[0]) if row else []

    async def transfer(self, transfer_id: UUID) -> Outcome | None:
        """The outcome of a movement or a hold that the ledger has under the id; None if it has none.

        Raises Unavailable, Fatal.
        """
        try:
            row = await self._one(_TRANSFER, transfer_id)
            held = None if row else await self._one(_HOLD, transfer_id)
        except errors.UndefinedTable as error:
            raise Fatal(f"the database has no ledger: {error}") from error
        if held:
            status = Status.UNDER_REVIEW if held[4] else Status.POSTED
            return Outcome(status, held[0], True, held[1], held[2], transfer_id.bytes, held[3], held[4])
        return Outcome(Status.POSTED, row[0], True, row[1], row[2], transfer_id.bytes, row[3]) if row else None

    async def claim(self, transfer_id: UUID) -> Claim | None:
        """A transfer to refund, with what was refunded of it, in one snapshot; None if the ledger has none.

        Raises Unavailable, Fatal.
        """
        try:
            row = await self._one(_CLAIM, transfer_id)
        except errors.UndefinedTable as error:
            raise Fatal(f"the database has no ledger: {error}") from error
        return Claim._make((*row[:4], int(row[4]), row[5])) if row else None

    async def _one(self, query: str, *values: object) -> tuple[Any, ...] | None:
        """The first row of a query."""
        try:
            connection = await psycopg.AsyncConnection.connect(
                self._url, connect_timeout=self._timeout_s, autocommit=True
            )
            async with connection:
                return await (await connection.execute(query, values)).fetchone()
        except psycopg.OperationalError as error:
            raise Unavailable(f"the ledger cannot be asked: {error}") from error


# A capture counts as what its hold was for; a refund is sent as it is, and refused. What came again under the id after
# Redis forgot it was paid under it too; the id that such a duplicate is entered under cannot be refunded besides.
_CLAIM = """
select coalesce(h.purpose, t.kind), t.debit_wallet_id, t.credit_wallet_id,
    t.amount + coalesce((
        select sum(again.amount)
        from transfer_duplicate d join transfer again on again.id = d.transfer_id
        where d.duplicate_of = t.id
            and (again.debit_wallet_id, again.credit_wallet_id) = (t.debit_wallet_id, t.credit_wallet_id)
    ), 0)::bigint,
    coalesce((select sum(r.amount) from refund r where r.original_id = t.id), 0), s.sequence
from transfer t
join shard_state s on s.shard = t.shard
left join hold_change c on t.kind = 8 and c.wallet_id = t.debit_wallet_id and c.wallet_version = t.debit_version
left join lateral (
    select purpose from hold
    where id = c.hold_id and shard = t.shard and sequence < t.sequence
    order by sequence desc
    limit 1
) h on true
where t.id = %s and not exists (select from transfer_duplicate where transfer_id = t.id)
"""

_TRANSFER = """
select t.sequence, d.available_after, c.available_after, t.amount
from transfer t
join ledger_entry d on d.wallet_id = t.debit_wallet_id and d.version = t.debit_version
join ledger_entry c on c.wallet_id = t.credit_wallet_id and c.version = t.credit_version
where t.id = %s
"""

# The last hold made under the id, as it was made; the credit wallet had not changed.
_HOLD = """
select h.sequence, e.available_after, 0, h.amount, h.rule
from hold h
join hold_change c on c.hold_id = h.id and c.sequence = h.sequence and c.shard = h.shard
join ledger_entry e on e.wallet_id = c.wallet_id and e.version = c.wallet_version
where h.id = %s
order by h.sequence desc
limit 1
"""

_SETTINGS = """
select current_setting('fsync')::boolean, current_setting('synchronous_commit'),
    current_setting('full_page_writes')::boolean, current_setting('synchronous_standby_names')
"""

# In the order asked.
_RECORDED = """
select array_agg(e.id is not null order by asked.number)
from unnest(%s::bigint[], %s::uuid[]) with ordinality asked (sequence, id, number)
left join journal_event e on e.shard = %s and e.sequence = asked.sequence and e.id = asked.id
"""
