"""What exists besides messages: virtual hosts, users, permissions, exchanges, queues, bindings, policies.

`rows.py` says what is stored, `catalog.py` reads and changes it. The rest is how: `tables.py` (the schema and the
statements, in SQLAlchemy Core), `sqlite_statements.py` (compiled from it), `field_values.py` (arguments as text),
`migrate.py` and `migrations/` (schema changes, with Alembic). The format is drawn in `docs/formats/catalog.md`.
"""
