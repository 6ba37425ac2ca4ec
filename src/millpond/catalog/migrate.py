"""Brings a catalog that an older version wrote up to date, with Alembic.

Imported only when there is something to migrate: Alembic and SQLAlchemy take 0.3 s to import.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool

MIGRATIONS: Final = Path(__file__).parent / "migrations"
REVISIONS: Final = MIGRATIONS / "versions"


class Failed(Exception):
    """A revision could not be applied. The database is as it was."""


def upgrade(database: sqlite3.Connection, folders: Sequence[Path] = (REVISIONS,), to: str = "head") -> None:
    """Run the revisions in `folders` that `database` does not have yet, up to `to`, all in one transaction.

    `database` must be in autocommit mode, and stays open.
    """
    engine = sa.create_engine("sqlite://", creator=lambda: database, poolclass=StaticPool)

    # Python's driver begins no transaction for DDL. Begun here, it makes all revisions and the new version number one.
    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", "\n".join(map(str, folders)))
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, to)
    except (SQLAlchemyError, CommandError, sqlite3.Error) as error:
        raise Failed(str(error).splitlines()[0]) from error
