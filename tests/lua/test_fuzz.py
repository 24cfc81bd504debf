"""What no engine sends: nonsense in every field, and random bytes. An error or ordinary answers, never half a write."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
import redis

from engine.domain.limits import HOUR_MS, Rule
from engine.domain.money import MAX_AMOUNT_MINOR
from engine.domain.status import STATUS_OF
from engine.domain.transfer import MAX_EXPIRY_MS, PURPOSES, WALLET_CHANGES, Kind, RequestFlag
from engine.wire import ANSWER, CLAIM, MAX_BATCH, REPLY_HEADER, REQUEST, TERMS, TIER_LIMITS
from tests.fixtures.shard import (
    NONE,
    OUTSIDE,
    Asked,
    ShardDriver,
    altered,
    capture_record,
    changed,
    claim,
    hold_record,
    opening_record,
    reference_record,
    request_record,
    terms,
    tier_limits,
    tier_record,
    wallet_change,
)
from tests.lua.books import assert_sound

NAN, INFINITY = float("nan"), float("inf")
NO_CURRENCIES = (NONE, b"usdollar", b"US\0\0\0\0\0\0", b"U\0D\0\0\0\0\0")
NO_COUNT = (NAN, INFINITY, -INFINITY, 2.0**53, 0.5, -1.0)


def attached_to(record: Asked, attached: bytes) -> Asked:
    other = Asked(record)
    other.attached = attached
    return other


def with_terms(**fields: Any) -> Asked:
    return request_record(1, attached=changed(TERMS, terms(conditions=3, purpose=1), **fields))


LIMITS = tier_limits()
VOID, REFUND = reference_record(1, Kind.VOID, 2), reference_record(1, Kind.REFUND, 2, attached=claim())
FREEZE, OPEN, TIER = wallet_change(1, Kind.FREEZE, 1, 2), opening_record(1, 5), tier_record(1, 1)
EVERY_KIND = [
    *[request_record(1, kind) for kind in sorted(PURPOSES)],
    hold_record(1),
    *[
        reference_record(1, kind, 2)
        for kind in (Kind.REFUND, Kind.CHARGEBACK, Kind.CAPTURE, Kind.RAISE_HOLD, Kind.VOID)
    ],
    *[reference_record(1, kind, 2) for kind in (Kind.EXPIRE_HOLD, Kind.APPROVE_HOLD)],
    *[wallet_change(1, kind) for kind in (Kind.FREEZE, Kind.UNFREEZE, Kind.CLOSE_WALLET, Kind.SET_TIER)],
    wallet_change(1, Kind.SET_OVERDRAFT_LIMIT),
    OPEN,
    TIER,
]
FLAGS = {
    **dict.fromkeys(PURPOSES, RequestFlag.LINKED | RequestFlag.BALANCING),
    Kind.CAPTURE: RequestFlag.LINKED | RequestFlag.FINAL,
    Kind.OPEN_WALLET: RequestFlag.LINKED | RequestFlag.EXTERNAL,
    Kind.EXPIRE_HOLD: RequestFlag(0),
}
ATTACHED = {**dict.fromkeys(PURPOSES, TERMS), Kind.HOLD: TERMS, Kind.REFUND: CLAIM, Kind.CHARGEBACK: CLAIM,
            Kind.SET_TIER_LIMITS: TIER_LIMITS}  # fmt: skip
PACKED = {TERMS: terms(purpose=1), CLAIM: claim(), TIER_LIMITS: LIMITS}


def _cases() -> dict[str, list[bytes]]:
    """Batches that must be INVALID, by what is wrong with them."""
    cases: dict[str, list[bytes]] = {
        "size": [b"", b"x", request_record(1)[:-1], request_record(1) + b"x", request_record(1) * (MAX_BATCH + 1)],
        "kind": [request_record(1, kind) for kind in range(256) if kind not in set(Kind) - {Kind.END_GENERATION}],
        "currency": [opening_record(1, 5, currency=code) for code in NO_CURRENCIES],
        "wallets": [
            *[altered(TIER, **{side: 1}) for side in ("debit", "credit")],
            opening_record(1, 0),
            *[altered(wallet_change(1, kind), credit=1) for kind in sorted(WALLET_CHANGES)],
        ],
        "details": [request_record(1, details_size=5), request_record(1, details_size=65535)],
        "purpose": [hold_record(1, purpose=purpose) for purpose in range(256) if purpose not in PURPOSES],
        "conditions": [with_terms(conditions=n) for n in range(4, 256)],
        "expected version": [with_terms(expect_version=n) for n in NO_COUNT],
        "least": [with_terms(min_available_after=n) for n in NO_COUNT[:-1]],
        "expiry": [with_terms(expires_in_ms=n) for n in (*NO_COUNT, MAX_EXPIRY_MS + 1.0)],
        "claim": [
            reference_record(1, Kind.REFUND, 2, attached=changed(CLAIM, claim(), **{field: n}))
            for field in ("amount", "refunded", "as_of") for n in NO_COUNT
        ],
        "limits": [
            tier_record(1, 1, changed(TIER_LIMITS, LIMITS, **{field: n}))
            for field, code in TIER_LIMITS.fields if code == "d" for n in NO_COUNT
        ],
        "bounds of limits": [
            tier_record(1, 1, changed(TIER_LIMITS, LIMITS, **{field: n}))
            for field, n in (("layout", 0), ("layout", 9), ("debt_first", 2), ("window_ms", 0), ("device_wallets", 17),
                             ("attempts_window_ms", 0), ("attempts_window_ms", 24 * HOUR_MS + 1))
        ],
    }  # fmt: skip
    cases["flags"] = [
        altered(record, flags=flags)
        for record in EVERY_KIND
        for flags in (*range(16), 16, 32, 64, 128, 255)
        if flags & ~FLAGS.get(Kind(record[17]), RequestFlag.LINKED)
    ]
    cases["attachment"] = []
    for record in EVERY_KIND:
        right = ATTACHED.get(Kind(record[17]))
        for number, layout in enumerate((None, TERMS, CLAIM, TIER_LIMITS)):
            whole = PACKED[layout] if layout else b""
            named = altered(record, attachment=number)
            if layout is not right and (layout or record[17] in (Kind.HOLD, Kind.SET_TIER_LIMITS)):
                cases["attachment"].append(attached_to(named, whole))
            for other in (whole[:-1], whole + b"x", b"", whole * 2):
                if other != whole:
                    cases["attachment"].append(attached_to(named, other))
        cases["attachment"] += [altered(attached_to(record, b""), attachment=number) for number in (4, 255)]
    return cases


CASES = _cases()


@pytest.mark.parametrize("what", CASES, ids=[what.replace(" ", "_") for what in CASES])
def test_requests_that_no_engine_sends(clocked: ShardDriver, what: str) -> None:
    """The whole batch is refused: a request in front of the bad one is not decided either."""
    before = clocked.image()
    good = request_record(9, debit=3, credit=2, amount=1)
    for bad in CASES[what]:
        with pytest.raises(redis.ResponseError, match="^INVALID "):
            clocked.post([bad] if what == "size" else [good, bad])
    assert clocked.image() == before
    assert clocked.redis.ping()


def test_details_that_do_not_add_up(clocked: ShardDriver) -> None:
    before = clocked.image()
    for details in (b"", b"1234", b"123456"):
        with pytest.raises(redis.ResponseError, match="^INVALID details"):
            clocked.post_raw(request_record(1, details_size=5), details)
    assert clocked.image() == before


AMOUNTS = (*[1, 2, 3, 4, 5, 6, 8, 10] * 4, 0, 0, 0, 0, 100, 1000, -1, 0.5, NAN, INFINITY, MAX_AMOUNT_MINOR, 2.0**53)


class Nonsense:
    """Requests that are almost right, about each other; now and then a field of random bytes."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.last = 1
        self.asked: dict[bool, list[int]] = {True: [1], False: [1]}  # holds, movements

    def wallet(self) -> int:
        strange = (4, 5, 6, 77, 0, -1, self.chance.getrandbits(62))
        return self.chance.choice((1, 2, 3, OUTSIDE) if self.chance.random() < 0.93 else strange)

    def recent(self) -> int:
        """The number of an earlier request, most likely."""
        return max(1, self.last - self.chance.randint(0, 15))

    def attached(self) -> bytes:
        chance = self.chance
        match chance.randrange(12):
            case 0 | 1 | 2 | 3:
                device, ip = (chance.choice((NONE, b"device-1", b"device-2", chance.randbytes(8))) for _ in "di")
                return terms(
                    conditions=chance.choice((0, 0, 0, 1, 2, 3)),
                    purpose=chance.randint(1, 4),
                    expect_version=chance.randint(0, 9),
                    min_available_after=chance.randint(-9, 9),
                    expires_in_ms=chance.choice((0, 1, 1000, MAX_EXPIRY_MS)),
                    device=device,
                    ip=ip,
                )
            case 4 | 5:
                kind, amount = chance.choice((*PURPOSES, Kind.REFUND)), chance.randint(0, 100)
                return claim(
                    kind, self.wallet(), self.wallet(), amount, chance.randint(0, 100), chance.choice((0, 10**6))
                )
            case 6 | 7:
                names = [name for name, code in TIER_LIMITS.fields if code == "d"]
                some = {chance.choice(names): chance.randint(0, 10) for _ in range(3)}
                return tier_limits(review=chance.sample(list(Rule), 3), debt_first=chance.randint(0, 1), **some)
            case 8 if chance.random() < 0.2:
                return chance.randbytes(chance.choice((TERMS.size, CLAIM.size, TIER_LIMITS.size)))
        return b""

    def request(self) -> Asked:
        chance = self.chance
        often = (*sorted(PURPOSES) * 2, *[Kind.HOLD, Kind.CAPTURE, Kind.RAISE_HOLD, Kind.REFUND, Kind.UNFREEZE] * 3)
        kind = chance.choice((*Kind, *often) if chance.random() < 0.97 else range(256))
        flags = chance.choice((*[0] * 12, 1, 2, 4, 4, 5, 8, chance.randrange(256)))
        self.last += 1
        number, amount = self.recent() if chance.random() < 0.1 else self.last, chance.choice(AMOUNTS)
        attached = self.attached()
        if kind in (Kind.HOLD, Kind.SET_TIER_LIMITS) and chance.random() < 0.9:
            attached = terms(purpose=chance.randint(1, 4)) if kind == Kind.HOLD else tier_limits(day_count=9)
        if kind in (*PURPOSES, Kind.REFUND, Kind.CHARGEBACK) and chance.random() < 0.6:
            attached = b""
        currency = (
            b"USD".ljust(8, b"\0") if kind == Kind.OPEN_WALLET else chance.choice((*[NONE] * 15, b"EUR\0\0\0\0\0"))
        )
        chained = {"terms": chance.randbytes(8)} if flags & 1 else {}
        if kind in (5, 6, 8, 9, 10, 11, 12):
            about = self.asked[kind not in (Kind.REFUND, Kind.CHARGEBACK)]
            reference = chance.choice(about[-8:]) if chance.random() < 0.8 else self.recent()
            if kind == Kind.CAPTURE:
                self.asked[False].append(number)
            options = {"flags": flags, "currency": currency, "attached": attached, **chained}
            return reference_record(number, kind, reference, amount, **options)
        if kind in PURPOSES or kind == Kind.HOLD:
            self.asked[kind == Kind.HOLD].append(number)
        wallets = (self.wallet(), self.wallet())
        if wallets[0] == wallets[1] and chance.random() < 0.9:
            wallets = (OUTSIDE, 1)
        if kind in WALLET_CHANGES or kind == Kind.SET_TIER_LIMITS:
            wallets = (wallets[0] if kind in WALLET_CHANGES else 0, 0)
        return request_record(
            number, kind, *wallets, amount, flags=flags, currency=currency, attached=attached, **chained
        )

    def batch(self) -> tuple[bytes, bytes, bytes]:
        """(requests, details, attachments), sometimes cut or with some bytes changed."""
        chance = self.chance
        asked = [self.request() for _ in range(chance.choice((1, 1, 2, 3, 5, 20)))]
        if chance.random() < 0.95:
            asked = [record for record in asked if _is_sendable(record)]
        parts = [b"".join(asked), b"", b"".join(record.attached for record in asked)]
        if chance.random() < 0.15:
            spoiled = bytearray(parts[chance.choice((0, 0, 2))])
            for _ in range(chance.randint(1, 4) if spoiled else 0):
                spoiled[chance.randrange(len(spoiled))] = chance.randrange(256)
            parts[0 if len(spoiled) == len(parts[0]) else 2] = bytes(spoiled)
        if chance.random() < 0.05:
            at = chance.randrange(3)
            parts[at] = parts[at][: chance.randint(0, len(parts[at]))] or chance.randbytes(chance.randint(0, 300))
        return parts[0], parts[1], parts[2]


def _is_sendable(record: Asked) -> bool:
    """Whether its kind, flags and attachment go together, so that batches get through to the rules."""
    kind = record[17]
    if kind not in set(Kind) - {Kind.END_GENERATION} or record[18] & ~FLAGS.get(Kind(kind), RequestFlag.LINKED):
        return False
    right = ATTACHED.get(Kind(kind))
    if not record.attached:
        return kind not in (Kind.HOLD, Kind.SET_TIER_LIMITS)
    return right is not None and len(record.attached) == right.size


@pytest.mark.parametrize("seed", [1, 2])
def test_nonsense(clocked: ShardDriver, seed: int) -> None:
    """Errors are INVALID; the rest is answered by a status each; in the end Redis is what the journal says."""
    nonsense = Nonsense(seed)
    found: dict[str, int] = {}
    for _ in range(250):
        batch = nonsense.batch()
        before = clocked.image()
        try:
            reply = clocked.post_raw(*batch)
        except redis.ResponseError as error:
            refused = str(error)
            assert clocked.image() == before
        else:
            count = len(batch[0]) // REQUEST.size
            assert len(reply) == REPLY_HEADER.size + ANSWER.size * count
            refused = ""
        assert not refused or refused.startswith("INVALID "), batch
        if refused:
            continue
        for at in range(REPLY_HEADER.size, len(reply), ANSWER.size):
            answer = ANSWER.unpack(reply[at : at + ANSWER.size])
            status = STATUS_OF[answer["status"]].value
            found[status] = found.get(status, 0) + 1
            assert answer["replayed"] in (0, 1)
        if nonsense.chance.random() < 0.1:
            clocked.pass_time(nonsense.chance.choice((1, 1000, HOUR_MS, 30 * HOUR_MS)))
    assert_sound(clocked)
    assert found["POSTED"] > 80, found
    assert len(found) > 15, found


def test_random_bytes(clocked: ShardDriver) -> None:
    """Of any size, and as huge counts; nothing of it is a request."""
    chance = random.Random(7)
    before = clocked.image()
    for _ in range(200):
        records = chance.randbytes(chance.choice((chance.randint(0, 500), 69, 138, 69 * chance.randint(1, 50))))
        with pytest.raises(redis.ResponseError, match="^INVALID "):
            clocked.post_raw(records, chance.randbytes(chance.randint(0, 20)), chance.randbytes(chance.randint(0, 200)))
    for count in (MAX_BATCH + 1, 100_000):
        with pytest.raises(redis.ResponseError, match="^INVALID requests: size"):
            clocked.post_raw(request_record(1) * count)
    assert clocked.image() == before


def test_a_whole_batch_of_each_kind(clocked: ShardDriver) -> None:
    """MAX_BATCH requests at once: more than Lua's unpack takes, in every list that is written."""
    count = MAX_BATCH // 2
    limits = tier_limits(device_attempts=10**6, ip_attempts=10**6, device_wallets=16, new_device_amount=10**6)
    clocked.post([tier_record(9100, 1, limits)])
    clocked.post([opening_record(20_000 + n, 1000 + n) for n in range(count)])
    clocked.post([request_record(30_000 + n, Kind.TOP_UP, OUTSIDE, 1000 + n, 100) for n in range(count)])
    clocked.post([wallet_change(40_000 + n, Kind.SET_TIER, 1000 + n, 1) for n in range(count)])
    wallets = [struct.pack("<q", 1000 + n) for n in range(count)]
    holds = [
        hold_record(50_000 + n, 1000 + n, 2, 10, expires_in_ms=1000, device=wallets[n], ip=wallets[n])
        for n in range(count)
    ]
    payments = [
        request_record(60_000 + n, debit=1000 + n, amount=5, attached=terms(device=wallets[n][::-1]))
        for n in range(count)
    ]
    assert set(clocked.statuses([*holds, *payments])) == {"POSTED"}
    captures = [capture_record(70_000 + n, 50_000 + n, 4) for n in range(count)]
    refunds = [reference_record(80_000 + n, Kind.REFUND, 60_000 + n) for n in range(count)]
    assert set(clocked.statuses([*captures, *refunds])) == {"POSTED"}
    tiers = [tier_record(90_000 + n, 2 + n) for n in range(MAX_BATCH)]
    assert set(clocked.statuses(tiers)) == {"POSTED"}
    assert clocked.balance(1000) == (96, 0)
    assert_sound(clocked)


def test_reads_refuse_bad_input_and_a_closed_shard(funded: ShardDriver) -> None:
    sizes = {"hotledger_wallets": 8, "hotledger_lookup": 16, "hotledger_holds": 16}
    for function, size in sizes.items():
        for packed in (b"", b"x" * (size - 1), b"x" * (size + 1), b"x" * (size * (MAX_BATCH + 1))):
            with pytest.raises(redis.ResponseError, match="^INVALID"):
                funded.call(function, packed)
    funded.call("hotledger_close")
    for function, size in sizes.items():
        with pytest.raises(redis.ResponseError, match="^CLOSED"):
            funded.call(function, b"i" * size)
