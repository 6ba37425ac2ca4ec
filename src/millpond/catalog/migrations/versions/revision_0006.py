"""Permissions become rows of one operation each, so that Kafka's are rows beside RabbitMQ's; SCRAM; quotas."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0006"
down_revision: Final = "0005"

COLUMNS: Final = ("user", "vhost", "resource_type", "pattern_type", "pattern", "operation", "effect", "host")


def upgrade() -> None:
    op.create_table(
        "scram_credentials",
        sa.Column("user", sa.Text, primary_key=True),
        sa.Column("mechanism", sa.Text, primary_key=True),
        sa.Column("iterations", sa.Integer, nullable=False),
        sa.Column("salt", sa.Text, nullable=False),
        sa.Column("stored_key", sa.Text, nullable=False),
        sa.Column("server_key", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "quotas",
        sa.Column("entity", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.rename_table("permissions", "old_permissions")
    op.create_table(
        "permissions",
        sa.Column("user", sa.Text, primary_key=True),
        sa.Column("vhost", sa.Text, primary_key=True),
        sa.Column("resource_type", sa.Text, primary_key=True),
        sa.Column("pattern_type", sa.Text, primary_key=True),
        sa.Column("pattern", sa.Text, primary_key=True),
        sa.Column("operation", sa.Text, primary_key=True),
        sa.Column("effect", sa.Text, primary_key=True),
        sa.Column("host", sa.Text, primary_key=True),
        sqlite_with_rowid=False,
    )
    old = sa.table("old_permissions", *map(sa.column, ("user", "vhost", "configure", "write", "read")))
    new = sa.table("permissions", *map(sa.column, COLUMNS))
    for operation in ("configure", "write", "read"):
        fixed: list[sa.ColumnElement[str]] = [sa.literal_column(f"'{text}'") for text in (operation, "allow", "*")]
        of_any: list[sa.ColumnElement[str]] = [
            sa.literal_column("'any'"),
            sa.literal_column("'regex'"),
            old.c[operation],
        ]
        op.execute(new.insert().from_select(COLUMNS, sa.select(old.c.user, old.c.vhost, *of_any, *fixed)))
    op.drop_table("old_permissions")
