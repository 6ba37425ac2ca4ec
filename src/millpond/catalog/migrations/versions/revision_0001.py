"""The first tables.

Written out, not taken from `tables.py`: a revision must go on building what it built when it was released.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0001"
down_revision: Final = None


def upgrade() -> None:
    op.create_table(
        "settings",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "vhosts",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("tags", sa.Text, nullable=False),
        sa.Column("default_queue_type", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "users",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("password_hash", sa.Text, nullable=True),
        sa.Column("tags", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "permissions",
        sa.Column("user", sa.Text, primary_key=True),
        sa.Column("vhost", sa.Text, primary_key=True),
        sa.Column("configure", sa.Text, nullable=False),
        sa.Column("write", sa.Text, nullable=False),
        sa.Column("read", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "exchanges",
        sa.Column("vhost", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("durable", sa.Boolean, nullable=False),
        sa.Column("auto_delete", sa.Boolean, nullable=False),
        sa.Column("internal", sa.Boolean, nullable=False),
        sa.Column("arguments", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "queues",
        sa.Column("vhost", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("durable", sa.Boolean, nullable=False),
        sa.Column("auto_delete", sa.Boolean, nullable=False),
        sa.Column("exclusive", sa.Boolean, nullable=False),
        sa.Column("arguments", sa.Text, nullable=False),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.UniqueConstraint("vhost", "name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "bindings",
        sa.Column("vhost", sa.Text, primary_key=True),
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("destination_type", sa.Text, primary_key=True),
        sa.Column("destination", sa.Text, primary_key=True),
        sa.Column("routing_key", sa.Text, primary_key=True),
        sa.Column("arguments", sa.Text, primary_key=True),
        sqlite_with_rowid=False,
    )
    op.create_index("bindings_by_destination", "bindings", ["vhost", "destination_type", "destination"])
    op.create_table(
        "policies",
        sa.Column("vhost", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("pattern", sa.Text, nullable=False),
        sa.Column("apply_to", sa.Text, nullable=False),
        sa.Column("definition", sa.Text, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "parameters",
        sa.Column("vhost", sa.Text, primary_key=True),
        sa.Column("component", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
