"""Topics and their partitions."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0003"
down_revision: Final = "0002"


def upgrade() -> None:
    op.create_table(
        "topics",
        sa.Column("vhost", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("configs", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "partitions",
        sa.Column("vhost", sa.Text, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.UniqueConstraint("vhost", "topic", "number"),
        sqlite_autoincrement=True,
    )
