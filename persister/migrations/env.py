"""Alembic's entry: runs the revisions on the connection, and in the transaction, that migrate() prepared."""

from alembic import context

attributes = context.config.attributes

context.configure(
    connection=attributes["connection"],
    on_version_apply=attributes["on_version_apply"],
    transactional_ddl=True,
)
context.run_migrations()
