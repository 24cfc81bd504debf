"""Erasing personal data: what callers attached goes, is noted, and every proof stays."""

from __future__ import annotations

from uuid import UUID

import psycopg
import pytest

from engine import Kind
from engine.errors import Fatal
from gateway.exits import Exit
from persister import details
from persister.erasing import About, details_of, erase, remove_remains
from tests.fixtures.cli import Cli
from tests.fixtures.ledger import LedgerWorld, detail_fields
from tests.fixtures.narrow import Guarded, as_postgres_user
from tests.fixtures.shard import request_record
from tests.integration.test_duplicates import forget_everything

PARTS = (None, "INV 7", 'a "quoted" \\ name', "tab\t line\n \x01 \x7f", "é 漢 😀 \u2028 </b>")


def test_details_go_and_the_proof_stays(world: LedgerWorld) -> None:
    world.drain()
    world.open_wallets()
    metadata = ({"who": "Jane \x02", "n": 1.5e300}, None)
    paid = [world.pay_with_details(1, 2, part, data) for part in PARTS for data in metadata if part or data]
    held = world.hold(1, 2, 50, details=b'["table 4",null]')
    world.capture(held, 20, final=False)
    world.change_hold(Kind.VOID, held, details=b'["gone",{"a":1}]')
    others = world.pay_with_details(3, 4, "stays", {"a": 1})
    world.drain()
    sizes = sizes_of(world)
    with world.connect() as connection:
        [one] = places = details_of(connection, About(ids=(UUID(int=paid[0]),)))
        assert one == (0, world.one("select sequence from transfer where id = %s", UUID(int=paid[0])))
        assert erase(connection, places, "asked for") == 1
        assert len(details_of(connection, About(ids=(UUID(int=held),)))) == 2
        assert len(details_of(connection, About(references=("stays", "gone")))) == 2
        of_wallet = details_of(connection, About(wallets=(1,)))
        assert of_wallet == details_of(connection, About(owners=(101,)))
        assert erase(connection, of_wallet, "request 7") == len(paid) - 1 + 2
        assert details_of(connection, About(wallets=(1, 2))) == []
        assert erase(connection, of_wallet, "again") == 0
        remove_remains(connection)
    assert world.one("select array_agg(transfer_id) from transfer_detail") == [UUID(int=others)]
    assert world.one("select count(*) from hold_detail") == 0
    noted = dict(world.one("select array_agg(array[sequence, details_size]) from erasure"))
    assert noted == {place: size for place, size in sizes.items() if place in noted}
    assert len(noted) == len(paid) + 2
    assert world.one("select min(reason), max(reason), min(erased_by) from erasure") == (
        "asked for", "request 7", "hotledger"
    )  # fmt: skip
    world.drain()
    world.assert_proved()


def sizes_of(world: LedgerWorld) -> dict[int, int]:
    """How many bytes of details each sequence came with."""
    found = {}
    with world.connect() as connection:
        for sequence, reference, metadata in connection.execute(
            """
            select t.sequence, d.reference, d.metadata::text
            from transfer_detail d join transfer t on t.id = d.transfer_id
            union all select sequence, reference, metadata::text from hold_detail
            """
        ):
            found[sequence] = len(details.join(reference, metadata))
    return found


def test_what_is_not_noted_cannot_go(funded_world: LedgerWorld) -> None:
    funded_world.pay_with_details(1, 2, "stays", None)
    funded_world.hold(1, 2, 50, details=b'["stays too",null]')
    funded_world.drain()
    for table in ("transfer_detail", "hold_detail"):
        for change in ("DELETE FROM {}", "UPDATE {} SET reference = 'other'", "TRUNCATE {}"):
            with pytest.raises(psycopg.errors.RestrictViolation, match="append-only"):
                funded_world.one(change.format(table))
    for change in ("DELETE FROM erasure", "UPDATE erasure SET reason = 'none'", "TRUNCATE erasure"):
        with pytest.raises(psycopg.errors.RestrictViolation, match="append-only"):
            funded_world.one(change)
    # An erasure that is noted and not done is found, and so is a detail that was changed after all.
    funded_world.tamper("UPDATE transfer_detail SET reference = 'other'")
    assert [check.name for check in funded_world.reconcile().checks if check.total] == ["details"]


def test_whom_the_owner_lets(guarded: Guarded) -> None:
    world = guarded.world
    with world.persister():
        world.open_wallets()
        number = world.pay_with_details(1, 2, "Jane", None)
        world.until_persisted()
    about = About(ids=(UUID(int=number),))
    with psycopg.connect(as_postgres_user(guarded.postgres_url, "test_reader"), autocommit=True) as officer:
        with pytest.raises(Fatal, match="may not erase.*GRANT EXECUTE"):
            erase(officer, details_of(officer, about), "asked for")
        with psycopg.connect(guarded.postgres_url, autocommit=True) as owner:
            owner.execute("GRANT EXECUTE ON FUNCTION erase_details TO test_reader")
            assert erase(officer, details_of(officer, about), "asked for") == 1
            owner.execute("REVOKE EXECUTE ON FUNCTION erase_details FROM test_reader")
    assert world.one("select erased_by, reason from erasure") == ("test_reader", "asked for")


def test_a_late_duplicate_goes_with_the_first(world: LedgerWorld) -> None:
    with world.persister():
        world.open_wallets()
        number = world.pay_with_details(1, 2, "Jane", None)
        forget_everything(world)
        packed = b'["Jane",null]'
        world.done(request_record(number, Kind.PAYMENT, 1, 2, 5, **detail_fields(packed)), packed)
        world.until_persisted()
    with world.connect() as connection:
        assert erase(connection, details_of(connection, About(ids=(UUID(int=number),))), "asked for") == 2
    world.assert_proved()


def test_the_command(funded_world: LedgerWorld) -> None:
    number = funded_world.pay_with_details(1, 2, "Jane", {"street": 5})
    funded_world.pay_with_details(3, 4, "Joe", None)
    funded_world.drain()
    urls = {"HOTLEDGER_REDIS_URL": funded_world.redis_url, "HOTLEDGER_POSTGRES_URL": funded_world.postgres_url}
    hotledger = Cli(environment=urls)
    erase_jane = ("erase", "--id", UUID(int=number), "--reason", "asked for")
    asked = hotledger(*erase_jane)
    assert (asked.status, "--yes" in asked.err) == (Exit.USAGE, True)
    assert hotledger.json(*erase_jane, "--yes") == {"erased": 1, "in_journal": 1}
    assert hotledger.json(*erase_jane, "--yes") == {"erased": 0, "in_journal": 0}
    assert hotledger.json("erase", "--reference", "Joe", "--reason", "too", "--yes")["erased"] == 1
    for wrong in (
        ("--reason", "x"),
        ("--reason", "x", "--wallet", 1, "--owner", 2),
        ("--reason", "", "--wallet", 1),
    ):
        assert hotledger("erase", *wrong).status == Exit.USAGE
    funded_world.assert_proved()
