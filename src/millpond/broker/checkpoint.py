"""Checkpoints: what lets old journal files go.

    roll the journal -> write pages, or carry messages forward -> sync the logs -> write the snapshot -> drop files

A message that is still in a queue when its journal file is to go is written to the queue's log, or, where a queue has
little, again to the new journal file: a hundred logs would mean a hundred fsyncs. From half of a journal file on, full
pages are written a few at a time, so that a checkpoint finds little left to do.

If anything fails, the old files stay and the next checkpoint tries again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from millpond.base.filesystem import Filesystem
from millpond.base.limits import (
    CARRY_FORWARD_BYTES,
    CHECKPOINT_RETRY_MS,
    PAGES_TRICKLED_PER_TURN,
    PAGES_WRITING_MAX,
    QUEUES_TRICKLED_PER_TURN,
)
from millpond.broker.broker import Broker
from millpond.broker.queues.page import Page
from millpond.broker.queues.queue import Queue
from millpond.broker.snapshot import QueueState, encode_snapshot

if TYPE_CHECKING:
    from millpond.storage.journal import Journal

logger = logging.getLogger(__name__)

FOLDER: Final = "checkpoints"


def snapshot_path(folder: str, first_file: int) -> str:
    """The path of the snapshot that goes with the journal from `first_file` on."""
    return f"{folder}/{FOLDER}/{first_file:020d}.checkpoint"


class Checkpointer:
    """Makes checkpoints of one broker, one at a time."""

    def __init__(self, broker: Broker, journal: Journal, filesystem: Filesystem, folder: str, file_bytes: int) -> None:
        self._broker = broker
        self._journal = journal
        self._filesystem = filesystem
        self._folder = folder
        self._file_bytes = file_bytes
        self._first_file = 0
        self._clean = False
        self._states: list[QueueState] = []
        self._awaited: list[Page] = []
        # Pages are still on their way to their places.
        self._collecting = False
        self._cursor = 0
        self._not_before_ms = 0
        self.running = False
        self.completed_total = 0
        broker.store.on_written = self._page_written
        broker.turn.commits.append(self.end_turn)

    def end_turn(self) -> None:
        """At the end of every turn: begin a checkpoint where one is due."""
        used = self._journal.file_used_bytes
        if used * 2 < self._file_bytes or self.running or self._journal.failure is not None:
            return
        if used < self._file_bytes:
            self._trickle()
        elif self._broker.clock.monotonic_ms() >= self._not_before_ms:
            self.begin()

    def begin(self, clean: bool = False) -> None:
        """Begin a checkpoint. `clean` says that nothing will happen after it."""
        broker = self._broker
        ledger = broker.ledger
        self.running = True
        self._clean = clean
        # What this turn has told the ledger so far is part of the state below, so it belongs to the old file.
        ledger.flush()
        queues = [queue for queue in broker.all_queues() if queue.recoverable]
        carry_bytes = min(CARRY_FORWARD_BYTES, self._file_bytes // 4 // max(1, len(queues)))
        for queue in queues:
            self._write_pages(queue, carry_bytes)
        self._first_file = int(self._journal.roll())
        for queue in queues:
            self._carry_forward(queue)
        ledger.end_turn()
        self._states = [QueueState(queue) for queue in queues]
        self._awaited = [state.page for queue_state in self._states for state in queue_state.pages]
        self._collecting = True
        self._page_written()

    def _write_pages(self, queue: Queue, carry_bytes: int) -> None:
        unwritten = 0
        for page in queue.pages:
            if page.persistent > 0 and page.place is None and not page.writing:
                unwritten += int(page.live_bytes)
        if unwritten > carry_bytes:
            queue.seal_tail()
            for page in queue.pages[:-1]:
                if page.persistent > 0:
                    self._broker.store.write(queue, page)

    def _carry_forward(self, queue: Queue) -> None:
        ledger = self._broker.ledger
        for page in queue.pages:
            if page.persistent > 0 and page.place is None and not page.writing:
                for slot in page.entries:
                    if slot is not None and slot.message.properties.persistent:
                        ledger.carried(slot.message, queue, slot.offset)
                ledger.flush_large()

    def _trickle(self) -> None:
        """Write a few full pages that consumers will not reach soon."""
        store = self._broker.store
        queues = [queue for queue in self._broker.all_queues() if queue.recoverable and len(queue.pages) > 2]
        if not queues or store.writes_under_way >= PAGES_WRITING_MAX:
            return
        written = 0
        for _ in range(min(len(queues), QUEUES_TRICKLED_PER_TURN)):
            self._cursor = (self._cursor + 1) % len(queues)
            queue = queues[self._cursor]
            for page in queue.pages[int(queue.head) + 1 : -1]:
                if page.persistent > 0 and page.place is None and store.write(queue, page):
                    written += 1
                    if written >= PAGES_TRICKLED_PER_TURN:
                        return

    def _page_written(self) -> None:
        """One of the pages that the snapshot speaks of may have found its place."""
        if not self._collecting:
            return
        self._awaited = [page for page in self._awaited if page.place is None]
        if any(not page.writing for page in self._awaited):
            self._failed("a page could not be written")
        elif not self._awaited:
            self._collecting = False
            states, self._states = self._states, []
            sync = self._broker.store.sync_task()
            self._broker.store.run_on_writer(partial(self._store, sync, states), self._ended)

    def _store(self, sync: Callable[[], None], states: list[QueueState]) -> None:
        """On the writing thread: make the logs durable, then the snapshot that relies on them."""
        sync()
        content = encode_snapshot(self._first_file, self._clean, states)
        self._filesystem.mkdirs(f"{self._folder}/{FOLDER}")
        path = snapshot_path(self._folder, self._first_file)
        self._filesystem.write_bytes_atomically(path, content)
        for name in self._filesystem.list(f"{self._folder}/{FOLDER}"):
            older = f"{self._folder}/{FOLDER}/{name}"
            if older < path:
                self._filesystem.remove(older)

    def _ended(self, error: BaseException | None) -> None:
        if error is not None:
            self._failed(str(error))
            return
        self.running = False
        self.completed_total += 1
        self._journal.drop_before(self._first_file)
        self._broker.store.trim(True)

    def _failed(self, why: str) -> None:
        logger.error("the checkpoint failed and will be tried again: %s", why)
        self.running = False
        self._collecting = False
        self._states = []
        self._awaited = []
        self._not_before_ms = self._broker.clock.monotonic_ms() + CHECKPOINT_RETRY_MS
