"""A node: the composition of storage, catalog, core, protocols and listeners.

    lock -> catalog -> recovery -> journal -> listeners -> (management API, in the background)

and back in the reverse order. Everything runs on the event loop that `start` was called in.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from millpond.admin.server import AdminServer
from millpond.base.clock import LoopClock
from millpond.base.errors import PeerError
from millpond.base.filesystem import Filesystem, Lock, OsFilesystem
from millpond.base.limits import (
    CLOSE_GRACE_MS,
    JOURNAL_FILE_BYTES,
    LISTEN_BACKLOG,
    PASSWORD_HASHES_AT_ONCE_MAX,
)
from millpond.broker.access import Access, is_loopback
from millpond.broker.broker import DEFAULT_VHOST, Broker
from millpond.broker.checkpoint import Checkpointer
from millpond.broker.commits import ALARM_DISK, ALARM_STORAGE, Alarms, Commits
from millpond.broker.groups.coordinator import DEFAULT_SETTINGS, MINUTE_MS
from millpond.broker.groups.store import GroupSettings
from millpond.broker.ledger import Ledger
from millpond.broker.memory import MemoryBudget
from millpond.broker.queues.page_store import PageStore
from millpond.broker.recovery import JOURNAL_FOLDER, Recovery
from millpond.broker.transactions.coordinator import TransactionSettings
from millpond.broker.turn import Turn
from millpond.catalog.catalog import Catalog
from millpond.config import ListenAddress, Settings
from millpond.protocols.amqp import registry as amqp
from millpond.protocols.amqp.connection import Connection, ConnectionSettings
from millpond.protocols.kafka import registry as kafka
from millpond.protocols.kafka.connection import Connection as KafkaConnection
from millpond.protocols.kafka.connection import KafkaSettings
from millpond.protocols.transport import Transport
from millpond.server import data_directory
from millpond.server.administration import administration
from millpond.server.heap import Heap, give_back, resident_bytes
from millpond.server.listeners import bind, bound_address, tls_context
from millpond.server.transport import ServerProtocol
from millpond.storage.journal import Journal

logger = logging.getLogger(__name__)

# How often free disk, alarms, and consumers that are held or overdue are looked after, and how many rounds make one
# interval in which an alarm that comes and goes is logged a few times only.
HOUSEKEEPING_MS: Final = 1_000
ALARM_LOG_ROUNDS: Final = 10
# How many rounds there are between two looks at memory that may be given back.
HEAP_ROUNDS: Final = 3
TLS_LISTENERS: Final = ("amqps", "kafka_tls")


class Node:
    """One broker process's worth of broker, inside an event loop."""

    def __init__(self, settings: Settings, filesystem: Filesystem | None = None) -> None:
        self.settings = settings
        self.addresses: dict[str, tuple[str, int]] = {}
        self._filesystem = filesystem or OsFilesystem()
        self._folder = str(settings.data)
        self._lock: Lock | None = None
        self._catalog: Catalog | None = None
        self._journal: Journal | None = None
        self._checkpointer: Checkpointer | None = None
        self._store: PageStore | None = None
        self._broker: Broker | None = None
        self._servers: list[asyncio.Server] = []
        self._sockets: dict[str, socket.socket] = {}
        self._admin: AdminServer | None = None
        self._protocols: dict[ServerProtocol, None] = {}
        self._threads: ThreadPoolExecutor | None = None
        self._stopping = False
        self._rounds = 0
        self._heap: Final = Heap(self._run_blocking, resident_bytes, give_back)

    @property
    def broker(self) -> Broker:
        """The core; the node must have been started."""
        if self._broker is None:
            raise RuntimeError("the node has not been started")
        return self._broker

    # --- Starting -------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the data, recover, and listen. Raises OperatorError; then nothing is left open."""
        try:
            self._bind()
            self._open()
            await self._listen()
        except BaseException:
            await self.stop()
            raise

    def _bind(self) -> None:
        """Take the addresses first: a second broker on the same ports must not touch the data."""
        for name in ("amqp", "amqps", "kafka", "kafka_tls", "admin"):
            address = getattr(self.settings, name)
            if address is not None:
                self._sockets[name] = bind(name, address)

    def _open(self) -> None:
        settings = self.settings
        loop = asyncio.get_running_loop()
        post = partial(_post, loop)
        clock = LoopClock(loop)
        turn = Turn(loop.call_soon)
        turn.now_ms = clock.wall_ms()
        alarms = Alarms()
        commits = Commits(alarms)
        memory = MemoryBudget(settings.memory_budget)
        self._threads = ThreadPoolExecutor(PASSWORD_HASHES_AT_ONCE_MAX, "millpond-worker")

        catalog_path: Path | None = None
        if not settings.memory:
            self._filesystem.mkdirs(self._folder)
            self._lock = self._filesystem.lock(f"{self._folder}/{data_directory.LOCK}")
            catalog_path = settings.data / data_directory.CATALOG
        catalog = self._catalog = Catalog(catalog_path)
        catalog.open()
        access = Access(catalog)
        store = self._store = PageStore(None if settings.memory else self._filesystem, self._folder, post)

        journal: Journal | None = None
        ledger = Ledger()
        broker = Broker(
            turn, clock, ledger, memory, store, catalog, access, alarms, commits, self._run_blocking,
            settings.message_bytes_max,
            settings.queues_max,
            settings.consumer_timeout_ms,
            _group_settings(settings),
            TransactionSettings(settings.transaction_max_timeout_ms, settings.transactional_id_expiration_ms),
        )  # fmt: skip
        broker.streams.check_interval_ms = settings.stream_check_interval_ms
        state = catalog.load()
        access.load(state)
        queues = broker.restore(state)
        if catalog.created:
            broker.create_vhost(DEFAULT_VHOST)
            access.create_default_user(settings.default_user, settings.default_password.get_secret_value().encode())
            catalog.commit()
        if not settings.memory:
            store.delete_leftovers(broker.log_ids())
            recovery = Recovery(
                self._filesystem, self._folder, queues, broker.streams.partitions(), broker.keepers, store
            )
            report = recovery.run()
            catalog.use_queue_ids_above(recovery.log_id_max)
            journal = self._journal = Journal(
                self._filesystem,
                f"{self._folder}/{JOURNAL_FOLDER}",
                report.next_file,
                post,
                commits,
                before_sync=catalog.sync,
            )
            ledger.journal = journal
            self._checkpointer = Checkpointer(broker, journal, self._filesystem, self._folder, JOURNAL_FILE_BYTES)
            if recovery.checkpoint_wanted:
                # What was replayed goes to where it is not replayed again.
                self._checkpointer.begin()
            clock.call_later(settings.journal_sync_interval_ms, self._sync_due)
        clock.call_later(HOUSEKEEPING_MS, self._keep_house)
        self._broker = broker
        turn.touch()

    async def _listen(self) -> None:
        settings = self.settings
        loop = asyncio.get_running_loop()
        connection_settings = ConnectionSettings(
            settings.frame_max,
            settings.channel_max,
            settings.heartbeat_s,
            settings.handshake_timeout_ms,
            settings.certificate_login(),
        )
        handlers = amqp.load(settings.connections_max)

        def connect(transport: Transport) -> Connection:
            return Connection(self.broker, transport, connection_settings, handlers)

        factory = partial(ServerProtocol, connect, self._protocols)
        factories = {"amqp": factory, "amqps": factory}
        if "kafka" in self._sockets or "kafka_tls" in self._sockets:
            apis = self._kafka_apis()
            for name, advertised in (
                ("kafka", settings.kafka_advertised),
                ("kafka_tls", settings.kafka_tls_advertised),
            ):
                factories[name] = partial(ServerProtocol, self._kafka(apis, advertised), self._protocols)
        for name, sock in self._sockets.items():
            address = bound_address(sock)
            self.addresses[name] = (address.host, address.port)
            if name in factories:
                context = tls_context(settings) if name in TLS_LISTENERS else None
                # The connection's own handshake begins when that of TLS is done.
                timeout_s = settings.handshake_timeout_ms / 1000 if context is not None else None
                server = await loop.create_server(
                    factories[name], sock=sock, ssl=context, backlog=LISTEN_BACKLOG, ssl_handshake_timeout=timeout_s
                )
                self._servers.append(server)
        if "kafka" in self.addresses and settings.kafka_login == "optional":
            self._tell_of_refused_clients()
        self._admin = administration(self.broker, settings, self._sockets.get("admin"), lambda: self.addresses)
        self._admin.start()

    def _kafka_apis(self) -> kafka.ApiTable:
        # Its messages take a while to import: that is over before the first client comes, or goes on beside it.
        self._run_blocking(kafka.warm_up, _nothing)
        return kafka.load(self.settings.connections_max)

    def _kafka(self, apis: kafka.ApiTable, advertised: ListenAddress | None) -> Callable[[Transport], KafkaConnection]:
        """What makes a connection of a Kafka client, which is told to connect where `advertised` says."""
        settings = self.settings
        kafka_settings = KafkaSettings(
            settings.kafka_user,
            settings.kafka_vhost,
            settings.kafka_request_bytes_max,
            settings.kafka_auto_create_topics,
            settings.kafka_partitions,
            (advertised.host, advertised.port) if advertised is not None else None,
            self.broker.cluster_id,
            settings.kafka_login == "required",
            settings.handshake_timeout_ms,
            settings.certificate_login(),
        )

        def connect(transport: Transport) -> KafkaConnection:
            return KafkaConnection(self.broker, transport, kafka_settings, apis)

        return connect

    def _tell_of_refused_clients(self) -> None:
        """Log where no client of Kafka's, or none from elsewhere, can come in without a login: all that such a client
        is told is that its connection is closed."""
        settings, access = self.settings, self.broker.access
        who = "Kafka's clients"
        try:
            access.check_vhost(settings.kafka_user, settings.kafka_vhost)
            if not is_loopback(self.addresses["kafka"][0]):
                who = "Kafka's clients on other machines"
                access.check_address(settings.kafka_user, None)
        except PeerError as error:
            logger.warning("%s are refused unless they log in: %s", who, error)

    # --- What the core needs done elsewhere -------------------------------------------------------------------------

    def _run_blocking(self, task: Callable[[], object], done: Callable[[object], None]) -> None:
        """Run `task` on a thread, and `done` with its result on the loop; an error counts as the result None."""
        if self._threads is None or self._stopping:
            return
        loop = asyncio.get_running_loop()

        def run() -> None:
            try:
                result = task()
            except Exception:
                logger.exception("a task on a thread failed")
                result = None
            _post(loop, partial(done, result))

        self._threads.submit(run)

    def _sync_due(self) -> None:
        """Make durable what nobody waits for."""
        if self._stopping or self._journal is None or self._catalog is None:
            return
        # At the end of the turn: what it has told the journal so far may be a part of what has this turn's number.
        self.broker.ledger.sync_wanted = True
        self.broker.turn.touch()
        self._run_blocking(self._catalog.sync, _nothing)
        self.broker.clock.call_later(self.settings.journal_sync_interval_ms, self._sync_due)

    def _keep_house(self) -> None:
        """What is looked after from time to time."""
        if self._stopping:
            return
        broker = self.broker
        if not self.settings.memory:
            self._check_disk()
        self._rounds += 1
        if self._rounds % ALARM_LOG_ROUNDS == 0:
            broker.alarms.interval_passed()
        if self._rounds % HEAP_ROUNDS == 0:
            self._heap.look()
        broker.keep_house()
        broker.clock.call_later(HOUSEKEEPING_MS, self._keep_house)

    def _check_disk(self) -> None:
        broker = self.broker
        try:
            free = self._filesystem.free_bytes(self._folder)
        except OSError as error:
            logger.error("free disk space is not known: %s", error)
            free = self.settings.disk_free_min
        if free < self.settings.disk_free_min:
            broker.alarms.raise_alarm(ALARM_DISK)
        elif not broker.commits.is_blocked:
            broker.alarms.clear_alarm(ALARM_DISK)

    # --- Stopping ---------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Tell the clients, write what is not written, and close. Safe at any time, also after a failed start."""
        if self._stopping:
            return
        self._stopping = True
        for server in self._servers:
            server.close()
        if self._admin is not None:
            await self._admin.stop()
        # Those that nobody has taken over yet; closing one of the others again changes nothing.
        for sock in self._sockets.values():
            sock.close()
        await self._close_connections()
        if self._broker is not None:
            self._broker.transactions.stop()
            self._broker.groups.stop()
            self._broker.shares.stop()
            self._broker.turn.end()
            await self._last_checkpoint()
        if self._journal is not None:
            await asyncio.to_thread(self._journal.close)
        if self._store is not None:
            await asyncio.to_thread(self._store.close)
        if self._threads is not None:
            self._threads.shutdown(wait=True)
        if self._catalog is not None:
            self._catalog.close()
        if self._lock is not None:
            self._lock.close()
        self.addresses.clear()

    async def _close_connections(self) -> None:
        for protocol in list(self._protocols):
            protocol.close_by_operator("broker forced connection closure with reason 'shutdown'")
        if self._broker is not None:
            self._broker.turn.end()
        for _ in range(CLOSE_GRACE_MS // 10):
            if not self._protocols:
                return
            await asyncio.sleep(0.01)
        for protocol in list(self._protocols):
            protocol.abort()
        await asyncio.sleep(0)

    async def _last_checkpoint(self) -> None:
        """Leave little to replay. Bounded: a kill would lose nothing either."""
        checkpointer = self._checkpointer
        if checkpointer is None or self._journal is None or self._journal.failure is not None:
            return
        if ALARM_STORAGE in self.broker.alarms.reasons:
            return
        if await self._is_checkpointed(checkpointer):
            checkpointer.begin(clean=True)
            await self._is_checkpointed(checkpointer)

    async def _is_checkpointed(self, checkpointer: Checkpointer) -> bool:
        """Wait for the checkpoint that is under way, if any; False when it takes too long."""
        for _ in range(CLOSE_GRACE_MS // 10):
            if not checkpointer.running:
                return True
            await asyncio.sleep(0.01)
        return False


def _post(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    # A thread may finish after the loop has been closed; then there is nobody left to tell.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(callback)


def _group_settings(settings: Settings) -> GroupSettings:
    return replace(
        DEFAULT_SETTINGS,
        session_timeout_min_ms=settings.group_session_timeout_min_ms,
        session_timeout_max_ms=settings.group_session_timeout_max_ms,
        initial_rebalance_delay_ms=settings.group_initial_rebalance_delay_ms,
        members_max=settings.group_members_max,
        consumer_session_timeout_ms=settings.group_consumer_session_timeout_ms,
        consumer_heartbeat_interval_ms=settings.group_consumer_heartbeat_interval_ms,
        consumer_migration_policy=settings.group_consumer_migration_policy,
        share_session_timeout_ms=settings.group_share_session_timeout_ms,
        share_heartbeat_interval_ms=settings.group_share_heartbeat_interval_ms,
        share_members_max=settings.group_share_members_max,
        share_lock_duration_min_ms=settings.group_share_min_record_lock_duration_ms,
        share_lock_duration_max_ms=settings.group_share_max_record_lock_duration_ms,
        offsets_retention_ms=settings.offsets_retention_minutes * MINUTE_MS,
    )


def _nothing(result: object) -> None:
    pass
