"""Alembic's folder: `env.py` runs the revisions in `versions/`. Used by `millpond.catalog.migrate` only."""
