"""The operations that change something: each checks whose wallets it is about, and asks the engine."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from psycopg.types.json import Jsonb

from engine import MAX_AMOUNT_MINOR, HoldNow, Kind, Outcome, Rule, Status, TierLimits, Transfer, WalletChange
from engine.domain.wallet import FLAG_CREDIT_FROZEN, FLAG_DEBIT_FROZEN, MAX_WALLET_ID
from gateway.http import types as t
from gateway.http.call import Answer, Call, number
from gateway.http.problems import HTTP_OF, Refused, RefusedByStatus, invalid
from gateway.http.reads import wallet_answer

_FINISHED = frozenset({Status.POSTED, Status.UNDER_REVIEW})


def _amount(value: int | str, field: str = "amount_minor") -> int:
    return number(value, field, 1, MAX_AMOUNT_MINOR)


def _wallet(value: int | str, field: str) -> int:
    return number(value, field, 1, MAX_WALLET_ID)


def _outcome(
    outcome: Outcome, sees_debit: bool = True, sees_credit: bool = True, posted: int = 201, id: UUID | None = None
) -> Answer:
    """Raises RefusedByStatus unless it was accepted. id: the outcome's, where it is at hand."""
    status = outcome.status
    if status not in _FINISHED:
        raise RefusedByStatus(outcome, sees_debit=sees_debit)
    body = t.OutcomeAnswer(
        status=status.value,  # type: ignore[arg-type]  # it is in _FINISHED
        id=outcome.transfer_id if id is None else id,
        sequence=outcome.sequence,
        amount_minor=outcome.amount_minor,
        debit_available_minor=outcome.debit_available_minor if sees_debit else None,
        credit_available_minor=outcome.credit_available_minor if sees_credit else None,
        rule=Rule(outcome.rule).name if outcome.rule else None,
    )
    return Answer(posted if status is Status.POSTED else 202, body, outcome.replayed)


def _details(body: Any) -> dict[str, Any]:
    return {"reference": body.reference, "metadata": body.metadata}


def _more(body: t.TransferBody) -> dict[str, Any]:
    """What few ask for: left out where it is absent, which is the engine's short way."""
    more: dict[str, Any] = {}
    if body.balancing:
        more["balancing"] = True
    if body.expect_version is not None:
        more["expect_version"] = body.expect_version
    if body.min_available_after_minor is not None:
        more["min_available_after_minor"] = body.min_available_after_minor
    return _origin(body, more)


def _origin(body: Any, more: dict[str, Any]) -> dict[str, Any]:
    if body.device is not None:
        more["device"] = body.device
    if body.ip is not None:
        more["ip"] = body.ip
    return more


async def _sides(call: Call, body: Any) -> tuple[int, int, bool]:
    """(debit, credit, whether the caller sees the credit side). Raises Refused for a debit side that is not its own."""
    debit = _wallet(body.debit_wallet_id, "debit_wallet_id")
    credit = _wallet(body.credit_wallet_id, "credit_wallet_id")
    key = call.key
    if key.owner_id is None:
        return debit, credit, True
    access, engine = call.service.access, call.engine
    await access.need(engine, key, debit, Status.DEBIT_WALLET_NOT_FOUND, "debit_wallet_id")
    return debit, credit, await access.owns(engine, key, credit)


async def transfer(call: Call, body: t.TransferBody) -> Answer:
    debit, credit, sees = await _sides(call, body)
    outcome = await call.engine.transfer(
        debit,
        credit,
        _amount(body.amount_minor),
        id=call.id,
        currency=body.currency,
        reference=body.reference,
        metadata=body.metadata,
        **_more(body),
        **call.durable,
    )
    return _outcome(outcome, sees_credit=sees, id=call.id)


async def payment(call: Call, body: t.TransferBody) -> Answer:
    debit, credit, sees = await _sides(call, body)
    outcome = await call.engine.pay(
        debit,
        credit,
        _amount(body.amount_minor),
        id=call.id,
        currency=body.currency,
        reference=body.reference,
        metadata=body.metadata,
        **_more(body),
        **call.durable,
    )
    return _outcome(outcome, sees_credit=sees, id=call.id)


def _pending(body: t.TopUpBody) -> dict[str, Any]:
    if body.expires_in_ms is not None and not body.two_step:
        raise invalid("expires_in_ms", "absent unless two_step is true")
    return {} if body.expires_in_ms is None else {"expires_in_ms": body.expires_in_ms}


async def top_up(call: Call, body: t.TopUpBody) -> Answer:
    engine, more = call.engine, _pending(body)
    ask = engine.start_top_up if body.two_step else engine.top_up
    outcome = await ask(
        _wallet(body.wallet_id, "wallet_id"),
        _amount(body.amount_minor),
        id=call.id,
        currency=body.currency,
        **_details(body),
        **more,
        **call.durable,
    )
    return _outcome(outcome)


async def withdrawal(call: Call, body: t.WithdrawalBody) -> Answer:
    engine, more = call.engine, _origin(body, _pending(body))
    wallet_id = _wallet(body.wallet_id, "wallet_id")
    await call.service.access.need(engine, call.key, wallet_id, Status.DEBIT_WALLET_NOT_FOUND, "wallet_id")
    ask: Any = engine.start_withdrawal if body.two_step else engine.withdraw
    outcome: Outcome = await ask(
        wallet_id,
        _amount(body.amount_minor),
        id=call.id,
        currency=body.currency,
        **_details(body),
        **more,
        **call.durable,
    )
    return _outcome(outcome, sees_credit=call.key.owner_id is None)


async def _pending_of(call: Call, purpose: Kind) -> None:
    """Raises Refused for a hold that is for something else; one that Redis forgot is the engine's to refuse."""
    [found] = await call.engine.find_holds([call.uuid])
    if found is not None and found.purpose is not purpose:
        raise Refused(Status.HOLD_NOT_FOUND)


async def confirm_top_up(call: Call, body: t.ConfirmBody) -> Answer:
    await _pending_of(call, Kind.TOP_UP)
    return _outcome(await call.engine.confirm(call.uuid, body.psp_reference, **call.durable), posted=200)


async def fail_top_up(call: Call, body: t.FailBody) -> Answer:
    await _pending_of(call, Kind.TOP_UP)
    return _outcome(await call.engine.fail(call.uuid, body.reason, **call.durable), posted=200)


async def confirm_withdrawal(call: Call, body: t.ConfirmBody) -> Answer:
    await _pending_of(call, Kind.WITHDRAWAL)
    return _outcome(await call.engine.confirm(call.uuid, body.psp_reference, **call.durable), posted=200)


async def fail_withdrawal(call: Call, body: t.FailBody) -> Answer:
    await _pending_of(call, Kind.WITHDRAWAL)
    return _outcome(await call.engine.fail(call.uuid, body.reason, **call.durable), posted=200)


# Holds


async def hold(call: Call, body: t.HoldBody) -> Answer:
    debit, credit, sees = await _sides(call, body)
    outcome = await call.engine.hold(
        debit,
        credit,
        _amount(body.amount_minor),
        id=call.id,
        expires_in_ms=body.expires_in_ms,
        purpose=Kind[body.purpose],
        currency=body.currency,
        **_details(body),
        **_origin(body, {}),
        **call.durable,
    )
    return _outcome(outcome, sees_credit=sees)


async def _seen_hold(call: Call, debit_may: bool, credit_may: bool) -> tuple[bool, bool]:
    """Which sides the caller sees. Raises Refused: 404 if none, 403 if its side may not do this.

    How a two-step top-up or withdrawal ends is the provider's word, which owners do not speak.
    """
    if call.key.owner_id is None:
        return True, True
    found: HoldNow
    found, debit, credit = await call.service.access.hold(call.engine, call.key, call.uuid)
    outside = found.debit < 0 or found.credit < 0
    if outside or not ((debit and debit_may) or (credit and credit_may)):
        raise Refused("FORBIDDEN", "this side of the hold may not do this")
    return debit, credit


async def capture(call: Call, body: t.CaptureBody) -> Answer:
    sees = await _seen_hold(call, True, True)
    amount = None if body.amount_minor is None else _amount(body.amount_minor)
    outcome = await call.engine.capture(
        call.uuid, amount, final=body.final, id=call.id, **_details(body), **call.durable
    )
    return _outcome(outcome, *sees)


async def void(call: Call, body: t.VoidBody) -> Answer:
    sees = await _seen_hold(call, False, True)
    return _outcome(await call.engine.void(call.uuid, **_details(body), **call.durable), *sees, posted=200)


async def raise_hold(call: Call, body: t.RaiseBody) -> Answer:
    sees = await _seen_hold(call, True, False)
    outcome = await call.engine.raise_hold(call.uuid, _amount(body.amount_minor), id=call.id, **call.durable)
    return _outcome(outcome, *sees)


# Giving back


async def refund(call: Call, body: t.RefundBody) -> Answer:
    sees_debit, sees_credit = True, True
    if call.key.owner_id is not None:
        sees_debit, sees_credit = await _refundable(call, body)
    amount = None if body.amount_minor is None else _amount(body.amount_minor)
    outcome = await call.engine.refund(body.transfer_id, amount, id=call.id, **_details(body), **call.durable)
    return _outcome(outcome, sees_debit, sees_credit)


async def _refundable(call: Call, body: t.RefundBody) -> tuple[bool, bool]:
    """A refund's debit side is the credit side of its transfer: that one must be the caller's."""
    known = await call.engine.lookup(id=body.transfer_id)
    if known.status is Status.POSTED:
        await call.service.ledger.wait_for(known.sequence)
    rows = await call.service.ledger.rows("transfer", id=body.transfer_id, owner=call.key.owner_id)
    if not rows:
        raise Refused(Status.TRANSFER_NOT_FOUND)
    debit_owner, credit_owner = rows[0][12:14]
    if credit_owner != call.key.owner_id:
        raise Refused("FORBIDDEN", "only the side that got the money may refund it")
    return True, debit_owner == call.key.owner_id


async def chargeback(call: Call, body: t.RefundBody) -> Answer:
    await _note(call, "chargeback", str(body.transfer_id), {"amount_minor": body.amount_minor, "id": str(call.id)})
    amount = None if body.amount_minor is None else _amount(body.amount_minor)
    outcome = await call.engine.chargeback(body.transfer_id, amount, id=call.id, **_details(body), **call.durable)
    return _outcome(outcome)


# Batches


async def batch(call: Call, body: t.BatchBody) -> Answer:
    key, items = call.key, body.transfers
    transfers = [
        Transfer(
            _wallet(item.debit_wallet_id, f"transfers[{at}].debit_wallet_id"),
            _wallet(item.credit_wallet_id, f"transfers[{at}].credit_wallet_id"),
            _amount(item.amount_minor, f"transfers[{at}].amount_minor"),
            id=call.part_id("batch", at),
            kind=Kind[item.kind],
            currency=item.currency,
            reference=item.reference,
            metadata=item.metadata,
            **_more(item),
        )
        for at, item in enumerate(items)
    ]
    sees: list[bool] = [True] * len(items)
    if key.owner_id is not None:
        owners = await call.service.access.owners_of(
            call.engine, [one.debit for one in transfers] + [one.credit for one in transfers]
        )
        for at in range(len(items)):
            if owners[at] != key.owner_id:
                raise Refused(Status.DEBIT_WALLET_NOT_FOUND, field=f"transfers[{at}].debit_wallet_id")
        sees = [owner == key.owner_id for owner in owners[len(items) :]]
    outcomes = await call.engine.post(transfers, linked=body.linked and len(transfers) > 1, **call.durable)
    results = [
        t.BatchResult(
            status=outcome.status.value,
            http_status=HTTP_OF[outcome.status],
            id=outcome.transfer_id,
            sequence=outcome.sequence,
            amount_minor=outcome.amount_minor,
            debit_available_minor=outcome.debit_available_minor,
            credit_available_minor=outcome.credit_available_minor if seen else None,
            replayed=outcome.replayed,
        )
        for outcome, seen in zip(outcomes, sees, strict=True)
    ]
    return Answer(200, t.BatchAnswer(results=results), all(outcome.replayed for outcome in outcomes))


# Wallets, tiers, reviews


async def open_wallet(call: Call, body: t.OpenWalletBody) -> Answer:
    wallet_id = _wallet(body.wallet_id, "wallet_id")
    owner_id = number(body.owner_id, "owner_id", 0, MAX_WALLET_ID)
    limit = number(body.overdraft_limit_minor, "overdraft_limit_minor", 0, MAX_AMOUNT_MINOR)
    if call.key.owner_id not in (None, owner_id):
        raise Refused("FORBIDDEN", "the key is bound to another owner", field="owner_id")
    if limit and "admin" not in call.key.scopes:
        raise Refused("FORBIDDEN", "an overdraft limit needs the scope admin", field="overdraft_limit_minor")
    if limit:
        await _note(call, "wallet.open", str(wallet_id), {"overdraft_limit_minor": limit})
    outcome = await call.engine.open_wallet(
        wallet_id, owner_id, body.currency, overdraft_limit_minor=limit, **call.durable
    )
    if outcome.status is not Status.POSTED:
        raise RefusedByStatus(outcome)
    call.service.access.learn(wallet_id, owner_id)
    made = t.OpenedAnswer(
        status="POSTED",
        id=outcome.transfer_id,
        sequence=outcome.sequence,
        wallet_id=wallet_id,
        owner_id=owner_id,
        currency=body.currency,
    )
    return Answer(201, made, outcome.replayed)


async def change_wallet(call: Call, body: t.ChangeWalletBody) -> Answer:
    wallet_id = call.wallet_id
    changes = list(_changes(body))
    if not changes:
        raise invalid("body", "an object with at least one change")
    await _note(call, "wallet.change", str(wallet_id), {kind.name: value for kind, value in changes})
    requests = [
        WalletChange(wallet_id, kind, value, id=uuid4() if call.id_key is None else call.part_id("wallet", at))
        for at, (kind, value) in enumerate(changes)
    ]
    outcomes = await call.engine.post(requests, linked=len(requests) > 1, **call.durable)
    refused = [one for one in outcomes if one.status is not Status.POSTED]
    if refused:
        raise RefusedByStatus(next((one for one in refused if one.status is not Status.LINKED_FAILED), refused[0]))
    return Answer(200, await wallet_answer(call, wallet_id), all(one.replayed for one in outcomes))


def _changes(body: t.ChangeWalletBody) -> Any:
    """(kind, value) of each; closing is the last."""
    if body.overdraft_limit_minor is not None:
        limit = number(body.overdraft_limit_minor, "overdraft_limit_minor", 0, MAX_AMOUNT_MINOR)
        yield Kind.SET_OVERDRAFT_LIMIT, limit
    if body.tier is not None:
        yield Kind.SET_TIER, body.tier
    flags = {FLAG_DEBIT_FROZEN: body.debit_frozen, FLAG_CREDIT_FROZEN: body.credit_frozen}
    for kind, wanted in ((Kind.FREEZE, True), (Kind.UNFREEZE, False)):
        value = sum(flag for flag, asked in flags.items() if asked is wanted)
        if value:
            yield kind, value
    if body.closed:
        yield Kind.CLOSE_WALLET, 0


async def set_tier(call: Call, body: t.TierLimitsBody) -> Answer:
    tier = int(call.params["tier"])
    limits = TierLimits(
        **{name: getattr(body, name) for name in TierLimits._fields if name != "review"},
        review=frozenset(Rule[name] for name in body.review),
    )
    await _note(call, "tier.set", str(tier), limits._asdict() | {"review": body.review})
    outcome = await call.engine.set_tier_limits(tier, limits, **call.durable)
    if outcome.status is not Status.POSTED:
        raise RefusedByStatus(outcome)
    return Answer(200, t.TierAnswer(tier=tier, **{name: getattr(body, name) for name in body.__struct_fields__}))


async def approve(call: Call, _: None) -> Answer:
    await _note(call, "review.approve", str(call.uuid), {})
    return _outcome(await call.engine.approve(call.uuid, **call.durable), posted=200)


async def reject(call: Call, body: t.FailBody) -> Answer:
    await _note(call, "review.reject", str(call.uuid), {"reason": body.reason})
    return _outcome(await call.engine.reject(call.uuid, reason=body.reason, **call.durable), posted=200)


async def _note(call: Call, action: str, subject: str, details: dict[str, Any]) -> None:
    """Before it is done, so that nothing is done unnoted. Raises Refused: LEDGER_UNAVAILABLE."""
    await call.service.ledger.write(
        "note_action",
        actor=f"key:{call.key.prefix}",
        request_id=call.request_id,
        action=action,
        subject=subject,
        details=Jsonb(details),
    )
