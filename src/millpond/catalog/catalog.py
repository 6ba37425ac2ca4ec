"""The catalog: what exists besides messages, in one SQLite database.

Rules:
- The caller holds the truth in memory. It reads the catalog once, with `load`, and writes each change through.
- Changes happen on the event loop's thread. The first of a turn begins a transaction, and `commit` at the end of the
  turn ends it, before any reply is sent: a killed process keeps what it replied to.
- `commit` does not wait for the disk. `sync`, called by the storage's commit thread just before the journal's own
  fdatasync, makes everything committed so far survive a power loss.
- SQLAlchemy declares the schema and the statements (`tables.py`), ahead of time: at run time the compiled SQL goes
  straight to SQLite's driver, at about 10 µs a change.

How `sync` keeps its promise. In WAL mode a commit appends its pages to `catalog.sqlite-wal`; with synchronous=NORMAL
SQLite leaves it to the operating system when they reach the disk. An fdatasync of that file makes all of them durable,
since replay after a crash takes every transaction whose checksums are intact. Now and then a checkpoint copies pages
from the WAL into the database, and the WAL is written anew from its start. That takes nothing away from the promise,
because SQLite syncs the WAL before it copies, and the database before the WAL may be reused: a commit that is
no longer in the WAL is durable in the database, and one that is in the WAL is reached by our fdatasync. The WAL keeps
its inode until the last connection is closed, so one descriptor serves all the time. (The database file itself is never
opened here: closing a descriptor of it would drop SQLite's POSIX locks.)
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any, Final

from millpond.base import limits
from millpond.base.errors import CorruptData, StorageError, StorageFailed, UnsupportedFormat
from millpond.catalog import sqlite_statements as sql
from millpond.catalog.field_values import decode, decode_table, encode
from millpond.catalog.rows import (
    DESTINATION_EXCHANGE,
    DESTINATION_QUEUE,
    BindingRow,
    CatalogState,
    ExchangeRow,
    ParameterRow,
    PartitionRow,
    PermissionRow,
    PolicyRow,
    QueueRow,
    QuotaRow,
    RuleRow,
    ScramRow,
    TopicPermissionRow,
    TopicRow,
    UserRow,
    VhostRow,
)

# "MPCT" in the database's header, by which file(1) and we tell it from other people's SQLite databases.
APPLICATION_ID: Final = 0x4D504354
# Should nobody call `sync`, a commit still keeps the WAL from growing without end, at this many pages of 4 KiB.
AUTOCHECKPOINT_PAGES: Final = 8 * limits.CATALOG_WAL_BYTES // (4 * limits.KIB)

# What RabbitMQ's permissions are in the table of all permissions.
_REGEX: Final = "regex"
_REGEX_OPERATIONS: Final = ("configure", "write", "read")

_Values = tuple[object, ...]
_synchronize: Final[Callable[[int], None]] = getattr(os, "fdatasync", os.fsync)


class _OptionalText:
    """Stands for the type of a column that holds a text or nothing."""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Catalog:
    """The catalog in the database at `path`, or in memory where it is None. Call `open` first.

    Every method that changes something raises StorageFailed when SQLite cannot write. The changes of this turn are then
    rolled back, all of them, and what the caller holds in memory is ahead of the catalog. A key that exists already is
    the caller's bug, and comes out as sqlite3.IntegrityError.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        wall_ms: Callable[[], int] = _now_ms,
        sync_file: Callable[[int], None] = _synchronize,
    ) -> None:
        self._path: Final = path
        self._wall_ms: Final = wall_ms
        self._sync_file: Final = sync_file
        # True while there are changes that `commit` has not committed.
        self.changed = False
        # True where `open` found no catalog and made one.
        self.created = False
        self._last_queue_id = 0
        self._database: sqlite3.Connection | None = None
        self._cursor: sqlite3.Cursor | None = None
        # Commits so far, counted by the loop after each; and how many of them `sync` has made durable.
        self._commits = 0
        self._synced = 0
        self._sync_lock: Final = threading.Lock()
        self._sync_failure: StorageFailed | None = None
        self._wal_descriptor = -1
        self._checkpointer: sqlite3.Connection | None = None

    # --- Opening and closing ---------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the database, creating or migrating it as needed; durable when this returns.

        Raises UnsupportedFormat where a newer version wrote it or it is none of ours, CorruptData where it is damaged,
        StorageFailed where it cannot be read or written.
        """
        try:
            self._database = self._connect()
            self._cursor = self._database.cursor()
            self._prepare(self._database)
        except (sqlite3.Error, OSError) as error:
            self._abandon()
            raise self._translated(error, "opened") from error
        except UnicodeDecodeError as error:
            # SQLite quotes the damaged text in its complaint, and the driver cannot decode that.
            self._abandon()
            raise CorruptData(f"the catalog {self._path} is damaged: its schema is not readable") from error
        except BaseException:
            self._abandon()
            raise
        self.sync()

    def close(self) -> None:
        """Make what is committed durable and close. What is not committed is rolled back. May be called twice."""
        if self._database is None:
            return
        try:
            self.rollback()
            if self._sync_failure is None:
                self.sync()
        finally:
            self._abandon()

    def _connect(self) -> sqlite3.Connection:
        if self._path is not None:
            # It holds password hashes: nobody else may read it. SQLite gives its WAL the same mode.
            with suppress(FileExistsError):
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        # Autocommit mode: transactions are begun and ended here, not by the driver. Calls come from one thread at a
        # time, but not always from the one that opened it. Another program that writes is waited for a second.
        database = sqlite3.connect(
            ":memory:" if self._path is None else self._path, isolation_level=None, check_same_thread=False, timeout=1.0
        )
        try:
            if self._path is not None:
                (mode,) = database.execute("PRAGMA journal_mode = WAL").fetchone()
                if mode != "wal":
                    raise StorageFailed(f"the catalog {self._path} is on a file system without shared memory maps")
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute(f"PRAGMA wal_autocheckpoint = {AUTOCHECKPOINT_PAGES}")
            # A WAL that starts anew is cut, so that its size says how much there is to copy.
            database.execute("PRAGMA journal_size_limit = 0")
        except BaseException:
            database.close()
            raise
        return database

    def _prepare(self, database: sqlite3.Connection) -> None:
        problem = database.execute("PRAGMA quick_check(1)").fetchone()
        if problem != ("ok",):
            raise CorruptData(f"the catalog {self._path} is damaged: {' '.join(str(problem[0]).split())}")
        names = {name for (name,) in database.execute(sql.SELECT_TABLE_NAMES)}
        if not names:
            self._create(database)
        elif "alembic_version" not in names:
            raise UnsupportedFormat(f"{self._path} is an SQLite database, but not Millpond's catalog")
        else:
            self._migrate(database)
        (last,) = database.execute(sql.SELECT_LAST_QUEUE_ID).fetchone()
        if not isinstance(last, int | None):
            raise CorruptData(f"the catalog {self._path} is damaged: the last queue's id is no number")
        self._last_queue_id = last or 0

    def _create(self, database: sqlite3.Connection) -> None:
        database.execute("BEGIN IMMEDIATE")
        for statement in sql.SCHEMA:
            database.execute(statement)
        database.execute(sql.INSERT_ALEMBIC_VERSION, (sql.VERSIONS[-1],))
        database.execute(sql.PUT_SETTINGS, ("cluster_name", "millpond"))
        database.execute(sql.PUT_SETTINGS, ("created_ms", str(self._wall_ms())))
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute("COMMIT")
        self.created = True
        self._commits += 1

    def _migrate(self, database: sqlite3.Connection) -> None:
        """Bring an older version up to date. No row in `alembic_version` means the version before the first."""
        versions = [str(version) for (version,) in database.execute(sql.SELECT_ALEMBIC_VERSION)]
        if versions == [sql.VERSIONS[-1]]:
            return
        unknown = sorted(set(versions).difference(sql.VERSIONS))
        if unknown or len(versions) > 1:
            raise UnsupportedFormat(
                f"the catalog {self._path} has version {', '.join(unknown or versions)}, but this Millpond knows "
                f"versions up to {sql.VERSIONS[-1]}: a newer one wrote it"
            )
        # Alembic and SQLAlchemy take 0.3 s to import: only this rare case pays for them.
        from millpond.catalog import migrate

        try:
            migrate.upgrade(database)
        except migrate.Failed as error:
            raise CorruptData(
                f"the catalog {self._path} cannot be brought from version {', '.join(versions) or 'none'} to "
                f"{sql.VERSIONS[-1]}, and was left as it was: {error}"
            ) from error
        self._commits += 1

    def _abandon(self) -> None:
        """Close everything, keeping nothing that is not committed."""
        with self._sync_lock:
            self.changed = False
            # The checkpointer first: the connection that is closed last copies the WAL into the database.
            for connection in (self._checkpointer, self._database):
                if connection is not None:
                    with suppress(sqlite3.Error):
                        connection.close()
            self._checkpointer = self._database = self._cursor = None
            if self._wal_descriptor >= 0:
                os.close(self._wal_descriptor)
                self._wal_descriptor = -1

    # --- Transactions ----------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """End this turn's transaction. A killed process keeps it from here on; a power loss only after `sync`."""
        if not self.changed:
            return
        assert self._cursor is not None
        try:
            self._cursor.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._rolled_back(error) from error
        self.changed = False
        # After the commit, so that a sync which sees this number covers it.
        self._commits += 1

    def rollback(self) -> None:
        """Undo the changes since the last commit. The ids of queues added since then stay used up."""
        if self.changed and self._cursor is not None:
            self.changed = False
            # Where SQLite has rolled back by itself there is nothing left to undo.
            with suppress(sqlite3.Error):
                self._cursor.execute("ROLLBACK")

    def sync(self) -> None:
        """Make everything that was committed before this call survive a power loss. May be called on any thread.

        Raises StorageFailed when the disk refuses, and ever after: what a failed fdatasync has dropped does not come
        back by another one that succeeds.
        """
        if self._path is None or (self._commits == self._synced and self._sync_failure is None):
            return
        with self._sync_lock:
            if self._sync_failure is not None:
                raise self._sync_failure
            if self._database is None:
                return
            commits = self._commits
            try:
                if self._wal_descriptor < 0:
                    self._wal_descriptor = os.open(f"{self._path}-wal", os.O_RDONLY | os.O_CLOEXEC)
                    self._sync_directory(self._path.parent)
                self._sync_file(self._wal_descriptor)
                self._synced = commits
                self._checkpoint_when_large(self._path)
            except (OSError, sqlite3.Error) as error:
                self._sync_failure = StorageFailed(f"the catalog {self._path} cannot be made durable: {error}")
                raise self._sync_failure from error

    def _sync_directory(self, directory: Path) -> None:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._sync_file(descriptor)
        finally:
            os.close(descriptor)

    def _checkpoint_when_large(self, path: Path) -> None:
        """Copy a large WAL into the database, here and not in a commit: it syncs twice, and the loop must not wait."""
        if os.fstat(self._wal_descriptor).st_size < limits.CATALOG_WAL_BYTES:
            return
        try:
            if self._checkpointer is None:
                self._checkpointer = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0)
                self._checkpointer.execute("PRAGMA synchronous = NORMAL")
            # PASSIVE neither waits for the loop's transaction nor makes it wait.
            with closing(self._checkpointer.execute("PRAGMA wal_checkpoint(PASSIVE)")) as cursor:
                cursor.fetchall()
        except sqlite3.Error as error:
            # A database that cannot grow or is busy loses nothing: the pages stay in the WAL, to be copied later.
            if _code(error) not in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
                raise

    def _change(self, statement: str, values: _Values) -> int:
        """Run one statement in this turn's transaction. Returns how many rows it changed."""
        cursor = self._cursor
        if cursor is None or self._sync_failure is not None:
            raise self._sync_failure or StorageFailed("the catalog is closed")
        try:
            if not self.changed:
                cursor.execute("BEGIN IMMEDIATE")
                self.changed = True
            try:
                cursor.execute(statement, values)
            except UnicodeEncodeError:
                cursor.execute(statement, tuple(map(_storable, values)))
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise self._rolled_back(error) from error
        return cursor.rowcount

    def _rolled_back(self, error: sqlite3.Error) -> StorageError:
        self.rollback()
        return self._translated(error, "written")

    def _translated(self, error: sqlite3.Error | OSError, action: str) -> StorageError:
        name = "in memory" if self._path is None else str(self._path)
        if _code(error) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            return CorruptData(f"the catalog {name} is damaged: {error}")
        if (
            self._path is not None
            and _code(error) in {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL}
            and _is_full(self._path)
        ):
            # SQLite says the same of a broken disk, and what is to be done is not the same.
            return StorageFailed(f"the catalog {name} cannot be {action}: there is no room on the disk ({error})")
        return StorageFailed(f"the catalog {name} cannot be {action}: {error}")

    # --- Reading ---------------------------------------------------------------------------------------------------

    def load(self) -> CatalogState:
        """Everything, as of now. Raises CorruptData where the database does not hold what was written."""
        try:
            permissions, rules = self._permissions()
            return CatalogState(
                settings=dict(self._rows(sql.SELECT_SETTINGS, str, str)),
                vhosts=[
                    VhostRow(name, description, _tags(tags), default_queue_type)
                    for name, description, tags, default_queue_type in self._rows(sql.SELECT_VHOSTS, str, str, str, str)
                ],
                users=[
                    UserRow(name, password_hash, _tags(tags))
                    for name, password_hash, tags in self._rows(sql.SELECT_USERS, str, _OptionalText, str)
                ],
                permissions=permissions,
                rules=rules,
                scram_credentials=[
                    ScramRow(*row) for row in self._rows(sql.SELECT_SCRAM_CREDENTIALS, str, str, int, str, str, str)
                ],
                quotas=[
                    QuotaRow(decode_table(entity), name, decode(value))
                    for entity, name, value in self._rows(sql.SELECT_QUOTAS, str, str, str)
                ],
                topic_permissions=[
                    TopicPermissionRow(*row)
                    for row in self._rows(sql.SELECT_TOPIC_PERMISSIONS, str, str, str, str, str)
                ],
                exchanges=[
                    ExchangeRow(vhost, name, kind, bool(durable), bool(auto_delete), bool(internal), decode_table(text))
                    for vhost, name, kind, durable, auto_delete, internal, text in self._rows(
                        sql.SELECT_EXCHANGES, str, str, str, int, int, int, str
                    )
                ],
                queues=[
                    QueueRow(vhost, name, bool(durable), bool(auto_delete), bool(exclusive), decode_table(text), number)
                    for vhost, name, durable, auto_delete, exclusive, text, number in self._rows(
                        sql.SELECT_QUEUES, str, str, int, int, int, str, int
                    )
                ],
                topics=[
                    TopicRow(vhost, name, number, decode_table(text), None if said is None else decode_table(said))
                    for vhost, name, number, text, said in self._rows(
                        sql.SELECT_TOPICS, str, str, str, str, _OptionalText
                    )
                ],
                partitions=[PartitionRow(*row) for row in self._rows(sql.SELECT_PARTITIONS, str, str, int, int)],
                bindings=self._bindings(sql.SELECT_BINDINGS),
                topic_bindings=self._bindings(sql.SELECT_TOPIC_BINDINGS),
                policies=[
                    PolicyRow(vhost, name, kind, pattern, apply_to, decode_table(text), priority)
                    for vhost, name, kind, pattern, apply_to, text, priority in self._rows(
                        sql.SELECT_POLICIES, str, str, str, str, str, str, int
                    )
                ],
                parameters=[
                    ParameterRow(vhost, component, name, decode(text))
                    for vhost, component, name, text in self._rows(sql.SELECT_PARAMETERS, str, str, str, str)
                ],
            )
        except sqlite3.Error as error:
            # What is not UTF-8 has no code of SQLite's own: it is the driver that stumbles over it.
            if _code(error) in {sqlite3.SQLITE_OK, sqlite3.SQLITE_ERROR}:
                raise CorruptData(f"the catalog {self._path} is damaged: {error}") from error
            raise self._translated(error, "read") from error

    def _bindings(self, statement: str) -> list[BindingRow]:
        return [
            BindingRow(vhost, source, destination_type, destination, routing_key, decode_table(text))
            for vhost, source, destination_type, destination, routing_key, text in self._rows(
                statement, str, str, str, str, str, str
            )
        ]

    def _permissions(self) -> tuple[list[PermissionRow], list[RuleRow]]:
        """RabbitMQ's permissions, each of which is three rows, and the other rows."""
        patterns: dict[tuple[str, str], dict[str, str]] = {}
        rules: list[RuleRow] = []
        for row in self._rows(sql.SELECT_PERMISSIONS, str, str, str, str, str, str, str, str):
            rule = RuleRow(*row)
            if rule.pattern_type == _REGEX:
                patterns.setdefault((rule.user, rule.vhost), {})[rule.operation] = rule.pattern
            else:
                rules.append(rule)
        if any(found.keys() != set(_REGEX_OPERATIONS) for found in patterns.values()):
            raise CorruptData("the catalog holds a permission without one of its three patterns")
        return [PermissionRow(user, vhost, **found) for (user, vhost), found in patterns.items()], rules

    def _rows(self, statement: str, *types: type) -> Iterator[tuple[Any, ...]]:
        """The rows, whose columns have these types: SQLite itself takes any value in any column."""
        if self._database is None:
            raise StorageFailed("the catalog is closed")
        for row in self._database.execute(statement):
            yield row if tuple(map(type, row)) == types else tuple(map(_loaded, row, types))

    # --- Changes ---------------------------------------------------------------------------------------------------

    def put_setting(self, name: str, value: str) -> None:
        self._change(sql.PUT_SETTINGS, (name, value))

    def add_vhost(self, row: VhostRow) -> None:
        """Add a vhost, or change the description, tags and default queue type of one."""
        self._change(sql.PUT_VHOSTS, (row.name, row.description, encode(list(row.tags)), row.default_queue_type))

    def delete_vhost(self, name: str) -> None:
        """Delete a vhost with all that is in it."""
        for statement in (
            sql.DELETE_BINDINGS_OF_VHOST,
            sql.DELETE_TOPIC_BINDINGS_OF_VHOST,
            sql.DELETE_EXCHANGES_OF_VHOST,
            sql.DELETE_QUEUES_OF_VHOST,
            sql.DELETE_PARTITIONS_OF_VHOST,
            sql.DELETE_TOPICS_OF_VHOST,
            sql.DELETE_POLICIES_OF_VHOST,
            sql.DELETE_PARAMETERS_OF_VHOST,
            sql.DELETE_PERMISSIONS_OF_VHOST,
            sql.DELETE_TOPIC_PERMISSIONS_OF_VHOST,
            sql.DELETE_VHOSTS,
        ):
            self._change(statement, (name,))

    def put_user(self, row: UserRow) -> None:
        self._change(sql.PUT_USERS, (row.name, row.password_hash, encode(list(row.tags))))

    def delete_user(self, name: str) -> None:
        """Delete a user with all permissions and limits."""
        self.delete_parameter("", "user-limits", name)
        self._change(sql.DELETE_PERMISSIONS_OF_USER, (name,))
        self._change(sql.DELETE_SCRAM_CREDENTIALS_OF_USER, (name,))
        self._change(sql.DELETE_TOPIC_PERMISSIONS_OF_USER, (name,))
        self._change(sql.DELETE_USERS, (name,))

    def put_permission(self, row: PermissionRow) -> None:
        self.delete_permission(row.user, row.vhost)
        for operation, pattern in zip(_REGEX_OPERATIONS, (row.configure, row.write, row.read), strict=True):
            self.put_rule(RuleRow(row.user, row.vhost, "any", _REGEX, pattern, operation))

    def delete_permission(self, user: str, vhost: str) -> None:
        self._change(sql.DELETE_PERMISSIONS_OF_PATTERN_TYPE, (user, vhost, _REGEX))

    def put_rule(self, row: RuleRow) -> None:
        """Add one row. One that exists already stays as it is."""
        self._change(sql.PUT_PERMISSIONS, astuple(row))

    def delete_rule(self, row: RuleRow) -> None:
        self._change(sql.DELETE_PERMISSIONS, astuple(row))

    def put_scram_credential(self, row: ScramRow) -> None:
        self._change(sql.PUT_SCRAM_CREDENTIALS, astuple(row))

    def delete_scram_credential(self, user: str, mechanism: str) -> None:
        self._change(sql.DELETE_SCRAM_CREDENTIALS, (user, mechanism))

    def put_quota(self, row: QuotaRow) -> None:
        self._change(sql.PUT_QUOTAS, (_entity(row.entity), row.name, encode(row.value)))

    def delete_quota(self, entity: dict[str, str | None], name: str) -> None:
        self._change(sql.DELETE_QUOTAS, (_entity(entity), name))

    def put_topic_permission(self, row: TopicPermissionRow) -> None:
        self._change(sql.PUT_TOPIC_PERMISSIONS, (row.user, row.vhost, row.exchange, row.write, row.read))

    def delete_topic_permission(self, user: str, vhost: str, exchange: str) -> None:
        self._change(sql.DELETE_TOPIC_PERMISSIONS, (user, vhost, exchange))

    def delete_topic_permissions(self, user: str, vhost: str) -> None:
        """Delete those of a user at all exchanges of a vhost."""
        self._change(sql.DELETE_TOPIC_PERMISSIONS_OF_USER_IN_VHOST, (user, vhost))

    def add_exchange(self, row: ExchangeRow) -> None:
        values = (row.vhost, row.name, row.type, row.durable, row.auto_delete, row.internal, encode(row.arguments))
        self._change(sql.INSERT_EXCHANGES, values)

    def delete_exchange(self, vhost: str, name: str) -> None:
        """Delete an exchange with the bindings from and to it."""
        self._change(sql.DELETE_BINDINGS_OF_SOURCE, (vhost, name))
        self._change(sql.DELETE_BINDINGS_OF_DESTINATION, (vhost, DESTINATION_EXCHANGE, name))
        self._change(sql.DELETE_TOPIC_BINDINGS_OF_DESTINATION, (vhost, DESTINATION_EXCHANGE, name))
        self._change(sql.DELETE_EXCHANGES, (vhost, name))

    def add_queue(self, row: QueueRow) -> int:
        """Add a queue, giving it an id: `row.id` is not looked at. The id was never given to another queue."""
        queue_id = self._next_id()
        arguments = encode(row.arguments)
        self._change(
            sql.INSERT_QUEUES, (row.vhost, row.name, row.durable, row.auto_delete, row.exclusive, arguments, queue_id)
        )
        return queue_id

    def _next_id(self) -> int:
        # Kept here and not only in SQLite's sequence, which a rollback takes back: a log of this id may exist already.
        self._last_queue_id += 1
        return self._last_queue_id

    def use_queue_ids_above(self, id: int) -> None:
        """Give later queues ids greater than `id`: recovery may meet the log of a queue whose commit was lost."""
        self._last_queue_id = max(self._last_queue_id, id)

    def delete_queue(self, id: int) -> None:
        """Delete a queue with the bindings to it."""
        assert self._database is not None
        for vhost, name in self._database.execute(sql.SELECT_QUEUE_NAME, (id,)).fetchall():
            self._change(sql.DELETE_BINDINGS_OF_DESTINATION, (vhost, DESTINATION_QUEUE, name))
            self._change(sql.DELETE_TOPIC_BINDINGS_OF_DESTINATION, (vhost, DESTINATION_QUEUE, name))
            self._change(sql.DELETE_QUEUES, (id,))

    def put_topic(self, row: TopicRow) -> None:
        """Add a topic, still without partitions, or change the configuration of one."""
        arguments = None if row.arguments is None else encode(row.arguments)
        self._change(sql.PUT_TOPICS, (row.vhost, row.name, row.id, encode(row.configs), arguments))

    def add_partition(self, row: PartitionRow) -> int:
        """Add a partition to a topic, giving it an id: `row.id` is not looked at. No log ever had this id."""
        partition_id = self._next_id()
        self._change(sql.INSERT_PARTITIONS, (row.vhost, row.topic, row.number, partition_id))
        return partition_id

    def delete_topic(self, vhost: str, name: str) -> None:
        """Delete a topic with its partitions and the bindings to it."""
        self._change(sql.DELETE_TOPIC_BINDINGS_OF_SOURCE, (vhost, name))
        self._change(sql.DELETE_PARTITIONS_OF_TOPIC, (vhost, name))
        self._change(sql.DELETE_TOPICS, (vhost, name))

    def add_binding(self, row: BindingRow) -> None:
        """Add a binding. One that exists already stays as it is."""
        self._change(sql.PUT_BINDINGS, _binding_values(row))

    def delete_binding(self, row: BindingRow) -> None:
        self._change(sql.DELETE_BINDINGS, _binding_values(row))

    def add_topic_binding(self, row: BindingRow) -> None:
        """As `add_binding`, to a topic."""
        self._change(sql.PUT_TOPIC_BINDINGS, _binding_values(row))

    def delete_topic_binding(self, row: BindingRow) -> None:
        self._change(sql.DELETE_TOPIC_BINDINGS, _binding_values(row))

    def put_policy(self, row: PolicyRow) -> None:
        values = (row.vhost, row.name, row.kind, row.pattern, row.apply_to, encode(row.definition), row.priority)
        self._change(sql.PUT_POLICIES, values)

    def delete_policy(self, vhost: str, name: str, kind: str) -> None:
        self._change(sql.DELETE_POLICIES, (vhost, name, kind))

    def put_parameter(self, row: ParameterRow) -> None:
        self._change(sql.PUT_PARAMETERS, (row.vhost, row.component, row.name, encode(row.value)))

    def delete_parameter(self, vhost: str, component: str, name: str) -> None:
        self._change(sql.DELETE_PARAMETERS, (vhost, component, name))


def _entity(entity: dict[str, str | None]) -> str:
    return encode(dict(sorted(entity.items())))


def _binding_values(row: BindingRow) -> _Values:
    return (row.vhost, row.source, row.destination_type, row.destination, row.routing_key, encode(row.arguments))


def _tags(text: object) -> tuple[str, ...]:
    tags = decode(text)
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise CorruptData("the catalog holds tags that are not a list of texts")
    return tuple(tags)


def _storable(value: object) -> object:
    """A name that is not Unicode (its odd bytes are surrogates here) is stored as the bytes it had on the wire."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode(errors="surrogateescape")
    return value


def _loaded(value: object, expected: type) -> object:
    if expected is str and isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    if type(value) is expected or (expected is _OptionalText and (value is None or isinstance(value, str))):
        return value
    raise CorruptData(f"the catalog holds a {type(value).__name__} where it should hold a {expected.__name__}")


def _code(error: Exception) -> int:
    """SQLite's primary result code: the low byte of the extended one."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF


def _is_full(path: Path) -> bool:
    """Whether the disk has less room than SQLite needs to open a database."""
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize < limits.CATALOG_ROOM_BYTES
