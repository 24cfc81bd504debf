"""verify-chain: whatever somebody with all rights did to the ledger, it names the journal entry."""

from __future__ import annotations

from contextlib import closing

import pytest

from persister import verify
from persister.chain import HASHED_TABLES, NO_HEAD
from persister.connection import connect
from persister.verify import ChainVerifier, head_before, verify_ledger
from tests.fixtures.cli import Cli
from tests.fixtures.ledger import LedgerWorld

SEQUENCE_OF = {hashed.format.table: hashed.sequence for hashed in HASHED_TABLES}


@pytest.fixture
def busy_world(funded_world: LedgerWorld, monkeypatch: pytest.MonkeyPatch) -> LedgerWorld:
    """A ledger with two rows or more in every table, in several journal entries, which is read in small parts."""
    funded_world.do_everything()
    funded_world.set_limits(8, max_amount=9)
    funded_world.do_everything()
    funded_world.drain()
    monkeypatch.setattr(verify, "RECORDS_AT_ONCE", 40)
    monkeypatch.setattr(verify, "ENTRIES_AT_ONCE", 5)
    return funded_world


def verified(world: LedgerWorld, from_sequence: int = 1) -> ChainVerifier:
    with closing(connect(world.postgres_url)) as connection:
        return verify_ledger(connection, 0, from_sequence)


def entry_of(world: LedgerWorld, sequence: int) -> tuple[int, int]:
    """First and last sequence of the journal entry with that sequence in it."""
    found: tuple[int, int] = world.one(
        "select first_sequence, last_sequence from journal_batch where first_sequence <= %s and last_sequence >= %s",
        sequence,
        sequence,
    )
    return found


def first_bad(found: ChainVerifier) -> tuple[int, int]:
    assert not found.ok
    return found.bad[0][:2]


def test_a_good_chain(busy_world: LedgerWorld) -> None:
    told: list[tuple[int, int]] = []
    with closing(connect(busy_world.postgres_url)) as connection:
        found = verify_ledger(connection, 0, progress=lambda *progress: told.append(progress))
    assert found.ok
    assert found.entries == busy_world.one("select count(*) from journal_batch")
    assert found.records == busy_world.one("select count(*) from journal_event") == found.head.sequence
    assert found.head.link == busy_world.one("select chain from shard_state")
    assert told[-1] == (found.head.sequence, found.head.sequence)
    assert told == sorted(told)
    assert len(told) > 5


def test_a_good_chain_in_one_part(funded_world: LedgerWorld) -> None:
    assert verified(funded_world).ok


def test_an_empty_ledger(world: LedgerWorld) -> None:
    assert verified(world).ok
    world.drain()
    assert verified(world).ok


class TestEachTable:
    """Each edit in a transaction that is rolled back, so that one ledger does for all."""

    def two_rows(self, world: LedgerWorld, table: str) -> tuple[int, int]:
        """The sequences of two rows in different journal entries, in order."""
        column = SEQUENCE_OF[table]
        first = world.one(f"select min({column}) from {table}")
        _, end = entry_of(world, first)
        second = world.one(f"select min({column}) from {table} where {column} > {end}")
        assert second is not None
        return first, second

    def after(self, world: LedgerWorld, *statements: str) -> ChainVerifier:
        with closing(connect(world.postgres_url)) as connection, connection.transaction(force_rollback=True):
            connection.execute("SET session_replication_role = replica")
            for statement in statements:
                connection.execute(statement)
            verifier = ChainVerifier(0, head_before(connection, 0, 1) or NO_HEAD)
            with connection.cursor() as cursor:
                verifier.run(cursor, verify.ALL)
                verifier.finish(cursor)
            return verifier

    def test_a_tampered_row(self, busy_world: LedgerWorld) -> None:
        for table, column in SEQUENCE_OF.items():
            _, second = self.two_rows(busy_world, table)
            found = self.after(busy_world, f"update {table} set {_EDITS[table]} where {column} = {second}")
            assert first_bad(found) == entry_of(busy_world, second), table
            assert (found.bad_total, found.ends) == (1, []), table
            at = busy_world.one("select at from journal_batch where last_sequence = %s", found.bad[0].last_sequence)
            assert found.bad[0].at == at

    def test_a_deleted_row(self, busy_world: LedgerWorld) -> None:
        for table, column in SEQUENCE_OF.items():
            first, _ = self.two_rows(busy_world, table)
            found = self.after(busy_world, f"delete from {table} where {column} = {first}")
            assert first_bad(found) == entry_of(busy_world, first), table
            assert found.bad_total == 1, table

    def test_a_swapped_pair(self, busy_world: LedgerWorld) -> None:
        for table, column in SEQUENCE_OF.items():
            first, second = self.two_rows(busy_world, table)
            steps = ((first, -1), (second, first), (-1, second))
            moves = [f"update {table} set {column} = {after} where {column} = {before}" for before, after in steps]
            found = self.after(busy_world, *moves)
            both = [entry_of(busy_world, first), entry_of(busy_world, second)]
            assert [bad[:2] for bad in found.bad] == both, table

    def test_a_row_behind_the_end(self, busy_world: LedgerWorld) -> None:
        """Where no link could speak of it."""
        for table, column in SEQUENCE_OF.items():
            key = f", {_KEYS[table]}" if table in _KEYS else ""
            found = self.after(
                busy_world,
                f"create temp table added as select * from {table} limit 1",
                f"update added set {column} = 99999{key}",
                f"insert into {table} select * from added",
            )
            assert found.bad == [], table
            assert [end.subject for end in found.ends] == [table]


_EDITS = {
    "journal_event": "kind = kind + 1",
    "transfer": "amount = amount + 1",
    "ledger_entry": "available_after = available_after + 1",
    "wallet": "owner_id = owner_id + 1",
    "wallet_change": "value = value + 1",
    "hold": "credit_wallet_id = credit_wallet_id + 1",
    "hold_change": "captured = captured + 1",
    "refund": "total = total + 1",
    "transfer_origin": "device = 'device 9'",
    "tier_change": "day_count = day_count - 1",
    "outcome": "kept = set_byte(kept, 20, 255 - get_byte(kept, 20))",
}
_KEYS = {
    "transfer": "id = gen_random_uuid()",
    "ledger_entry": "version = 99999",
    "wallet": "id = 99999",
    "wallet_change": "wallet_version = 99999",
    "hold_change": "wallet_version = 99999",
    "refund": "transfer_id = gen_random_uuid()",
}


def test_the_edits_are_of_every_table() -> None:
    assert _EDITS.keys() == SEQUENCE_OF.keys()


class TestTheEntries:
    def test_a_tampered_entry(self, busy_world: LedgerWorld) -> None:
        busy_world.tamper("update journal_batch set at = at + interval '1 ms' where last_sequence = 141")
        found = verified(busy_world)
        assert (first_bad(found), found.bad_total) == ((42, 141), 1)

    def test_a_tampered_link(self, busy_world: LedgerWorld) -> None:
        """It is wrong itself, and the one behind it was made from what it had been."""
        busy_world.tamper("update journal_batch set chain = sha256('x'::bytea) where last_sequence = 141")
        found = verified(busy_world)
        assert [bad[:2] for bad in found.bad] == [(42, 141), (142, 241)]

    def test_a_deleted_entry(self, busy_world: LedgerWorld) -> None:
        busy_world.tamper("delete from journal_batch where last_sequence = 141")
        assert first_bad(verified(busy_world)) == (142, 241)

    def test_swapped_entries(self, busy_world: LedgerWorld) -> None:
        swap = (
            "update journal_batch as a set (journal_hash, chain) = (select journal_hash, chain from journal_batch as b "
        )
        busy_world.tamper(f"{swap} where b.last_sequence = 382 - a.last_sequence) where a.last_sequence in (141, 241)")
        assert first_bad(verified(busy_world)) == (42, 141)

    def test_the_last_one_deleted(self, busy_world: LedgerWorld) -> None:
        last = busy_world.one("select max(last_sequence) from journal_batch")
        busy_world.tamper(f"delete from journal_batch where last_sequence = {last}")
        found = verified(busy_world)
        assert found.bad == []
        assert {end.subject for end in found.ends} >= {"shard_state", "journal_event"}

    def test_another_head(self, busy_world: LedgerWorld) -> None:
        busy_world.tamper("update shard_state set chain = sha256('x'::bytea)")
        [end] = verified(busy_world).ends
        assert end.subject == "shard_state"

    def test_another_deployment(self, busy_world: LedgerWorld) -> None:
        busy_world.tamper("update deployment set id = gen_random_uuid()")
        found = verified(busy_world)
        assert (first_bad(found)[0], found.bad_total) == (1, 1)


class TestFrom:
    def test_it_begins_with_the_entry_of_that_sequence(self, busy_world: LedgerWorld) -> None:
        busy_world.tamper("update transfer set amount = amount + 1 where sequence = 100")
        assert first_bad(verified(busy_world, 141)) == (42, 141)
        found = verified(busy_world, 142)
        assert found.ok
        assert found.after.sequence == 141
        assert found.records == busy_world.one("select count(*) from journal_event") - 141

    def test_behind_the_end(self, busy_world: LedgerWorld) -> None:
        found = verified(busy_world, 10**9)
        assert (found.ok, found.entries) == (True, 0)


class TestCommand:
    """With Redis away: it needs the ledger alone."""

    def command(self, world: LedgerWorld) -> Cli:
        return Cli(environment={"HOTLEDGER_REDIS_URL": "unix:///nowhere", "HOTLEDGER_POSTGRES_URL": world.postgres_url})

    def test_a_good_chain(self, funded_world: LedgerWorld) -> None:
        hotledger = self.command(funded_world)
        printed = hotledger.json("verify-chain", "--from", 100)
        assert printed["ok"] is True
        assert (printed["after_sequence"], printed["sequence"]) == (41, 341)
        assert printed["head"] == funded_world.one("select encode(chain, 'hex') from shard_state")
        assert printed["head"] in hotledger.done("verify-chain").out

    def test_a_bad_one(self, funded_world: LedgerWorld) -> None:
        funded_world.tamper("update transfer set amount = amount + 1 where sequence in (100, 200)")
        ended = self.command(funded_world)("verify-chain", "--json")
        assert ended.status == 1
        first = ended.json["first_bad"]
        assert (first["first_sequence"], first["last_sequence"]) == (42, 141)
        assert first["at"].startswith("20")
        assert ended.json["bad_entries"] == 2
        assert "FIRST BAD: journal entry with sequences 42 to 141" in self.command(funded_world)("verify-chain").out

    def test_rows_of_another_schema(self, funded_world: LedgerWorld) -> None:
        funded_world.tamper(
            "alter table journal_batch drop constraint journal_batch_journal_hash_check;"
            "update journal_batch set journal_hash = 'short' where last_sequence = 141"
        )
        ended = self.command(funded_world)("verify-chain")
        assert (ended.status, "rows of another width" in ended.err) == (5, True)
