"""Bindings to topics."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0005"
down_revision: Final = "0004"


def upgrade() -> None:
    op.create_table(
        "topic_bindings",
        sa.Column("vhost", sa.Text, primary_key=True),
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("destination_type", sa.Text, primary_key=True),
        sa.Column("destination", sa.Text, primary_key=True),
        sa.Column("routing_key", sa.Text, primary_key=True),
        sa.Column("arguments", sa.Text, primary_key=True),
        sqlite_with_rowid=False,
    )
    op.create_index("topic_bindings_by_destination", "topic_bindings", ["vhost", "destination_type", "destination"])
