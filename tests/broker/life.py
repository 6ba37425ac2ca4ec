"""A broker's core on a disk of the test's own, with the test in place of the event loop.

A `Life` is one process's worth of broker: recovered, run, and ended by a clean stop, a kill or a power cut. What
threads post is run by `pump`; nothing else happens between two calls of the test.
"""

from __future__ import annotations

import json
import queue as queues
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from millpond.base.clock import ManualClock
from millpond.base.filesystem import Filesystem
from millpond.broker.access import Access
from millpond.broker.broker import DEFAULT_VHOST, Broker
from millpond.broker.checkpoint import Checkpointer
from millpond.broker.commits import Alarms, Commits, CommitWaiter
from millpond.broker.ledger import Ledger
from millpond.broker.memory import MemoryBudget
from millpond.broker.message import PROPERTIES_FORMATS, Address, Message, Properties
from millpond.broker.queues import backlog, page_store, pager
from millpond.broker.queues.backlog import Backlog
from millpond.broker.queues.consumer import Consumer
from millpond.broker.queues.entry import Entry
from millpond.broker.queues.message_queue import MessageQueue
from millpond.broker.queues.page import Page
from millpond.broker.queues.page_codec import decode_page
from millpond.broker.queues.page_store import PageStore
from millpond.broker.queues.queue import Queue
from millpond.broker.recovery import Recovery
from millpond.broker.streams import stream_store
from millpond.broker.streams.partition import Partition
from millpond.broker.streams.record_messages import RecordMessages
from millpond.broker.streams.stream_queue import StreamQueue
from millpond.broker.turn import Turn
from millpond.broker.vhost import VirtualHost
from millpond.catalog.catalog import Catalog
from millpond.storage.journal import Journal
from millpond.storage.journal_recovery import JournalReport

DATA = "/data"
DEADLINE_S = 20.0
HOUSEKEEPING_S = 1.0
FORMAT = 31
KIB = 1024
MIB = 1024 * KIB


class PlainProperties(Properties):
    """Properties of a protocol that only these tests speak."""

    def __init__(self, persistent: bool, expiration_ms: int, headers: dict[str, object], priority: int = 0) -> None:
        raw = json.dumps([persistent, expiration_ms, headers, priority], default=str).encode()
        super().__init__(FORMAT, raw, persistent, priority, expiration_ms)
        self._headers = headers

    def headers(self) -> dict[str, object]:
        return dict(self._headers)

    def described(self) -> dict[str, object]:
        return {"headers": self.headers()}

    def replaced(self, headers: dict[str, object], keep_expiration: bool) -> PlainProperties:
        merged = {**self._headers, **headers}
        kept = {name: value for name, value in merged.items() if value is not None}
        expiration_ms = int(self.expiration_ms) if keep_expiration else -1
        return PlainProperties(self.persistent, expiration_ms, kept, self.priority)


def _decode(raw: bytes) -> Properties:
    return PlainProperties(*json.loads(raw))


PROPERTIES_FORMATS[FORMAT] = _decode


class Inbox(Consumer):
    """A consumer that keeps what it gets."""

    def __init__(self, queue: MessageQueue, prefetch: int = 0, **arguments: object) -> None:
        super().__init__(queue, "inbox", prefetch, True, False)
        self.arguments = {f"x-stream-{key.replace('_', '-')}": value for key, value in arguments.items()}
        # What a stream delivered: by the time that it is looked at, the entries no longer have it.
        self.received: list[tuple[int, int]] = []
        self.entries: list[Entry] = []

    def deliver(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.received.append((int(entry.offset), number_of(entry.message)))

    def queue_deleted(self) -> None:
        self.entries = []

    def take(self) -> list[Entry]:
        entries, self.entries = self.entries, []
        return entries


class Told(CommitWaiter):
    """Remembers what was reported durable, as a publisher would be told."""

    def __init__(self) -> None:
        self.durable = 0
        self.has_failed = False

    def committed(self, durable_sequence: int) -> bool:
        assert not self.has_failed, "nothing is durable after a failure"
        self.durable = int(durable_sequence)
        return True

    def commit_failed(self) -> None:
        self.has_failed = True


def number_of(message: Message) -> int:
    """The number in a body made by `Life.publish`."""
    return int(message.body.split(b" ")[0])


class Life:
    """One process's worth of broker, recovered from `disk` and from the catalog in the folder `catalog`."""

    def __init__(
        self,
        disk: Filesystem,
        catalog: Path,
        *,
        budget: int = 64 * MIB,
        file_bytes: int = MIB,
        clock: ManualClock | None = None,
    ) -> None:
        self.disk = disk
        self.catalog_folder = catalog
        self.clock = clock or ManualClock()
        self.posted: queues.SimpleQueue[Callable[[], None]] = queues.SimpleQueue()
        self._scheduled: list[Callable[[], None]] = []
        self.turn = Turn(self._scheduled.append)
        self.turn.now_ms = self.clock.wall_ms()
        self.alarms = Alarms()
        self.commits = Commits(self.alarms)
        self.memory = MemoryBudget(budget)
        catalog.mkdir(parents=True, exist_ok=True)
        self.catalog = Catalog(catalog / "catalog.sqlite")
        self.catalog.open()
        self.store = PageStore(disk, DATA, self.posted.put)
        self.ledger = Ledger()
        self.broker = Broker(
            self.turn, self.clock, self.ledger, self.memory, self.store, self.catalog, Access(self.catalog),
            self.alarms, self.commits, lambda task, done: done(task()),
        )  # fmt: skip
        restored = self.broker.restore(self.catalog.load())
        if self.catalog.created:
            self.broker.create_vhost(DEFAULT_VHOST)
            self.catalog.commit()
        # Private, but there is no other way to tell that nothing has changed since the last copy.
        self._catalog_synced = self.catalog._commits
        self._catalog_guard = threading.Lock()
        copy_catalog(catalog, self.durable_catalog)
        disk.mkdirs(DATA)
        self.store.delete_leftovers(self.broker.log_ids())
        recovery = Recovery(disk, DATA, restored, self.broker.streams.partitions(), self.broker.keepers, self.store)
        self.report: JournalReport = recovery.run()
        self.catalog.use_queue_ids_above(recovery.log_id_max)
        self.journal = Journal(
            disk, f"{DATA}/journal", self.report.next_file, self.posted.put, self.commits, file_bytes,
            self.sync_catalog, retry_ms=1,
        )  # fmt: skip
        self.ledger.journal = self.journal
        self.checkpointer = Checkpointer(self.broker, self.journal, disk, DATA, file_bytes)
        self.told = Told()
        self.commits.wait(self.told)
        self._batches: dict[Page, list[tuple[int, int, bool]]] = {}
        # What reading a stream here has found, and reading it as consumers do would have logged.
        self.damages: list[str] = []
        self._stream_batches: dict[tuple[int, int], tuple[int, list[tuple[int, int]]]] = {}
        self.checkpoint_wanted = recovery.checkpoint_wanted

    # --- The event loop ---------------------------------------------------------------------------------------------

    def end_turn(self) -> None:
        """End the turn, and the next ones that it asks for, up to a bound."""
        for _ in range(50):
            if not self._scheduled:
                return
            self._scheduled.clear()
            self.turn.end()

    def pump(self) -> None:
        """Run what threads have posted by now, as the event loop would."""
        while not self.posted.empty():
            self.posted.get()()
            self.end_turn()

    def pump_until(self, condition: Callable[[], bool], what: str = "it") -> None:
        """Be the event loop until the condition holds."""
        deadline = time.monotonic() + DEADLINE_S
        next_round = time.monotonic() + HOUSEKEEPING_S
        self.end_turn()
        while not condition():
            left = deadline - time.monotonic()
            assert left > 0, f"{what} did not happen in time"
            try:
                callback = self.posted.get(timeout=0.01)
            except queues.Empty:
                if time.monotonic() > next_round:
                    # As the node does.
                    self.broker.keep_house()
                    next_round += HOUSEKEEPING_S
                self.end_turn()
                continue
            callback()
            self.end_turn()

    def settle_down(self) -> None:
        """Until all that was begun is done: what is handed to the journal is durable, pages and checkpoints written."""
        self.end_turn()
        self.journal.submit(True)
        wanted = int(self.journal.sequence) - 1
        self.pump_until(
            lambda: (
                (self.told.durable >= wanted or self.told.has_failed)
                and not self.checkpointer.running
                and self.store.writes_under_way == 0
                and all(stream.writes_under_way == 0 for stream in self.broker.streams.partitions())
                and not any(page.loading for lane in self.broker.all_backlogs() for page in lane.pages)
            ),
            "quiet",
        )

    def checkpoint(self, clean: bool = False) -> None:
        """Make a checkpoint, and wait for it to be complete."""
        self.settle_down()
        completed = self.checkpointer.completed_total
        self.checkpointer.begin(clean)
        self.pump_until(lambda: not self.checkpointer.running, "the checkpoint")
        assert self.checkpointer.completed_total == completed + 1, "the checkpoint failed"
        self.settle_down()

    def sync_catalog(self) -> None:
        """What the journal does before its own sync. Keeps a copy of what a power cut would leave of the catalog."""
        commits = self.catalog._commits
        self.catalog.sync()
        if commits != self._catalog_synced:
            self._catalog_synced = commits
            with self._catalog_guard:
                copy_catalog(self.catalog_folder, self.durable_catalog)

    def copy_durable_catalog(self, target: Path) -> None:
        """What a power cut leaves of the catalog."""
        with self._catalog_guard:
            copy_catalog(self.durable_catalog, target)

    @property
    def durable_catalog(self) -> Path:
        return self.catalog_folder.with_name(self.catalog_folder.name + "-durable")

    # --- Ways to end ------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """A clean stop, as the node does it."""
        self.end_turn()
        self.pump_until(lambda: not self.checkpointer.running)
        self.checkpointer.begin(clean=True)
        self.pump_until(lambda: not self.checkpointer.running)
        self.abandon()

    def vanish(self) -> None:
        """The process is gone, or the machine, at whatever its threads were."""
        self.abandon()

    def abandon(self) -> None:
        """End the threads. What they still write to this disk is nobody's business."""
        self.broker.transactions.stop()
        self.broker.groups.stop()
        self.journal.close()
        self.store.close()
        self.catalog.close()

    # --- Doing things -----------------------------------------------------------------------------------------------

    @property
    def vhost(self) -> VirtualHost:
        return self.broker.vhost(DEFAULT_VHOST)

    def declare(self, name: str, durable: bool = True, **arguments: object) -> Queue:
        named = {f"x-{key.replace('_', '-')}": value for key, value in arguments.items()}
        declared = self.vhost.declare_queue(name, durable, False, False, named, None)
        assert isinstance(declared, Queue)
        return declared

    def queue(self, name: str) -> Queue:
        found = self.vhost.queues[name]
        assert isinstance(found, Queue)
        return found

    def declare_stream(self, name: str, **arguments: object) -> StreamQueue:
        named = {f"x-{key.replace('_', '-')}": value for key, value in arguments.items()}
        declared = self.vhost.declare_queue(name, True, False, False, {"x-queue-type": "stream", **named}, None)
        assert isinstance(declared, StreamQueue)
        return declared

    def stream(self, name: str) -> StreamQueue:
        found = self.vhost.find_queue(name)
        assert isinstance(found, StreamQueue)
        return found

    def publish(
        self,
        exchange: str,
        routing_key: str,
        number: int,
        *,
        size: int = 0,
        persistent: bool = True,
        expiration_ms: int = -1,
        priority: int = 0,
        properties: Properties | None = None,
    ) -> None:
        """Publish a message whose body begins with `number`. It is handed over with the end of the turn."""
        self.turn.now_ms = self.clock.wall_ms()
        body = b"%d " % number
        body += b"x" * max(0, size - len(body))
        target = self.vhost.exchange(exchange)
        properties = properties or PlainProperties(persistent, expiration_ms, {}, priority)
        looked_at = properties if self.vhost.router.needs_headers(target) else None
        route = self.vhost.route(target, Address(exchange, routing_key), looked_at)
        self.vhost.publish(route, Message(route.address, properties, body, self.turn.now_ms))

    def fill(self, name: str, numbers: range, **options: int) -> None:
        """Publish many messages to one queue, a hundred a turn."""
        properties = PlainProperties(bool(options.pop("persistent", True)), -1, {})
        for number in numbers:
            self.publish("", name, number, properties=properties, **options)  # type: ignore[arg-type]
            if number % 100 == 99:
                self.end_turn()
                self.pump()
        self.end_turn()

    def drain(self, queue: Queue, *, prefetch: int = 0) -> list[int]:
        """Consume and acknowledge everything; the numbers in the order in which they came."""
        inbox = Inbox(queue, prefetch)
        queue.add_consumer(inbox)
        numbers: list[int] = []

        def is_empty() -> bool:
            for entry in inbox.take():
                numbers.append(number_of(entry.message))
                queue.settle(entry)
            self.end_turn()
            return queue.ready == 0 and not inbox.entries

        self.pump_until(is_empty, f"the end of {queue.name}")
        queue.remove_consumer(inbox)
        return numbers

    def replay(
        self, stream: StreamQueue, *, prefetch: int = 10, until: int = -1, **arguments: object
    ) -> list[tuple[int, int]]:
        """Consume a stream, from its beginning unless `offset` says otherwise, up to its end or the offset `until`:
        (offset, number) as they came."""
        inbox = Inbox(stream, prefetch, **{"offset": "first", **arguments})
        stream.check_consumer(inbox, False)
        stream.add_consumer(inbox)
        log = log_of(stream)
        end = int(log.end_offset) if until < 0 else until

        def has_all() -> bool:
            for entry in inbox.take():
                stream.settle(entry)
            self.end_turn()
            cursor = stream._cursors[inbox]
            return cursor.next_offset >= end and not inbox.entries

        self.ledger.sync_wanted = True
        self.pump_until(has_all, f"the end of {stream.name}")
        stream.remove_consumer(inbox)
        return inbox.received

    # --- Looking ----------------------------------------------------------------------------------------------------

    def contents(self, queue: Queue) -> list[tuple[int, int, bool]]:
        """(offset, number, persistent) of every message that is not settled, without changing anything."""
        return [described for lane in queue.backlogs() for described in self.contents_of(lane)]

    def contents_of(self, lane: Backlog) -> list[tuple[int, int, bool]]:
        """The same of one lane."""
        found: list[tuple[int, int, bool]] = []
        for page in lane.pages:
            if page.resident:
                found += [_described(slot.offset, slot.message) for slot in page.entries if slot is not None]
                continue
            if page not in self._batches:
                assert page.place is not None, "a page is neither in memory nor in the log"
                offsets, messages = decode_page(self.store._log(lane).read(page.place), page.end)
                self._batches[page] = [_described(*pair) for pair in zip(offsets, messages, strict=True)]
            found += [described for described in self._batches[page] if not page.is_settled_at(described[0])]
        return found

    def stream_contents(self, stream: StreamQueue) -> list[tuple[int, int]]:
        """(offset, number) of all that a stream has, without changing anything."""
        log = log_of(stream)
        found: list[tuple[int, int]] = []
        offset = int(log.start_offset)
        while offset < log.end_offset:
            key = int(log.log_id), offset
            if key not in self._stream_batches:
                self._stream_batches[key] = self._read_stream(log, offset)
            offset, records = self._stream_batches[key]
            found += [record for record in records if record[0] >= log.start_offset]
        return found

    def _read_stream(self, log: Partition, offset: int) -> tuple[int, list[tuple[int, int]]]:
        batch = log.batch_at(offset)
        if batch is None:
            run = self.broker.streams.log(log).read_run(offset, 1)
            if run.damage:
                self.damages.append(str(run.damage))
            if not run.batches:
                return max(int(log.written_end), offset + 1), []
            data, end = run.batches[0], run.next_offset
        else:
            data, end = batch.data, int(batch.end_offset)
        records: list[tuple[int, int]] = []
        messages = RecordMessages(f"stream {log.name!r}")
        messages.open(data)
        while messages.next():
            records.append((int(messages.offset), number_of(messages.message)))
        return end, records

    def check_counts(self) -> None:
        """What queues and memory count must be what is there."""
        held: dict[int, int] = {}
        for queue in self.broker.all_queues():
            if isinstance(queue, StreamQueue):
                log = log_of(queue)
                held[id(log)] = sum(int(batch.memory_bytes) for batch in log.hot)
                assert sum(len(batch.data) for batch in log.hot) == log.hot_bytes
                continue
            assert isinstance(queue, Queue)
            contents = self.contents(queue)
            known = int(queue.ready + queue.delayed + queue.unsettled + queue.stuck)
            assert known == len(contents), f"{queue.name}: ready, unsettled"
            if queue.delayed == queue.unsettled == queue.stuck == 0:
                live_bytes = sum(int(page.live_bytes) for lane in queue.backlogs() for page in lane.pages)
                assert live_bytes == queue.ready_bytes, f"{queue.name}: bytes"
            for lane in queue.backlogs():
                self._check_pages(lane, held)
        for vhost in self.broker.vhosts.values():
            for holder in vhost.delay_queues.values():
                assert holder.delayed == len(self.contents_of(holder.backlog)), f"{holder.name}: delayed"
                self._check_pages(holder.backlog, held)
        assert sum(held.values()) + self.broker.streams._cached_bytes == self.memory.used, "memory"

    def _check_pages(self, lane: Backlog, held: dict[int, int]) -> None:
        name, pages = lane.name, lane.pages
        assert sum(int(page.live) for page in pages) == len(self.contents_of(lane)), f"{name}: live"
        assert all(page.live > 0 or page is lane.tail for page in pages), f"{name}: an empty page"
        assert [page.start for page in pages] == sorted({page.start for page in pages})
        assert sum(not page.resident for page in pages) == lane.pages_out, f"{name}: pages out"
        assert all(page.resident and page.place is not None for page in lane.kept), f"{name}: kept"
        resident = 0
        for page in pages:
            for slot in page.entries:
                if slot is not None:
                    size = len(slot.message.body) + len(slot.message.properties.raw) + 256
                    resident += size
                    held[id(slot.message)] = size
        assert resident == lane.resident_bytes, f"{name}: resident bytes"


def log_of(stream: StreamQueue) -> Partition:
    assert stream.partition is not None
    return stream.partition


def _described(offset: int, message: Message) -> tuple[int, int, bool]:
    return int(offset), number_of(message), bool(message.properties.persistent)


def copy_catalog(source: Path, target: Path) -> None:
    """What a database looks like to whoever opens it after its process has gone."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for name in ("catalog.sqlite", "catalog.sqlite-wal"):
        if (source / name).exists():
            shutil.copy(source / name, target / name)


def small_pages(monkeypatch: pytest.MonkeyPatch, messages: int = 8) -> None:
    """Have a few messages fill a page, and a few pages a segment, where the source runs uncompiled: compiled code has
    its limits built in, and the same tests then find larger pages."""
    monkeypatch.setattr(backlog, "PAGE_MESSAGES_MAX", messages)
    monkeypatch.setattr(page_store, "SEGMENT_BYTES", 4 * KIB)
    monkeypatch.setattr(pager, "TAIL_PAGED_BYTES_MIN", 1)
    monkeypatch.setattr(pager, "PAGES_AHEAD", 2)
    monkeypatch.setattr(backlog, "PAGES_AHEAD", 2)
    small_streams(monkeypatch)


def small_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `small_pages`, for what streams write, keep and read. The module that has these limits is not compiled."""
    monkeypatch.setattr(stream_store, "STREAM_UNWRITTEN_BYTES", 2 * KIB)
    monkeypatch.setattr(stream_store, "STREAM_TAIL_BYTES", KIB)
    monkeypatch.setattr(stream_store, "STREAM_SEGMENT_BYTES", 4 * KIB)
    monkeypatch.setattr(stream_store, "STREAM_SEGMENT_BYTES_MIN", KIB)
    monkeypatch.setattr(stream_store, "STREAM_WRITE_BYTES_MAX", 2 * KIB)
    monkeypatch.setattr(stream_store, "STREAM_READ_BYTES", 2 * KIB)
    monkeypatch.setattr(stream_store, "STREAM_CACHE_BYTES", 16 * KIB)
