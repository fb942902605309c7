"""Run by Alembic: the connection comes from `router.store.database`."""

from alembic import context

from router.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
