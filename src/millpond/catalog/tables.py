"""The catalog's tables and statements, in SQLAlchemy Core: the one place where they are written.

SQLAlchemy takes 0.15 s and 20 MiB to import, and the broker needs none of it to run a dozen fixed statements. So their
SQL is compiled ahead into `sqlite_statements.py`:

    python -m millpond.catalog.tables        writes it anew; a test fails while it is out of date

A change of the tables also needs a revision in `migrations/versions/`; a test compares what the revisions
build with what is declared here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

metadata: Final = sa.MetaData()

settings: Final = sa.Table(
    "settings",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

vhosts: Final = sa.Table(
    "vhosts",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("tags", sa.Text, nullable=False),
    sa.Column("default_queue_type", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

users: Final = sa.Table(
    "users",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("password_hash", sa.Text, nullable=True),
    sa.Column("tags", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

# All columns are the key: to allow and to deny the same are two rows. What RabbitMQ calls a permission is three of
# them, with the pattern type "regex", for resources of "any" type, and the operations configure, write and read.
permissions: Final = sa.Table(
    "permissions",
    metadata,
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

topic_permissions: Final = sa.Table(
    "topic_permissions",
    metadata,
    sa.Column("user", sa.Text, primary_key=True),
    sa.Column("vhost", sa.Text, primary_key=True),
    sa.Column("exchange", sa.Text, primary_key=True),
    sa.Column("write", sa.Text, nullable=False),
    sa.Column("read", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

# How users log in by SCRAM. Salt and keys are in hexadecimal digits.
scram_credentials: Final = sa.Table(
    "scram_credentials",
    metadata,
    sa.Column("user", sa.Text, primary_key=True),
    sa.Column("mechanism", sa.Text, primary_key=True),
    sa.Column("iterations", sa.Integer, nullable=False),
    sa.Column("salt", sa.Text, nullable=False),
    sa.Column("stored_key", sa.Text, nullable=False),
    sa.Column("server_key", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

# Kafka's quotas. `entity` has what they hold for, in a form that is the same for the same.
quotas: Final = sa.Table(
    "quotas",
    metadata,
    sa.Column("entity", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

exchanges: Final = sa.Table(
    "exchanges",
    metadata,
    sa.Column("vhost", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("durable", sa.Boolean, nullable=False),
    sa.Column("auto_delete", sa.Boolean, nullable=False),
    sa.Column("internal", sa.Boolean, nullable=False),
    sa.Column("arguments", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

queues: Final = sa.Table(
    "queues",
    metadata,
    sa.Column("vhost", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("durable", sa.Boolean, nullable=False),
    sa.Column("auto_delete", sa.Boolean, nullable=False),
    sa.Column("exclusive", sa.Boolean, nullable=False),
    sa.Column("arguments", sa.Text, nullable=False),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.UniqueConstraint("vhost", "name"),
    # Without it SQLite would give the id of the last queue, once deleted, to the next one, whose log it would inherit.
    sqlite_autoincrement=True,
)

topics: Final = sa.Table(
    "topics",
    metadata,
    sa.Column("vhost", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("configs", sa.Text, nullable=False),
    # What AMQP said when it declared the topic as a stream.
    sa.Column("arguments", sa.Text, nullable=True),
    sqlite_with_rowid=False,
)

# The ids are of one sequence with those of queues: both name logs.
partitions: Final = sa.Table(
    "partitions",
    metadata,
    sa.Column("vhost", sa.Text, nullable=False),
    sa.Column("topic", sa.Text, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.UniqueConstraint("vhost", "topic", "number"),
    sqlite_autoincrement=True,
)

bindings: Final = sa.Table(
    "bindings",
    metadata,
    sa.Column("vhost", sa.Text, primary_key=True),
    sa.Column("source", sa.Text, primary_key=True),
    sa.Column("destination_type", sa.Text, primary_key=True),
    sa.Column("destination", sa.Text, primary_key=True),
    sa.Column("routing_key", sa.Text, primary_key=True),
    sa.Column("arguments", sa.Text, primary_key=True),
    # A queue that is deleted takes its bindings along, without a scan of everybody's.
    sa.Index("bindings_by_destination", "vhost", "destination_type", "destination"),
    sqlite_with_rowid=False,
)

# Bindings to topics, which may be called like exchanges.
topic_bindings: Final = sa.Table(
    "topic_bindings",
    metadata,
    sa.Column("vhost", sa.Text, primary_key=True),
    sa.Column("source", sa.Text, primary_key=True),
    sa.Column("destination_type", sa.Text, primary_key=True),
    sa.Column("destination", sa.Text, primary_key=True),
    sa.Column("routing_key", sa.Text, primary_key=True),
    sa.Column("arguments", sa.Text, primary_key=True),
    sa.Index("topic_bindings_by_destination", "vhost", "destination_type", "destination"),
    sqlite_with_rowid=False,
)

policies: Final = sa.Table(
    "policies",
    metadata,
    sa.Column("vhost", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("pattern", sa.Text, nullable=False),
    sa.Column("apply_to", sa.Text, nullable=False),
    sa.Column("definition", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sqlite_with_rowid=False,
)

parameters: Final = sa.Table(
    "parameters",
    metadata,
    sa.Column("vhost", sa.Text, primary_key=True),
    sa.Column("component", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

# Alembic's own table, declared here so that a new database can be stamped without Alembic.
version: Final = sa.Table(
    "alembic_version",
    sa.MetaData(),
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)


def select(table: sa.Table) -> sa.Select[Any]:
    return sa.select(table)


def insert(table: sa.Table) -> sqlite.Insert:
    """All columns in their order. Fails where the key is taken."""
    return sqlite.insert(table)


def put(table: sa.Table) -> sqlite.Insert:
    """All columns in their order. Replaces the row that has the same key."""
    statement = sqlite.insert(table)
    changed = {column.name: statement.excluded[column.name] for column in table.columns if not column.primary_key}
    return statement.on_conflict_do_update(index_elements=list(table.primary_key.columns), set_=changed)


def delete(table: sa.Table, *keys: str) -> sa.Delete:
    """The rows whose columns `keys`, in this order, have the values given; by default those of the primary key."""
    names = keys or tuple(column.name for column in table.primary_key.columns)
    return sa.delete(table).where(*(table.c[name] == sa.bindparam(name) for name in names))


def statements() -> Iterator[tuple[str, sa.sql.ClauseElement]]:
    """Every statement that the catalog runs, by its name."""
    for table in (*metadata.sorted_tables, version):
        yield f"select_{table.name}", select(table)
    for table in (exchanges, queues, partitions, version):
        yield f"insert_{table.name}", insert(table)
    for table in (settings, vhosts, users, scram_credentials, topic_permissions, topics, policies, parameters, quotas):
        yield f"put_{table.name}", put(table)
    for table in (bindings, topic_bindings, permissions):
        yield f"put_{table.name}", insert(table).on_conflict_do_nothing()
    for table in metadata.sorted_tables:
        yield f"delete_{table.name}", delete(table)
    # Deleting takes along what hangs on the deleted. Rows of a vhost in all tables:
    for table in metadata.sorted_tables:
        if "vhost" in table.columns:
            yield f"delete_{table.name}_of_vhost", delete(table, "vhost")
    yield "delete_permissions_of_user", delete(permissions, "user")
    yield "delete_permissions_of_pattern_type", delete(permissions, "user", "vhost", "pattern_type")
    yield "delete_scram_credentials_of_user", delete(scram_credentials, "user")
    yield "delete_topic_permissions_of_user", delete(topic_permissions, "user")
    yield "delete_topic_permissions_of_user_in_vhost", delete(topic_permissions, "user", "vhost")
    for table in (bindings, topic_bindings):
        yield f"delete_{table.name}_of_source", delete(table, "vhost", "source")
        yield f"delete_{table.name}_of_destination", delete(table, "vhost", "destination_type", "destination")
    yield "delete_partitions_of_topic", delete(partitions, "vhost", "topic")
    yield "select_queue_name", sa.select(queues.c.vhost, queues.c.name).where(queues.c.id == sa.bindparam("id"))
    # What queues and partitions have been given so far, also those that are gone.
    sequence = sa.table("sqlite_sequence", sa.column("seq"))
    yield "select_last_queue_id", sa.select(sa.func.max(sequence.c.seq))
    yield "select_table_names", sa.select(sa.column("name")).select_from(sa.table("sqlite_master"))


def schema() -> Iterator[sa.schema.ExecutableDDLElement]:
    """What creates an empty catalog."""
    for table in (*metadata.sorted_tables, version):
        yield CreateTable(table)
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            yield CreateIndex(index)


def compiled() -> str:
    """The text of `sqlite_statements.py`."""
    from alembic.script import ScriptDirectory

    dialect = sqlite.dialect(paramstyle="qmark")

    def sql(clause: Any) -> str:
        return " ".join(str(clause.compile(dialect=dialect)).split())

    revisions = ScriptDirectory(str(Path(__file__).parent / "migrations")).walk_revisions()
    versions = [revision.revision for revision in revisions][::-1]
    lines = [
        '"""The SQL of the catalog for SQLite. Written by `python -m millpond.catalog.tables`: edit `tables.py`."""',
        "",
        "# fmt: off",
        "# ruff: noqa: E501",
        "from __future__ import annotations",
        "",
        "from typing import Final",
        "",
        "# The schema's versions, oldest first: the revisions in `migrations/versions/`.",
        f"VERSIONS: Final = ({''.join(_quoted(version) + ', ' for version in versions).strip()})",
        "",
        "SCHEMA: Final = (",
        *(f"    {_quoted(sql(statement))}," for statement in schema()),
        ")",
        "",
        *(f"{name.upper()}: Final = {_quoted(sql(statement))}" for name, statement in statements()),
        "",
    ]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return "'" + text + "'" if '"' in text else '"' + text + '"'


if __name__ == "__main__":
    Path(__file__).with_name("sqlite_statements.py").write_text(compiled(), encoding="utf-8")
