"""The schema: declared once, built alike by a fresh start and by the revisions, brought up to date, never guessed."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from millpond.base.errors import CorruptData, UnsupportedFormat
from millpond.broker.streams.stream_arguments import configs_of
from millpond.catalog import migrate, sqlite_statements, tables
from millpond.catalog.catalog import Catalog
from millpond.catalog.rows import PermissionRow, QueueRow, TopicPermissionRow, VhostRow

LATEST = sqlite_statements.VERSIONS[-1]
NEXT = f"{int(LATEST) + 1:04}"
NEXT_REVISION = f"""
import sqlalchemy as sa
from alembic import op

revision = "{NEXT}"
down_revision = "{LATEST}"


def upgrade():
    op.add_column("vhosts", sa.Column("colour", sa.Text, nullable=False, server_default="blue"))
    op.create_table("ponds", sa.Column("name", sa.Text, primary_key=True))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.sqlite"


def schema(database: sqlite3.Connection) -> dict[str, str]:
    rows = database.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {name: " ".join(sql.split()) for name, sql in rows}


def version(path: Path) -> list[tuple[str]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT version_num FROM alembic_version").fetchall()


@pytest.fixture
def next_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes this Millpond one version newer than it is, with a revision more. Returns the revision's file."""
    folder = tmp_path / "revisions"
    folder.mkdir()
    revision = folder / f"revision_{NEXT}.py"
    revision.write_text(NEXT_REVISION)
    monkeypatch.setattr(sqlite_statements, "VERSIONS", (*sqlite_statements.VERSIONS, NEXT))
    upgrade = migrate.upgrade
    monkeypatch.setattr(migrate, "upgrade", lambda database: upgrade(database, (migrate.REVISIONS, folder)))
    return revision


def make_catalog(path: Path) -> None:
    catalog = Catalog(path)
    catalog.open()
    catalog.add_vhost(VhostRow("/"))
    catalog.add_queue(QueueRow("/", "q", arguments={"x": b"\0"}))
    catalog.commit()
    catalog.close()


def test_the_compiled_statements_are_up_to_date() -> None:
    compiled = Path(sqlite_statements.__file__).read_text(encoding="utf-8")
    assert compiled == tables.compiled(), "run: python -m millpond.catalog.tables"


def test_the_revisions_build_what_the_tables_declare() -> None:
    with (
        closing(sqlite3.connect(":memory:", isolation_level=None)) as migrated,
        closing(sqlite3.connect(":memory:", isolation_level=None)) as created,
    ):
        migrate.upgrade(migrated)
        for statement in sqlite_statements.SCHEMA:
            created.execute(statement)
        assert schema(migrated) == schema(created)
        assert migrated.execute("SELECT * FROM alembic_version").fetchall() == [(sqlite_statements.VERSIONS[-1],)]


def test_a_new_catalog_has_the_latest_version(path: Path) -> None:
    make_catalog(path)
    assert version(path) == [(sqlite_statements.VERSIONS[-1],)]


@pytest.mark.usefixtures("next_version")
def test_an_older_catalog_is_brought_up_to_date_and_keeps_its_rows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as yesterday:
        yesterday.setattr(sqlite_statements, "VERSIONS", sqlite_statements.VERSIONS[:-1])
        make_catalog(path)
    catalog = Catalog(path)
    catalog.open()
    assert not catalog.created
    state = catalog.load()
    assert [row.name for row in state.vhosts] == ["/"]
    assert [(row.id, row.arguments) for row in state.queues] == [(1, {"x": b"\0"})]
    assert catalog.add_queue(QueueRow("/", "r")) == 2
    catalog.commit()
    catalog.close()
    assert version(path) == [(NEXT,)]
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT colour FROM vhosts").fetchall() == [("blue",)]


def test_the_first_version_is_brought_up_to_date(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        migrate.upgrade(database, to="0001")
        database.execute("INSERT INTO permissions VALUES ('alice', '/', 'a', 'b', 'c')")
    catalog = Catalog(path)
    catalog.open()
    row = TopicPermissionRow("alice", "/", "amq.topic", "^a", "^b")
    catalog.put_topic_permission(row)
    catalog.commit()
    state = catalog.load()
    assert (state.permissions, state.topic_permissions) == ([PermissionRow("alice", "/", "a", "b", "c")], [row])
    catalog.close()
    assert version(path) == [(sqlite_statements.VERSIONS[-1],)]


def test_stream_queues_become_topics_with_one_partition(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        migrate.upgrade(database, to="0003")
        for number, (name, arguments) in enumerate(
            [
                ("work", {}),
                ("orders", {"x-queue-type": "stream"}),
                (
                    "limited",
                    {
                        "x-queue-type": "stream",
                        "x-max-age": "2h",
                        "x-max-length-bytes": 5000,
                        "x-stream-max-segment-size-bytes": 0,
                    },
                ),
            ]
        ):
            database.execute(
                "INSERT INTO queues VALUES ('/', ?, 1, 0, 0, ?, ?)", (name, json.dumps(arguments), 10 + number)
            )
        # A name that is not Unicode is stored as its bytes.
        text = json.dumps({"x-queue-type": "stream"})
        database.execute("INSERT INTO queues VALUES ('/', ?, 1, 0, 0, ?, 13)", (b"\xff", text))
        database.execute("INSERT INTO topics VALUES ('/', 'events', ?, '{}')", ("0" * 32,))
        database.execute("INSERT INTO partitions VALUES ('/', 'events', 0, 5)")
        database.execute("INSERT INTO bindings VALUES ('/', 'in', 'queue', 'orders', 'key', '{}')")
    catalog = Catalog(path)
    catalog.open()
    state = catalog.load()
    assert [(row.name, row.id) for row in state.queues] == [("work", 10)]
    topics = {row.name: row for row in state.topics}
    assert {name: row.arguments for name, row in topics.items()} == {
        "events": None,
        "orders": {"x-queue-type": "stream"},
        "limited": {
            "x-queue-type": "stream",
            "x-max-age": "2h",
            "x-max-length-bytes": 5000,
            "x-stream-max-segment-size-bytes": 0,
        },
        "\udcff": {"x-queue-type": "stream"},
    }
    for row in topics.values():
        if row.arguments is not None:
            assert row.configs == configs_of(row.arguments), "as when it is declared today"
    assert len({row.id for row in topics.values()}) == len(topics)
    assert {(row.topic, row.number): row.id for row in state.partitions} == {
        ("events", 0): 5,
        ("orders", 0): 11,
        ("limited", 0): 12,
        ("\udcff", 0): 13,
    }
    assert [(row.source, row.destination) for row in state.bindings] == [("in", "orders")]
    assert catalog.add_queue(QueueRow("/", "next")) == 14
    catalog.close()


def test_a_failed_migration_leaves_the_catalog_as_it_was(
    path: Path, next_version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as yesterday:
        yesterday.setattr(sqlite_statements, "VERSIONS", sqlite_statements.VERSIONS[:-1])
        make_catalog(path)
    next_version.write_text(f"{NEXT_REVISION}    op.execute('this is no SQL')\n")
    with closing(sqlite3.connect(path)) as database:
        before = schema(database)
    with pytest.raises(CorruptData, match=f"from version {LATEST} to {NEXT}, and was left as it was"):
        Catalog(path).open()
    with closing(sqlite3.connect(path)) as database:
        assert schema(database) == before
    assert version(path) == [(LATEST,)]


def test_a_catalog_without_a_stamp_is_built_by_the_revisions(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
    make_catalog(path)
    assert version(path) == [(sqlite_statements.VERSIONS[-1],)]


@pytest.mark.parametrize("stamp", [NEXT, "9999", "ae1027a6acf"])
def test_a_newer_catalog_is_refused_and_left_as_it_is(path: Path, stamp: str) -> None:
    make_catalog(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE alembic_version SET version_num = ?", (stamp,))
        database.commit()
    with pytest.raises(
        UnsupportedFormat, match=f"has version {stamp}, but this Millpond knows versions up to {LATEST}"
    ):
        Catalog(path).open()
    assert version(path) == [(stamp,)]


def test_versions_count_without_gaps() -> None:
    assert tuple(f"{n:04}" for n in range(1, len(sqlite_statements.VERSIONS) + 1)) == sqlite_statements.VERSIONS


def test_the_file_can_be_told_from_other_databases(path: Path) -> None:
    make_catalog(path)
    assert path.read_bytes()[68:72] == b"MPCT"
