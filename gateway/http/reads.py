"""The operations that read: what is now comes from the engine, what was comes from the ledger."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import msgspec
import orjson

from engine import Balance, Kind, Rule, Status
from engine.domain.status import STATUS_OF
from engine.domain.transfer import Review
from engine.domain.wallet import FLAG_CLOSED, FLAG_CREDIT_FROZEN, FLAG_DEBIT_FROZEN
from engine.requests import unpack_limits
from engine.wire import LAYOUT_VERSION, TIER_LIMITS
from gateway.http import types as t
from gateway.http.call import Answer, Call
from gateway.http.problems import Refused, invalid
from gateway.limits_file import limits_json

MAX_LOOK = 20_000
"""How many versions of a wallet one page looks at for entries of some kinds."""

_LAST = 2**63 - 1
_T = TypeVar("_T")


# Cursors: the place after which the next page begins, opaque to callers.


def _cursor(*place: Any) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(place)).rstrip(b"=").decode()


def _place(query: t.PageQuery, read: Callable[..., _T], first: _T) -> _T:
    """What a cursor says, first if there is none. Raises Refused for one that this operation never gave."""
    if query.cursor is None:
        return first
    try:
        packed = base64.b64decode(query.cursor + "=" * (-len(query.cursor) % 4), altchars=b"-_", validate=True)
        found = read(*orjson.loads(packed))
    except (ValueError, TypeError, OverflowError):
        raise invalid("cursor", "the next_cursor of a page before") from None
    return found


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _LAST:
        raise ValueError(value)
    return int(value)


def _page(rows: list[_T], size: int, place: Callable[[_T], str]) -> tuple[list[_T], str | None]:
    """The rows of a page, of which one more than that was asked for, and the next one's cursor."""
    return (rows[:size], place(rows[size - 1])) if len(rows) > size else (rows, None)


async def _ledger(call: Call, query: str, **values: Any) -> list[tuple[Any, ...]]:
    """Rows of the ledger, once it has min_sequence."""
    ledger = call.service.ledger
    if call.query is not None and call.query.min_sequence:
        await ledger.wait_for(call.query.min_sequence)
    return await ledger.rows(query, **values)


# Wallets


async def _seen(call: Call, wallet_id: int) -> None:
    await call.service.access.need(call.engine, call.key, wallet_id, "NOT_FOUND")


async def _balance(call: Call, wallet_id: int) -> Balance:
    balance = await call.engine.balance(wallet_id)
    if balance is None:
        raise Refused("NOT_FOUND")
    return balance


async def wallet_answer(call: Call, wallet_id: int) -> t.WalletAnswer:
    """A wallet as it is now. Raises Refused: NOT_FOUND."""
    balance = await _balance(call, wallet_id)
    owner_id = await call.service.access.owner_of(call.engine, wallet_id)
    return t.WalletAnswer(
        wallet_id=wallet_id,
        owner_id=owner_id or 0,
        currency=balance.currency,
        available_minor=balance.available_minor,
        locked_minor=balance.locked_minor,
        version=balance.version,
        overdraft_limit_minor=balance.overdraft_limit_minor,
        tier=balance.tier,
        debit_frozen=balance.debit_frozen,
        credit_frozen=balance.credit_frozen,
        closed=balance.closed,
    )


async def wallet(call: Call, _: None) -> Answer:
    await _seen(call, call.wallet_id)
    return Answer(200, await wallet_answer(call, call.wallet_id))


async def wallets(call: Call, _: None) -> Answer:
    query: t.WalletsQuery = call.query
    bound = call.key.owner_id
    owner_id = bound if query.owner_id is None else query.owner_id
    if owner_id is None:
        raise invalid("owner_id", "given")
    if bound is not None and owner_id != bound:
        raise Refused("NOT_FOUND")
    after, size = _place(query, _whole, 0), query.page_size
    rows = await _ledger(call, "wallets_of", owner=owner_id, after=after, limit=size + 1)
    shown, following = _page(rows, size, lambda row: _cursor(row[0]))
    made = [
        t.WalletAnswer(
            wallet_id=row[0],
            owner_id=row[1],
            currency=row[2].rstrip(),
            available_minor=row[3],
            locked_minor=row[4],
            version=row[5],
            overdraft_limit_minor=row[6],
            tier=row[7],
            debit_frozen=bool(row[8] & FLAG_DEBIT_FROZEN),
            credit_frozen=bool(row[8] & FLAG_CREDIT_FROZEN),
            closed=bool(row[8] & FLAG_CLOSED),
        )
        for row in shown
    ]
    return Answer(200, t.WalletPage(wallets=made, next_cursor=following))


async def balance(call: Call, _: None) -> Answer:
    wallet_id = call.wallet_id
    await _seen(call, wallet_id)
    if call.query.at is None:
        now = await _balance(call, wallet_id)
        made = t.BalanceAnswer(
            wallet_id=wallet_id,
            currency=now.currency,
            available_minor=now.available_minor,
            locked_minor=now.locked_minor,
            version=now.version,
        )
        return Answer(200, made)
    rows = await _ledger(call, "balance_at", wallet=wallet_id, at=call.query.at)
    if not rows:
        raise Refused("NOT_FOUND", "the wallet was not open then")
    currency, available, locked, version, at, sequence = rows[0]
    made = t.BalanceAnswer(
        wallet_id=wallet_id,
        currency=currency.rstrip(),
        available_minor=available,
        locked_minor=locked,
        version=version,
        at=at,
        sequence=sequence,
    )
    return Answer(200, made)


async def entries(call: Call, _: None) -> Answer:
    query: t.EntriesQuery = call.query
    wallet_id = call.wallet_id
    await _seen(call, wallet_id)
    kinds = None if query.kind is None else [_kind(name) for name in query.kind.split(",")]
    look = query.page_size + 1 if kinds is None else MAX_LOOK
    rows = await _ledger(
        call,
        "entries",
        wallet=wallet_id,
        before=_place(query, _whole, None),
        since=query.since,
        until=query.until,
        kinds=kinds,
        look=look,
        limit=query.page_size + 1,
    )
    looked_to, looked = rows[0][:2]
    if looked == 0 and query.cursor is None and await call.engine.balance(wallet_id) is None:
        raise Refused("NOT_FOUND")
    found = [_entry(row) for row in rows if row[2] is not None]
    shown, following = _page(found, query.page_size, lambda entry: _cursor(entry.version))
    if following is None and kinds is not None and looked == look:
        following = _cursor(looked_to)
    if query.format == "csv":
        return Answer(200, _csv(shown), content_type="text/csv")
    return Answer(200, t.EntryPage(entries=shown, next_cursor=following))


def _kind(name: str) -> int:
    if name not in Kind.__members__:
        raise invalid("kind", f"some of {', '.join(Kind.__members__)}, separated by commas")
    return Kind[name].value


def _entry(row: tuple[Any, ...]) -> t.Entry:
    return t.Entry(
        version=row[2],
        sequence=row[3],
        at=row[4],
        kind=Kind(row[5]).name,
        id=row[6],
        counterparty_id=row[7],
        amount_minor=row[8],
        available_after_minor=row[9],
        locked_after_minor=row[10],
        reserved_minor=row[11],
        hold_id=row[12],
        reference=row[13],
        metadata=row[14],
    )


def _csv(entries: list[t.Entry]) -> bytes:
    """A text that begins like a formula gets an apostrophe, because spreadsheets would run it."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(t.Entry.__struct_fields__)
    for entry in entries:
        fields = msgspec.to_builtins(entry)
        fields["metadata"] = None if entry.metadata is None else orjson.dumps(entry.metadata).decode()
        if entry.reference and entry.reference[0] in "=+-@\t\r":
            fields["reference"] = f"'{entry.reference}"
        writer.writerow(fields.values())
    return text.getvalue().encode()


# Transfers


def _transfer(call: Call, row: tuple[Any, ...]) -> t.TransferAnswer:
    owner_id, (debit_owner, credit_owner) = call.key.owner_id, row[12:14]
    return t.TransferAnswer(
        id=row[0],
        sequence=row[1],
        kind=Kind(row[2]).name,
        at=row[3],
        debit_wallet_id=row[4],
        credit_wallet_id=row[5],
        amount_minor=row[6],
        debit_available_minor=row[7] if owner_id in (None, debit_owner) else None,
        credit_available_minor=row[8] if owner_id in (None, credit_owner) else None,
        refunded_minor=row[9],
        reference=row[10],
        metadata=row[11],
    )


async def _one_transfer(call: Call) -> t.TransferAnswer:
    rows = await _ledger(call, "transfer", id=call.uuid, owner=call.key.owner_id)
    if not rows:
        raise Refused("NOT_FOUND", "the ledger has no such transfer (yet): see min_sequence")
    return _transfer(call, rows[0])


async def transfer(call: Call, _: None) -> Answer:
    return Answer(200, await _one_transfer(call))


async def transfers(call: Call, _: None) -> Answer:
    query: t.TransfersQuery = call.query
    by_metadata = query.metadata_key is not None and query.metadata_value is not None
    if (query.reference is None) is not by_metadata or (query.metadata_key is None) is not (
        query.metadata_value is None
    ):
        raise invalid("reference", "given, or metadata_key with metadata_value, and not both")
    what: dict[str, Any] = {"owner": call.key.owner_id, "before": _place(query, _whole, _LAST)}
    what["limit"] = query.page_size + 1
    if query.reference is not None:
        rows = await _ledger(call, "transfers_by_reference", reference=query.reference, **what)
    else:
        asked = orjson.dumps({query.metadata_key: query.metadata_value}).decode()
        rows = await _ledger(call, "transfers_by_metadata", metadata=asked, **what)
    shown, following = _page(rows, query.page_size, lambda row: _cursor(row[1]))
    return Answer(200, t.TransferPage(transfers=[_transfer(call, row) for row in shown], next_cursor=following))


async def refunds(call: Call, _: None) -> Answer:
    query: t.PageQuery = call.query
    await _one_transfer(call)
    rows = await _ledger(call, "refunds_of", id=call.uuid, after=_place(query, _whole, 0), limit=query.page_size + 1)
    shown, following = _page(rows, query.page_size, lambda row: _cursor(row[2]))
    made = [
        t.RefundAnswer(
            id=row[0],
            kind=Kind(row[1]).name,
            sequence=row[2],
            at=row[3],
            amount_minor=row[4],
            total_minor=row[5],
            reference=row[6],
        )
        for row in shown
    ]
    return Answer(200, t.RefundPage(refunds=made, next_cursor=following))


async def outcome(call: Call, _: None) -> Answer:
    """Whoever has the key's scope made the request; but of a bound key only its own side is known here: neither."""
    derived = call.service.derive(call.key.id_scope, call.query.key)
    found = await call.engine.lookup(id=UUID(bytes=derived))
    if found.status is Status.NOT_APPLIED:
        raise Refused(Status.NOT_APPLIED)
    sees = call.key.owner_id is None
    made = t.LookupAnswer(
        status=found.status.value,
        id=found.transfer_id,
        sequence=found.sequence,
        amount_minor=found.amount_minor,
        debit_available_minor=found.debit_available_minor if sees else None,
        credit_available_minor=found.credit_available_minor if sees else None,
    )
    return Answer(200, made)


# Holds


async def hold(call: Call, _: None) -> Answer:
    found, _debit, _credit = await call.service.access.hold(call.engine, call.key, call.uuid)
    ends_at = found.expires_at_ms
    made = t.HoldAnswer(
        id=found.hold_id,
        state=found.state.name,  # type: ignore[arg-type]  # one of its Literal's words
        purpose=found.purpose.name,  # type: ignore[arg-type]  # likewise
        under_review=found.review is not Review.NONE,
        debit_wallet_id=found.debit,
        credit_wallet_id=found.credit,
        remaining_minor=found.remaining_minor,
        captured_minor=found.captured_minor,
        expires_at=None if ends_at is None else datetime.fromtimestamp(ends_at / 1000, UTC),
    )
    return Answer(200, made)


async def _holds(call: Call, **which: Any) -> Answer:
    query: t.PageQuery = call.query
    asked = {"wallet": None, "purposes": None, "under_review": None} | which
    rows = await _ledger(
        call,
        "open_holds",
        owner=call.key.owner_id,
        after=_place(query, _whole, 0),
        limit=query.page_size + 1,
        **asked,
    )
    shown, following = _page(rows, query.page_size, lambda row: _cursor(row[13]))
    made = [
        t.OpenHoldAnswer(
            id=row[0],
            purpose=Kind(row[1]).name,
            debit_wallet_id=row[2],
            credit_wallet_id=row[3],
            currency=row[4].rstrip(),
            remaining_minor=row[5],
            captured_minor=row[6],
            under_review=row[7] != 0,
            rule=_rule(row[8]),
            since=row[9],
            expires_at=row[10],
            reference=row[11],
            metadata=row[12],
        )
        for row in shown
    ]
    return Answer(200, t.HoldPage(holds=made, next_cursor=following))


def _rule(number: int) -> str | None:
    return Rule(number).name if number else None


async def holds(call: Call, _: None) -> Answer:
    wallet_id = call.query.wallet_id
    if wallet_id is not None:
        await _seen(call, wallet_id)
    return await _holds(call, wallet=wallet_id)


async def pending(call: Call, _: None) -> Answer:
    return await _holds(call, purposes=[Kind.TOP_UP.value, Kind.WITHDRAWAL.value], under_review=False)


async def reviews(call: Call, _: None) -> Answer:
    return await _holds(call, under_review=True)


# For operators


async def declined(call: Call, _: None) -> Answer:
    query: t.DeclinedQuery = call.query
    if query.wallet_id is not None:
        await _seen(call, query.wallet_id)
    first: tuple[datetime | None, UUID] = (None, UUID(int=2**128 - 1))
    before_at, before_id = _place(query, lambda at, id: (datetime.fromisoformat(at), UUID(id)), first)
    rows = await _ledger(
        call,
        "declined",
        owner=call.key.owner_id,
        wallet=query.wallet_id,
        since=query.since,
        before_at=before_at,
        before_id=before_id,
        limit=query.page_size + 1,
    )
    shown, following = _page(rows, query.page_size, lambda row: _cursor(row[0].isoformat(), str(row[1])))
    made = [
        t.DeclinedAnswer(
            at=row[0],
            id=row[1],
            kind=Kind(row[2]).name,
            status=STATUS_OF[row[3]].value,
            rule=_rule(row[4]),
            debit_wallet_id=row[5],
            credit_wallet_id=row[6],
            amount_minor=row[7],
        )
        for row in shown
    ]
    return Answer(200, t.DeclinedPage(declined=made, next_cursor=following))


async def tier(call: Call, _: None) -> Answer:
    number = int(call.params["tier"])
    limits = await call.engine.tier_limits(number)
    if limits is None:
        raise Refused(Status.TIER_NOT_FOUND)
    return Answer(200, t.TierAnswer(tier=number, **limits_json(limits)))


async def tiers(call: Call, _: None) -> Answer:
    rows = await _ledger(call, "tiers")
    made = [
        t.TierAnswer(tier=row[0], **limits_json(unpack_limits(TIER_LIMITS.struct.pack(LAYOUT_VERSION, *row[1:]))))
        for row in rows
    ]
    return Answer(200, t.TierList(tiers=made))


async def runs(call: Call, _: None) -> Answer:
    query: t.PageQuery = call.query
    rows = await _ledger(call, "reconcile_runs", before=_place(query, _whole, _LAST), limit=query.page_size + 1)
    shown, following = _page(rows, query.page_size, lambda row: _cursor(row[0]))
    made = [t.RunAnswer(**dict(zip(t.RunAnswer.__struct_fields__, row, strict=True))) for row in shown]
    return Answer(200, t.RunPage(runs=made, next_cursor=following))


async def shards(call: Call, _: None) -> Answer:
    now = await call.service.shard_now()
    rows = await call.service.ledger.rows("shards")
    made = [
        t.ShardAnswer(
            shard=row[0],
            open=now.is_open,
            epoch=row[1],
            sequence=now.sequence,
            persisted_sequence=row[2],
            lag=max(0, now.sequence - row[2]),
            chain=row[3],
            persisted_at=row[4],
        )
        for row in rows
    ]
    return Answer(200, t.ShardList(shards=made))
