"""Checkpoints: what lets old journal files go.

    write pages, a few a turn -> roll the journal, and carry what is left forward
        -> wait for the pages and the journal -> sync the logs -> write the snapshot -> drop files, trim logs

A message that is still in a queue when its journal file is to go is written to the queue's log, or, where a queue has
little, again to the new journal file: a hundred logs would mean a hundred fsyncs. The pages are written ahead, a
bounded amount per turn, so that the turn in which the journal is rolled finds little left to do.

The snapshot is the state at the moment of the roll. It makes the old files useless, so it may not be written before
all that is after the roll, what was carried forward above all, is durable. For the same reason logs are trimmed by
what the snapshot needs, not by what queues need by now: a settlement since then may yet be lost with the power.

If anything fails, the old files stay and the next checkpoint tries again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from mypy_extensions import i64

from millpond.base.errors import StorageFailed
from millpond.base.filesystem import Filesystem
from millpond.base.limits import (
    CARRY_FORWARD_BYTES,
    CHECKPOINT_PAGES_PER_TURN,
    CHECKPOINT_RETRY_MS,
    CHECKPOINT_SETTLED_BYTES,
    CHECKPOINT_SETTLED_MS,
    QUEUES_PAGED_PER_TURN,
)
from millpond.broker.broker import Broker
from millpond.broker.commits import ALARM_DISK, ALARM_STORAGE, CommitWaiter
from millpond.broker.keepers import KeeperState
from millpond.broker.queues.backlog import Backlog
from millpond.broker.queues.page import Page
from millpond.broker.snapshot import QueueState, StreamState, encode_snapshot
from millpond.broker.streams.partition import Partition

if TYPE_CHECKING:
    from millpond.storage.journal import Journal

logger = logging.getLogger(__name__)

FOLDER: Final = "checkpoints"
SUFFIX: Final = ".checkpoint"

# What a message takes in the journal besides its body: routing key, properties, and lengths.
RECORD_OVERHEAD_BYTES: Final = 64


def snapshot_path(folder: str, first_file: int) -> str:
    """The path of the snapshot that goes with the journal from `first_file` on."""
    return f"{folder}/{FOLDER}/{first_file:020d}{SUFFIX}"


class Checkpointer(CommitWaiter):
    """Makes checkpoints of one broker, one at a time."""

    def __init__(self, broker: Broker, journal: Journal, filesystem: Filesystem, folder: str, file_bytes: int) -> None:
        self._broker = broker
        self._journal = journal
        self._filesystem = filesystem
        self._folder = folder
        self._file_bytes = file_bytes
        # Queues whose pages are still to be written ahead of the next checkpoint, in which round: the first begins when
        # half of a file is used, and the second, which finds what has come meanwhile, when all of it is.
        self._ahead: list[Backlog] = []
        self._round = 0
        # What a queue may have unwritten at the roll, to be carried forward.
        self._carry_bytes = 0
        # The last queue of `_ahead` has been looked at before: it has more pages than one turn writes.
        self._is_continued = False
        self._first_file = 0
        self._clean = False
        self._states: list[QueueState] = []
        self._stream_states: list[StreamState] = []
        self._keeper_states: list[tuple[int, Sequence[KeeperState]]] = []
        self._trimmable: dict[int, Backlog] = {}
        # Pages that are still on their way to their places, and the commit that covers what was carried forward.
        self._awaited: dict[Page, None] = {}
        self._awaited_streams: dict[Partition, StreamState] = {}
        self._awaited_commit = 0
        self._collecting = False
        # Known to the commits as somebody who waits.
        self._is_waiting = False
        self._not_before_ms = 0
        self.running = False
        self.completed_total = 0
        self._ended_ms = broker.clock.monotonic_ms()
        broker.store.on_written = self._page_written
        broker.streams.on_written = self._stream_written
        broker.turn.commits.append(self.end_turn)

    def end_turn(self) -> None:
        """At the end of every turn: prepare a checkpoint that will be due soon, begin one that is due."""
        used = self._journal.file_used_bytes
        is_due = used >= self._file_bytes or self._has_to_free_disk() or self._is_wanted_by_streams()
        if not is_due and used * 2 < self._file_bytes:
            return
        if self.running or self._journal.failure is not None:
            return
        if self._broker.clock.monotonic_ms() < self._not_before_ms:
            return
        if not self._ahead and self._round < (2 if is_due else 1):
            self._round += 1
            self._ahead = self._queues()
            self._is_continued = False
        if self._ahead and used < self._file_bytes * 2:
            self._write_ahead()
        elif is_due:
            self.begin()

    def _has_to_free_disk(self) -> bool:
        """Whether logs hold so much that is settled, or hold it for so long, that it is time to give the disk back."""
        settled = self._broker.store.settled_bytes
        if settled == 0:
            return False
        if settled >= CHECKPOINT_SETTLED_BYTES or ALARM_DISK in self._broker.alarms.reasons:
            return True
        return self._broker.clock.monotonic_ms() - self._ended_ms >= CHECKPOINT_SETTLED_MS

    def _is_wanted_by_streams(self) -> bool:
        """Whether compaction waits for one."""
        wanted = self._broker.streams.checkpoint_wanted
        return wanted and self._broker.clock.monotonic_ms() - self._ended_ms >= CHECKPOINT_SETTLED_MS

    def _queues(self) -> list[Backlog]:
        """The queues that a snapshot speaks of: of one that never had a message there is nothing to say. Sets what each
        of them may have carried forward."""
        queues = [queue for queue in self._broker.all_backlogs() if queue.recoverable and queue.next_offset > 0]
        filled = sum(1 for queue in queues if queue.tail.live > 0 or len(queue.pages) > 1)
        filled += sum(1 for partition in self._broker.streams.partitions() if partition.unwritten_bytes > 0)
        self._carry_bytes = min(CARRY_FORWARD_BYTES, self._file_bytes // 4 // max(1, filled))
        return queues

    def _write_ahead(self) -> None:
        """Write pages of some queues: full ones in the first round, and in the second also those that are being filled
        and have too much to be carried forward."""
        store = self._broker.store
        pages_max = min(CHECKPOINT_PAGES_PER_TURN, store.free_writes())
        if store.resting:
            # A disk that takes no pages does not keep the journal from being rolled.
            self._ahead = []
        for _ in range(QUEUES_PAGED_PER_TURN):
            if not self._ahead or pages_max <= 0:
                break
            queue = self._ahead[-1]
            written = 0
            if not queue.deleted:
                if self._round == 2 and not self._is_continued and self._unwritten_bytes(queue) > self._carry_bytes:
                    queue.seal_tail()
                written = self._write_pages(queue, pages_max)
            pages_max -= written
            self._is_continued = written > 0 and pages_max == 0
            if not self._is_continued:
                self._ahead.pop()
        if store.free_writes() > 0:
            # There may be no other reason for a next turn. Otherwise a page that has been written is one.
            self._broker.turn.touch()

    def _write_pages(self, queue: Backlog, pages_max: int) -> int:
        """Write closed pages up to the last one that has persistent messages. How many."""
        store = self._broker.store
        first = store.first_unwritten(queue)
        last = len(queue.pages) - 2
        while last >= first and queue.pages[last].persistent == 0:
            last -= 1
        written = 0
        for index in range(first, min(last + 1, first + pages_max)):
            if not store.write(queue, queue.pages[index]):
                break
            written += 1
        return written

    def begin(self, clean: bool = False) -> None:
        """Begin a checkpoint. `clean` says that nothing will happen after it."""
        broker = self._broker
        ledger = broker.ledger
        self.running = True
        self._round = 0
        self._ahead = []
        self._clean = clean
        # What this turn has told the ledger so far is part of the state below, so it belongs to the old file.
        ledger.flush()
        queues = self._queues()
        for queue in queues:
            # Twice as much, for what has come since the page that was being filled was written ahead.
            if self._unwritten_bytes(queue) > self._carry_bytes * 2:
                queue.seal_tail()
                self._write_pages(queue, len(queue.pages))
        partitions = self._partitions()
        for partition in partitions:
            if partition.unwritten_bytes > self._carry_bytes * 2:
                broker.streams.write(partition, everything=True)
        self._first_file = int(self._journal.roll())
        for queue in queues:
            self._carry_forward(queue)
        for partition in partitions:
            partition.carry_forward()
        ledger.end_turn()
        self._journal.submit(True)
        self._awaited_commit = int(self._journal.sequence) - 1
        self._trimmable = broker.store.take_trimmable()
        self._states = [QueueState(queue) for queue in queues]
        self._awaited = {
            state.page: None for queue_state in self._states for state in queue_state.pages if state.page.place is None
        }
        broker.streams.checkpoint_wanted = False
        self._stream_states = [StreamState(partition) for partition in partitions]
        self._awaited_streams = {
            state.partition: state for state in self._stream_states if state.partition.written_end < state.log_end
        }
        self._keeper_states = [(keeper.change, keeper.capture()) for keeper in broker.keepers]
        self._collecting = True
        if not self._is_waiting:
            self._is_waiting = True
            broker.commits.wait(self)

    def _partitions(self) -> list[Partition]:
        """The streams that a snapshot speaks of."""
        return [partition for partition in self._broker.streams.partitions() if partition.end_offset > 0]

    def _unwritten_bytes(self, queue: Backlog) -> int:
        unwritten = 0
        for index in range(self._broker.store.first_unwritten(queue), len(queue.pages)):
            page = queue.pages[index]
            if page.persistent > 0:
                unwritten += int(page.live_bytes + page.live * RECORD_OVERHEAD_BYTES)
        return unwritten

    def _carry_forward(self, queue: Backlog) -> None:
        ledger = self._broker.ledger
        for index in range(self._broker.store.first_unwritten(queue), len(queue.pages)):
            page = queue.pages[index]
            if page.persistent > 0:
                ledger.carried(queue, page.entries)
                ledger.flush_large()

    # --- Until all that the snapshot relies on is there -------------------------------------------------------------

    def committed(self, durable_sequence: i64) -> bool:
        if self._collecting and durable_sequence >= self._awaited_commit:
            self._awaited_commit = 0
            self._go_on()
        self._is_waiting = self._collecting and self._awaited_commit > 0
        return self._is_waiting

    def commit_failed(self) -> None:
        self._is_waiting = False
        if self._collecting:
            self._failed("the journal cannot be written")

    def _page_written(self, page: Page) -> None:
        if page in self._awaited:
            if page.place is None:
                self._failed("a page could not be written")
            else:
                del self._awaited[page]
                self._go_on()

    def _stream_written(self, partition: Partition) -> None:
        state = self._awaited_streams.get(partition)
        if state is None:
            return
        if partition.deleted or partition.written_end >= state.log_end:
            del self._awaited_streams[partition]
            self._go_on()
        elif partition.log_end < state.log_end:
            # What could not be written is no longer counted as being in the log, or on its way to it.
            self._failed("a stream could not be written")

    def _go_on(self) -> None:
        if self._collecting and not self._awaited and not self._awaited_streams and self._awaited_commit == 0:
            self._collecting = False
            sync = self._broker.store.sync_task()
            task = partial(self._store, sync, self._states, self._stream_states, self._keeper_states)
            self._broker.store.run_on_writer(task, self._ended)

    def _store(
        self,
        sync: Callable[[], None],
        states: list[QueueState],
        streams: list[StreamState],
        keepers: list[tuple[int, Sequence[KeeperState]]],
    ) -> None:
        """On the writing thread: make the logs durable, then the snapshot that relies on them."""
        sync()
        records = [(change, record) for change, kept in keepers for state in kept for record in state.records()]
        content = encode_snapshot(self._first_file, self._clean, states, streams, records)
        self._filesystem.mkdirs(f"{self._folder}/{FOLDER}")
        path = snapshot_path(self._folder, self._first_file)
        self._filesystem.write_bytes_atomically(path, content)
        for name in self._filesystem.list(f"{self._folder}/{FOLDER}"):
            older = f"{self._folder}/{FOLDER}/{name}"
            if older < path and older.endswith((SUFFIX, SUFFIX + ".tmp")):
                self._filesystem.remove(older)

    def _ended(self, error: BaseException | None) -> None:
        if error is not None:
            if isinstance(error, StorageFailed):
                # What is in the logs is unknown from here on, and only the journal's old files still have it all: they
                # stay, and so would all that are still to come.
                self._broker.alarms.raise_alarm(ALARM_STORAGE)
            self._failed(str(error))
            return
        self.running = False
        self.completed_total += 1
        self._ended_ms = self._broker.clock.monotonic_ms()
        self._journal.drop_before(self._first_file)
        store = self._broker.store
        for state in self._states:
            if int(state.log_id) in self._trimmable:
                store.trim_to(state.queue, int(state.first_needed))
        for stream in self._stream_states:
            stream.partition.checkpointed(stream.log_end)
        self._states = []
        self._stream_states = []
        self._keeper_states = []
        self._trimmable = {}

    def _failed(self, why: str) -> None:
        logger.error("the checkpoint failed and will be tried again: %s", why)
        self.running = False
        self._collecting = False
        self._states = []
        self._stream_states = []
        self._keeper_states = []
        self._awaited = {}
        self._awaited_streams = {}
        self._awaited_commit = 0
        self._broker.store.give_back_trimmable(self._trimmable)
        self._trimmable = {}
        self._not_before_ms = self._broker.clock.monotonic_ms() + CHECKPOINT_RETRY_MS
