"""Fixtures live one file per concern in tests/fixtures."""

pytest_plugins = ["tests.fixtures.servers", "tests.fixtures.shard", "tests.fixtures.ledger"]
