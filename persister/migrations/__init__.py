"""What Alembic runs; persister/migrate.py starts it. A version executes its file in persister/sql/migrations."""
