"""Refunds and chargebacks: of every kind of transfer, in parts, and by what Redis or the ledger remembers."""

from __future__ import annotations

import pytest

from engine.domain.limits import Rule
from engine.domain.transfer import Kind
from tests.fixtures.shard import (
    OUTSIDE,
    Asked,
    ShardDriver,
    capture_record,
    claim,
    hold_record,
    opening_record,
    reference_record,
    request_record,
    tier_limits,
    tier_record,
    wallet_change,
)
from tests.lua.books import assert_sound
from tests.lua.steps import OK, Step, both_ways, case_ids, run

OVER, NOT_FOUND, NOT_REFUNDABLE = "REFUND_EXCEEDS_TRANSFER", "TRANSFER_NOT_FOUND", "NOT_REFUNDABLE"
RANGE, BEHIND, FUNDS = "AMOUNT_OUT_OF_RANGE", "LEDGER_BEHIND", "INSUFFICIENT_FUNDS"
NAN, INFINITY = float("nan"), float("inf")
TOP_UP = 9007
"""The transfer that funded wallet 1 with 1,000."""


def back(number: int, amount: float = 0, of: int = 1) -> Asked:
    return reference_record(number, Kind.REFUND, of, amount)


def charged_back(number: int, amount: float = 0, of: int = TOP_UP) -> Asked:
    return reference_record(number, Kind.CHARGEBACK, of, amount)


def paid(kind: Kind = Kind.PAYMENT, credit: int = 2) -> tuple[Asked, str]:
    """Transfer 1: 300 from wallet 1."""
    return request_record(1, kind, 1, credit, 300), OK


def spent(number: int = 70, amount: int = 1000) -> tuple[Asked, str]:
    """From wallet 1, to a merchant."""
    return request_record(number, Kind.PAYMENT, 1, 3, amount), OK


def held(number: int = 50, **fields: int) -> tuple[Asked, str]:
    return hold_record(number, 1, 2, 300, **fields), OK


REVIEWED = [
    (tier_record(80, 1, tier_limits(max_amount=100, review=[Rule.MAX_AMOUNT])), OK),
    (wallet_change(81, Kind.SET_TIER, 1, 1), OK),
    (request_record(1, Kind.PAYMENT, 1, 2, 300), "UNDER_REVIEW"),
]

# (what, steps, available of wallets 1 and 2 at the end)
CASES: list[tuple[str, list[Step], tuple[int, int]]] = [
    ("all", [paid(), (back(2), OK)], (1000, 0)),
    ("all by its amount", [paid(), (back(2, 300), OK)], (1000, 0)),
    ("a part", [paid(), (back(2, 100), OK)], (800, 200)),
    ("parts", [paid(), (back(2, 100), OK), (back(3, 150), OK), (back(4, 50), OK), (back(5, 1), OVER)], (1000, 0)),
    ("a part, then the rest", [paid(), (back(2, 100), OK), (back(3), OK), (back(4), OVER)], (1000, 0)),
    ("over", [paid(), (back(2, 301), OVER), (back(3), OK)], (1000, 0)),
    ("over what is left", [paid(), (back(2, 100), OK), (back(3, 201), OVER), (back(4, 200), OK)], (1000, 0)),
    ("nothing left", [paid(), (back(2), OK), (back(3), OVER), (back(2), OK)], (1000, 0)),
    *[("bad", [paid(), (back(2, n), RANGE), (charged_back(3, n), RANGE)], (700, 300))
      for n in (-1, 0.5, NAN, INFINITY, 2.0**53)],
    ("the money is spent", [paid(), (request_record(2, debit=2, credit=3, amount=1), OK), (back(3), FUNDS),
                            (back(4, 299), OK)], (999, 0)),
    ("of nothing", [(back(2), NOT_FOUND)], (1000, 0)),
    ("of itself", [(back(2, of=2), NOT_FOUND)], (1000, 0)),
    ("of what comes later", [(back(2), NOT_FOUND), paid(), (back(2), OK)], (1000, 0)),
    ("of a refund", [paid(), (back(2), OK), (back(3, of=2), NOT_REFUNDABLE)], (1000, 0)),
    ("of a chargeback", [(charged_back(2, 10), OK), (back(3, of=2), NOT_REFUNDABLE)], (990, 0)),
    ("of a refusal", [(request_record(1, amount=1001), FUNDS), (back(2), "TRANSFER_NOT_FOUND")], (1000, 0)),
    ("of an opening", [(back(2, of=9003), NOT_REFUNDABLE)], (1000, 0)),
    ("of a change", [(wallet_change(1, Kind.FREEZE, 3, 2), OK), (back(2), NOT_REFUNDABLE)], (1000, 0)),
    ("of a hold", [held(), (back(2, of=50), NOT_REFUNDABLE)], (700, 0)),
    ("of a captured hold", [held(), (capture_record(51, 50), OK), (back(2, of=50), NOT_REFUNDABLE)], (700, 300)),
    ("of a void", [held(), (reference_record(51, Kind.VOID, 50), OK), (back(2, of=51), NOT_REFUNDABLE)], (1000, 0)),
    ("of a raise", [held(), (reference_record(51, Kind.RAISE_HOLD, 50, 1), OK), (back(2, of=51), NOT_REFUNDABLE)],
     (699, 0)),
    ("of a capture", [held(), (capture_record(1, 50), OK), (back(2), OK), (back(3), OVER)], (1000, 0)),
    ("of a part captured", [held(), (capture_record(1, 50, 200), OK), (back(2, 201), OVER), (back(3), OK)], (1000, 0)),
    ("of each capture", [held(), (capture_record(1, 50, 100, final=False), OK), (capture_record(52, 50), OK),
                         (back(2), OK), (back(3, 150, of=52), OK), (back(4, 51, of=52), OVER)], (950, 50)),
    ("of a refused capture", [held(), (capture_record(1, 50, 301), "EXCEEDS_HOLD"), (back(2), "TRANSFER_NOT_FOUND")],
     (700, 0)),
    ("of a withdrawal", [paid(Kind.WITHDRAWAL, OUTSIDE), (back(2), OK)], (1000, 0)),
    ("of a captured withdrawal", [(hold_record(50, 1, OUTSIDE, 300, purpose=Kind.WITHDRAWAL), OK),
                                  (capture_record(1, 50), OK), (back(2, 200), OK)], (900, 0)),
    ("of a top-up", [(back(2, of=TOP_UP), OK)], (0, 0)),
    ("of a spent top-up", [spent(), (back(2, of=TOP_UP), FUNDS), (back(3, 1, of=TOP_UP), FUNDS)], (0, 0)),
    ("of a review", [*REVIEWED, (back(2), NOT_REFUNDABLE)], (700, 0)),
    ("of an approved review", [*REVIEWED, (reference_record(60, Kind.APPROVE_HOLD, 1), OK), (back(2), NOT_REFUNDABLE),
                               (back(3, of=60), OK), (back(4, of=60), OVER)], (1000, 0)),
    ("of an approved hold", [(REVIEWED[0][0], OK), (REVIEWED[1][0], OK), (held()[0], "UNDER_REVIEW"),
                             (reference_record(60, Kind.APPROVE_HOLD, 50), OK), (back(2, of=60), NOT_REFUNDABLE),
                             (capture_record(1, 50), OK), (back(3), OK)], (1000, 0)),
    ("of what was balanced", [(request_record(1, amount=5000, flags=2, attached=b""), OK), (back(2, 1001), OVER),
                              (back(3), OK)], (1000, 0)),
    ("frozen payee", [paid(), (wallet_change(2, Kind.FREEZE, 2, 2), OK), (back(3), "DEBIT_FROZEN")], (700, 300)),
    ("frozen payer", [paid(), (wallet_change(2, Kind.FREEZE, 1, 4), OK), (back(3), "CREDIT_FROZEN")], (700, 300)),
    ("other freezes", [paid(), (wallet_change(2, Kind.FREEZE, 1, 2), OK), (wallet_change(3, Kind.FREEZE, 2, 4), OK),
                       (back(4), OK)], (1000, 0)),
    ("closed payer", [paid(), (request_record(2, debit=1, credit=3, amount=700), OK),
                      (wallet_change(3, Kind.CLOSE_WALLET, 1), OK), (back(4), "WALLET_CLOSED")], (0, 300)),
    # Chargebacks: of top-ups only, whatever the wallet has left, and whether it is frozen or not.
    ("charged back", [(charged_back(2), OK), (charged_back(3), OVER)], (0, 0)),
    ("charged back when spent", [spent(), (charged_back(2), OK)], (-1000, 0)),
    ("charged back in parts", [spent(), (charged_back(2, 400), OK), (charged_back(3), OK)], (-1000, 0)),
    ("charged back after a refund", [(back(2, 400, of=TOP_UP), OK), spent(amount=600), (charged_back(3, 601), OVER),
                                     (charged_back(4), OK), (back(5, of=TOP_UP), OVER)], (-600, 0)),
    ("charged back while frozen", [(wallet_change(2, Kind.FREEZE, 1, 6), OK), (charged_back(3), OK)], (0, 0)),
    ("charged back when closed", [spent(), (wallet_change(2, Kind.CLOSE_WALLET, 1), OK),
                                  (charged_back(3), OK)], (-1000, 0)),
    ("charged back while held", [(hold_record(50, 1, 2, 1000), OK), (charged_back(2), OK), (capture_record(3, 50), OK)],
     (-1000, 1000)),
    ("of a payment", [paid(), (charged_back(2, of=1), NOT_REFUNDABLE)], (700, 300)),
    ("of what only says it is a top-up", [(request_record(1, Kind.TOP_UP, 1, 2, 300), OK),
                                          (charged_back(2, of=1), NOT_REFUNDABLE), (back(3), OK)], (1000, 0)),
    ("of a withdrawal", [paid(Kind.WITHDRAWAL, OUTSIDE), (charged_back(2, of=1), NOT_REFUNDABLE)], (700, 0)),
    ("of a captured top-up", [(hold_record(50, OUTSIDE, 1, 300, purpose=Kind.TOP_UP), OK), (capture_record(1, 50), OK),
                              spent(amount=1300), (charged_back(2, of=1), OK)], (-300, 0)),
    ("of nothing", [(charged_back(2, of=1), NOT_FOUND)], (1000, 0)),
    ("a debt is paid first", [spent(), (charged_back(2), OK), (request_record(3, Kind.TOP_UP, OUTSIDE, 1, 1100), OK),
                              (request_record(4, amount=101), FUNDS), (request_record(5, amount=100), OK)], (0, 100)),
]  # fmt: skip


@pytest.mark.parametrize(("what", "steps", "available"), CASES, ids=case_ids(CASES))
def test_a_refund(clocked: ShardDriver, what: str, steps: list[Step], available: tuple[int, int]) -> None:
    for at_once in both_ways(clocked):
        run(clocked, steps, at_once=at_once)
        assert (clocked.balance(1)[0], clocked.balance(2)[0]) == available
        assert_sound(clocked)


def test_what_is_answered(clocked: ShardDriver) -> None:
    """The amount that came back; the debit side is who pays it back."""
    run(clocked, [paid()])
    asked = [back(2, 100), back(3)]
    outcomes = clocked.post(asked)
    assert [(outcome.amount_minor, *outcome[3:5]) for outcome in outcomes] == [(100, 200, 800), (200, 0, 1000)]
    assert [outcome._replace(replayed=False) for outcome in clocked.post(asked)] == outcomes


def funds(number: int, amount: int) -> Asked:
    return request_record(number, Kind.TOP_UP, OUTSIDE, 1, amount)


def pays(number: int, amount: int) -> Asked:
    return request_record(number, amount=amount)


DEBTS: list[tuple[str, int, list[Step], int]] = [
    # (what, debt_first, steps after a chargeback that leaves wallet 1 at -1,000, available of it at the end)
    ("paid first", 1, [(funds(3, 600), OK), (pays(4, 1), FUNDS)], -400),
    ("set aside", 0, [(pays(4, 1), FUNDS), (funds(3, 600), OK),
                      (pays(5, 600), OK), (pays(6, 1), FUNDS)], -1000),
    ("over once paid", 0, [(funds(3, 1000), OK), (pays(4, 1), FUNDS)], 0),
    ("over when paid by a refund", 0, [(back(3, of=70), OK), (pays(4, 1), FUNDS)], 0),
    ("over when paid by a capture", 0, [(hold_record(3, OUTSIDE, 1, 1000, purpose=Kind.TOP_UP), OK),
                                        (capture_record(4, 3), OK), (pays(5, 1), FUNDS)], 0),
    ("one within what may be spent", 0, [(funds(3, 600), OK), (charged_back(4, 200, 3), OK),
                                         (pays(5, 401), FUNDS), (pays(6, 400), OK)], -1000),
    ("one on top", 0, [(funds(3, 600), OK), (pays(4, 600), OK),
                       (charged_back(5, 600, 3), OK), (pays(6, 1), FUNDS),
                       (funds(7, 5), OK), (pays(8, 6), FUNDS),
                       (pays(9, 5), OK)], -1600),
    ("over when the limit covers it", 0, [(wallet_change(3, Kind.SET_OVERDRAFT_LIMIT, 1, 1500), OK),
                                          (pays(4, 501), FUNDS), (pays(5, 500), OK)], -1500),
]  # fmt: skip


@pytest.mark.parametrize(("what", "debt_first", "steps", "available"), DEBTS, ids=case_ids(DEBTS))
def test_a_debt(clocked: ShardDriver, what: str, debt_first: int, steps: list[Step], available: int) -> None:
    run(clocked, [(tier_record(80, 1, tier_limits(debt_first=debt_first)), OK)])
    run(clocked, [(wallet_change(81, Kind.SET_TIER, 1, 1), OK), spent(), (charged_back(2), OK), *steps])
    assert clocked.balance(1)[0] == available
    assert_sound(clocked)


@pytest.mark.parametrize("end", ["void", "expiry", "final capture"])
def test_a_debt_is_over_too_when_a_hold_gives_back(clocked: ShardDriver, end: str) -> None:
    """Else the wallet could go below its limit by a debt that it no longer has."""
    run(clocked, [(tier_record(80, 1, tier_limits(debt_first=0)), OK), (wallet_change(81, Kind.SET_TIER, 1, 1), OK)])
    run(clocked, [(hold_record(1, 1, 2, 1000, expires_in_ms=5), OK), (charged_back(2, 900), OK)])
    assert clocked.usage(1)["debt"] == 900
    ends: dict[str, list[Step]] = {
        "void": [(reference_record(3, Kind.VOID, 1), OK)],
        "expiry": [5, (reference_record(3, Kind.EXPIRE_HOLD, 1), OK)],
        "final capture": [(capture_record(3, 1, 10), OK)],
    }
    run(clocked, ends[end])
    left = clocked.balance(1)[0]
    assert left == (90 if end == "final capture" else 100)
    run(clocked, [(request_record(4, amount=left + 1), FUNDS), (request_record(5, amount=left), OK)])
    assert clocked.usage(1)["debt"] == 0
    assert_sound(clocked)


# What the ledger says of a transfer that Redis no longer knows. The sequence of this call is 8.
CLAIMS: list[tuple[str, bytes, float, str, tuple[int, int]]] = [
    ("all", claim(amount=300, as_of=8), 0, OK, (1000, 0)),
    ("a part", claim(amount=300, as_of=8), 100, OK, (800, 200)),
    ("over", claim(amount=300, as_of=8), 301, OVER, (700, 300)),
    ("some is refunded", claim(amount=300, refunded=200, as_of=8), 0, OK, (800, 200)),
    ("more than is left", claim(amount=300, refunded=200, as_of=8), 101, OVER, (700, 300)),
    ("all is refunded", claim(amount=300, refunded=300, as_of=8), 0, OVER, (700, 300)),
    ("too much is refunded", claim(amount=300, refunded=301, as_of=8), 1, OVER, (700, 300)),
    ("of nothing", claim(amount=0, as_of=8), 0, OVER, (700, 300)),
    ("of a refund", claim(Kind.REFUND, amount=300, as_of=8), 0, NOT_REFUNDABLE, (700, 300)),
    ("of a capture", claim(Kind.CAPTURE, amount=300, as_of=8), 0, NOT_REFUNDABLE, (700, 300)),
    ("of no kind", claim(0, amount=300, as_of=8), 0, NOT_REFUNDABLE, (700, 300)),
    ("of nobody's wallet", claim(credit=77, amount=300, as_of=8), 0, "DEBIT_WALLET_NOT_FOUND", (700, 300)),
    ("to nobody's wallet", claim(debit=77, amount=300, as_of=8), 0, "CREDIT_WALLET_NOT_FOUND", (700, 300)),
    ("to itself", claim(debit=2, amount=300, as_of=8), 0, "SAME_WALLET", (700, 300)),
    ("in another currency", claim(debit=4, amount=300, as_of=8), 0, "CURRENCY_MISMATCH", (700, 300)),
    ("more than there is", claim(amount=301, as_of=8), 0, FUNDS, (700, 300)),
]


@pytest.mark.parametrize(("what", "claimed", "amount", "status", "available"), CLAIMS, ids=case_ids(CLAIMS))
def test_a_claim(
    clocked: ShardDriver, what: str, claimed: bytes, amount: float, status: str, available: tuple[int, int]
) -> None:
    run(clocked, [(request_record(10, amount=300), OK)])
    asked = reference_record(2, Kind.REFUND, 1, amount, attached=claimed)
    run(clocked, [(asked, status)])
    assert (clocked.balance(1)[0], clocked.balance(2)[0]) == available
    assert_sound(clocked)


def test_a_claim_of_a_top_up_may_be_charged_back(clocked: ShardDriver) -> None:
    asked = reference_record(2, Kind.CHARGEBACK, 1, attached=claim(Kind.TOP_UP, OUTSIDE, 1, 2000))
    run(clocked, [(asked, OK)])
    assert clocked.balance(1) == (-1000, 0)


def test_what_redis_knows_counts_more_than_a_claim(clocked: ShardDriver) -> None:
    """Of the transfer and of its refunds; a retry may come with or without a claim."""
    run(clocked, [paid(), (back(2, 100), OK)])
    asked = reference_record(3, Kind.REFUND, 1, 0, attached=claim(Kind.TOP_UP, 3, 1, 10**6, 0, 10**6))
    first = clocked.one(asked)
    assert (first.status, first.amount_minor) == (OK, 200)
    assert clocked.one(back(3)).replayed
    assert clocked.one(back(3)).amount_minor == 200
    assert_sound(clocked)


def test_a_claim_for_a_transfer_of_the_same_batch(clocked: ShardDriver) -> None:
    """The transfer is as it was decided, whichever wallets the claim names."""
    asked = reference_record(2, Kind.REFUND, 1, 0, attached=claim(Kind.PAYMENT, 3, 2, 10**6, 0, 10**6))
    run(clocked, [paid(), (asked, OK)], at_once=True)
    assert [clocked.balance(wallet_id) for wallet_id in (1, 2, 3)] == [(1000, 0), (0, 0), (0, 0)]
    assert_sound(clocked)


@pytest.mark.parametrize(
    "first", [request_record(1, debit=1, credit=3, amount=0), request_record(1, debit=1, credit=77)], ids=["0", "77"]
)
def test_an_id_twice_in_a_batch_means_the_transfer_that_was_made(clocked: ShardDriver, first: Asked) -> None:
    """What was refused under it before named other wallets."""
    run(clocked, [(opening_record(90, 5), OK), (request_record(91, Kind.TOP_UP, OUTSIDE, 3, 300), OK)])
    statuses = clocked.statuses([first, paid()[0], back(2)])
    assert statuses[1:] == [OK, OK]
    assert [clocked.balance(wallet_id) for wallet_id in (1, 2, 3)] == [(1000, 0), (0, 0), (300, 0)]
    assert_sound(clocked)


def test_refunds_across_generations(clocked: ShardDriver) -> None:
    """The total is known as long as anything of it happened in the last two generations; then the ledger knows it."""
    run(clocked, [paid(), (back(2, 10), OK)])
    clocked.end_generation()
    run(clocked, [(back(3, 20), OK), (back(4, 271), OVER)])
    clocked.end_generation()
    run(clocked, [(back(5, 1), NOT_FOUND)])
    sequence = clocked.meta()["sequence"]
    known = claim(amount=300, refunded=30, as_of=sequence)
    # The total of the generation before is still there, so what the ledger had may be old.
    old = reference_record(6, Kind.REFUND, 1, 40, attached=claim(amount=300, refunded=0, as_of=sequence))
    run(clocked, [(reference_record(5, Kind.REFUND, 1, 271, attached=known), OVER), (old, OK)])
    for _ in range(2):
        clocked.end_generation()
    begin = clocked.meta()["generation_sequence"]
    early = reference_record(7, Kind.REFUND, 1, attached=claim(amount=300, refunded=70, as_of=begin - 1))
    late = reference_record(7, Kind.REFUND, 1, attached=claim(amount=300, refunded=70, as_of=begin))
    run(
        clocked,
        [
            (early, BEHIND),
            (early, BEHIND),
            (late, OK),
            (reference_record(8, Kind.REFUND, 1, 1, attached=early.attached), OVER),
        ],
    )
    assert clocked.balance(1) == (1000, 0)
    assert_sound(clocked)


def test_a_capture_is_known_as_long_as_its_hold(clocked: ShardDriver) -> None:
    run(clocked, [held(), (capture_record(1, 50, 100, final=False), OK)])
    clocked.end_generation()
    run(clocked, [(back(2, 10), OK), (capture_record(52, 50), OK), (back(3, 10), OK)])
    clocked.end_generation()
    run(clocked, [(back(4, 10, of=52), OK), (back(5, 10), NOT_FOUND)])
    assert_sound(clocked)
