"""Makes it durable and provable: drains the journal into the Postgres ledger, and reconciles."""
