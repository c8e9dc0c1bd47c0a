"""Alembic's entry: runs inside the transaction that `receiver.ledger.schema` opened."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transaction_per_migration=False)
context.run_migrations()
