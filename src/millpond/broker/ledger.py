"""What the journal is told of a turn: the messages that durable queues took, and those that were settled.

Messages that go to the same queues one after the other share a record batch. At the end of the turn all of it becomes
one frame, so that a publish, its dead-lettering and an acknowledgement of the same turn are recovered together or not
at all; where that would be more than recovery believes a frame to be, several frames that count as one. Without a
journal (a broker that keeps nothing) no queue is recoverable and nothing arrives here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from librt.strings import BytesWriter, write_i16_be, write_i32_be, write_i64_be
from mypy_extensions import i16, i32, i64, mypyc_attr, trait, u8

from millpond.base.limits import LEDGER_BATCH_BYTES, LEDGER_FRAME_BYTES, WRITE_BYTES_APART
from millpond.broker.message import Address, Message, Properties
from millpond.broker.queues.entry import Entry
from millpond.broker.records import (
    ATTEMPTED_BYTES,
    CHANGE_ATTEMPTED,
    CHANGE_BATCH,
    CHANGE_CARRIED,
    CHANGE_SETTLED,
    CHANGE_TRIMMED,
    KIND_TURN,
    KIND_TURN_BEGIN,
    KIND_TURN_END,
    KIND_TURN_MORE,
    SETTLED_BYTES,
    TARGETS_PER_BATCH_MAX,
    TRIMMED_BYTES,
    record_header,
)
from millpond.storage.journal import Journal
from millpond.storage.record_batch import BatchBuilder

if TYPE_CHECKING:
    from millpond.broker.queues.backlog import Backlog


@trait
class OpenBatch:
    """A stream that collects what a turn brings, to append it as one record batch."""

    def close_batch(self) -> None:
        """Append what has been collected."""
        raise NotImplementedError


@mypyc_attr(allow_interpreted_subclasses=True)
class LateChanges:
    """What collects changes of its own, to be told together: whenever a frame ends, so that none of them is in another
    one than what belongs to it."""

    def write_changes(self) -> None:
        """Record what has been collected."""
        raise NotImplementedError


@final
class Ledger:
    """Collects a turn's changes and hands them to the journal."""

    def __init__(self) -> None:
        # Set when recovery is over: nothing may be recorded before. A broker that keeps nothing has none.
        self.journal: Journal | None = None
        # Somebody was promised to be told when this turn is durable.
        self.sync_wanted = False
        self.late_changes: Final[list[LateChanges]] = []
        self._is_marked = False
        self._frame = BytesWriter()
        self._settled = BytesWriter()
        # Frames of this turn that have gone to the journal already: it is a large one.
        self._parts: i64 = 0
        self._builder = BatchBuilder()
        self._queues: list[Backlog] = []
        self._bases: list[i64] = []
        self._last_delta: i64 = 0
        self._runs: list[Backlog] = []
        self._open_batches: list[OpenBatch] = []
        self._address: Address | None = None
        self._properties: Properties | None = None
        self._key = b""
        self._header = b""

    def has_changes(self) -> bool:
        """Whether this turn has brought anything for the journal so far."""
        return (
            self._builder.count > 0
            or len(self._frame) > 0
            or len(self._settled) > 0
            or len(self._runs) > 0
            or len(self._open_batches) > 0
            or self._is_marked
            or self._parts > 0
            or (self.journal is not None and self.journal.has_appended)
        ) and self.journal is not None

    def sequence(self) -> i64:
        """The commit that will cover this turn; compare with `durable`."""
        journal = self.journal
        return 0 if journal is None else journal.sequence

    def covering(self) -> i64:
        """The commit that covers all that was recorded so far, in this turn and before."""
        journal = self.journal
        if journal is None:
            return 0
        return journal.sequence if self.has_changes() else journal.sequence - 1

    def mark(self) -> None:
        """Have a commit for this turn also if it changes nothing but the catalog, which every commit makes durable."""
        self._is_marked = True

    def durable(self) -> i64:
        """The latest commit that is on the disk."""
        journal = self.journal
        return 0 if journal is None else journal.durable_sequence

    def published(self, message: Message, queues: list[Backlog]) -> None:
        """Record that each of `queues`, all recoverable, has just taken `message` as its newest."""
        count = len(queues)
        delta: i64 = -1
        if queues is self._queues and self._builder.count > 0:
            delta = queues[0].next_offset - 1 - self._bases[0]
            for index in range(1, count):
                if queues[index].next_offset - 1 - self._bases[index] != delta:
                    delta = -1
                    break
        if delta < 0 or delta > 0x7FFFFFF0 or self._builder.size + len(message.body) > LEDGER_BATCH_BYTES:
            self._close_batch(CHANGE_BATCH)
            self._queues = queues
            bases: list[i64] = []
            for queue in queues:
                bases.append(queue.next_offset - 1)
            self._bases = bases
            delta = 0
        self._append(message, delta)

    def carried(self, queue: Backlog, entries: list[Entry | None]) -> None:
        """Write persistent messages of `queue`, in order, again that an older journal file holds, so that it can go."""
        self._close_batch(CHANGE_BATCH)
        for entry in entries:
            if entry is None or not entry.message.properties.persistent:
                continue
            if self._builder.size + len(entry.message.body) > LEDGER_BATCH_BYTES:
                self._close_batch(CHANGE_CARRIED)
            if self._builder.count == 0:
                self._queues = [queue]
                self._bases = [entry.offset]
            self._append(entry.message, entry.offset - self._bases[0])
        self._close_batch(CHANGE_CARRIED)

    def _append(self, message: Message, delta: i64) -> None:
        timed = message.due_ms != 0
        if timed or message.address is not self._address or message.properties is not self._properties:
            # The header of a message that waits for its time has the time in it, and no other message's.
            self._address = None if timed else message.address
            self._properties = message.properties
            self._key = message.address.routing_key.encode("utf-8", "surrogateescape")
            self._header = record_header(message)
        self._builder.append(delta, message.timestamp_ms, self._key, message.body, self._header)
        self._last_delta = delta

    def _close_batch(self, change: i64) -> None:
        if self._builder.count == 0:
            return
        batch = self._builder.finish(self._bases[0], self._last_delta)
        start: i64 = 0
        count: i64 = len(self._queues)
        while start < count:
            end: i64 = min(count, start + TARGETS_PER_BATCH_MAX)
            size: i64 = 2 + 16 * (end - start) + len(batch)
            if len(self._frame) + size > LEDGER_FRAME_BYTES:
                self._write_part()
            frame = self._frame
            frame.append(change)
            write_i32_be(frame, i32(size))
            write_i16_be(frame, i16(end - start))
            while start < end:
                write_i64_be(frame, self._queues[start].log_id)
                write_i64_be(frame, self._bases[start])
                start += 1
            frame.write(batch)
        self._queues = []

    def open_batch(self, stream: OpenBatch) -> None:
        """Remember that `stream` has something to append at the end of the turn."""
        self._open_batches.append(stream)

    def appended(self, log_id: i64, base_offset: i64, batch: bytes) -> None:
        """Record that a stream has appended a whole record batch."""
        self._write_batch(CHANGE_BATCH, log_id, base_offset, batch)

    def carried_batch(self, log_id: i64, base_offset: i64, batch: bytes) -> None:
        """Write a stream's batch again that an older journal file holds, so that it can go."""
        self._write_batch(CHANGE_CARRIED, log_id, base_offset, batch)

    def _write_batch(self, change: i64, log_id: i64, base_offset: i64, batch: bytes) -> None:
        if self.journal is None:
            return
        size: i64 = 18 + len(batch)
        is_apart = len(batch) >= WRITE_BYTES_APART
        if len(self._frame) > 0 and len(self._frame) + size > LEDGER_FRAME_BYTES:
            # A batch may be as large as a frame: what precedes it there must be small.
            self._write_part()
        frame = self._frame
        frame.append(u8(change))
        write_i32_be(frame, i32(size))
        write_i16_be(frame, 1)
        write_i64_be(frame, log_id)
        write_i64_be(frame, base_offset)
        if is_apart:
            # It ends a frame of its own part of the turn, and so need not be copied.
            self._write_part(batch)
        else:
            frame.write(batch)

    def trimmed(self, log_id: i64, start_offset: i64) -> None:
        """Record that what a stream has before `start_offset` is gone."""
        if self.journal is None:
            return
        settled = self._settlements()
        settled.append(CHANGE_TRIMMED)
        write_i32_be(settled, TRIMMED_BYTES)
        write_i64_be(settled, log_id)
        write_i64_be(settled, start_offset)

    def recorded(self, change: i64, record: bytes) -> None:
        """Record a change of what a keeper keeps, in its own form; `change` is the keeper's number."""
        if self.journal is None:
            return
        settled = self._settlements()
        settled.append(u8(change))
        write_i32_be(settled, i32(len(record)))
        settled.write(record)

    def open_run(self, queue: Backlog) -> None:
        """Remember that `queue` has a run of settled offsets to be written at the end of the turn."""
        self._runs.append(queue)

    def settled(self, log_id: i64, start: i64, end: i64, count: i64, size: i64) -> None:
        """Record that the messages of [start, end) are settled: `count` of them, `size` bytes together."""
        settled = self._settlements()
        settled.append(CHANGE_SETTLED)
        write_i32_be(settled, SETTLED_BYTES)
        write_i64_be(settled, log_id)
        write_i64_be(settled, start)
        write_i64_be(settled, end)
        write_i32_be(settled, i32(count))
        write_i64_be(settled, size)

    def attempted(self, queue: Backlog, entry: Entry) -> None:
        """Record how often a message of `queue` has been given back."""
        settled = self._settlements()
        settled.append(CHANGE_ATTEMPTED)
        write_i32_be(settled, ATTEMPTED_BYTES)
        write_i64_be(settled, queue.log_id)
        write_i64_be(settled, entry.offset)
        write_i64_be(settled, entry.returns)

    def flush(self) -> None:
        """Append what has been collected to the journal as one frame, without handing it to the disk yet."""
        open_batches = self._open_batches
        if open_batches:
            self._open_batches = []
            for stream in open_batches:
                stream.close_batch()
        for late in self.late_changes:
            late.write_changes()
        journal = self.journal
        if journal is None:
            return
        self._close_batch(CHANGE_BATCH)
        runs = self._runs
        if runs:
            self._runs = []
            for queue in runs:
                queue.close_run()
        # Settlements come last: a message that is dead-lettered is in its new queue before it leaves the old one.
        self._write_settled()
        if self._parts > 0:
            journal.append(KIND_TURN_END, self._frame.getvalue())
            self._parts = 0
            self._frame = BytesWriter()
        elif len(self._frame) > 0 or self._is_marked:
            journal.append(KIND_TURN, self._frame.getvalue())
            self._frame = BytesWriter()
        self._is_marked = False

    def _settlements(self) -> BytesWriter:
        """What comes after the batches of its frame, with room for one more change."""
        if len(self._settled) > LEDGER_FRAME_BYTES:
            self._write_settled()
        return self._settled

    def _write_settled(self) -> None:
        if len(self._settled) > 0:
            # What is settled may have been published in this turn.
            self._close_batch(CHANGE_BATCH)
            if len(self._frame) + len(self._settled) > LEDGER_FRAME_BYTES:
                self._write_part()
            self._frame.write(self._settled.getvalue())
            self._settled = BytesWriter()

    def _write_part(self, body: bytes = b"") -> None:
        """What has collected, and `body` behind it, is as much as one frame should have, and this turn is not over."""
        journal = self.journal
        if journal is not None and len(self._frame) > 0:
            journal.append(KIND_TURN_MORE if self._parts > 0 else KIND_TURN_BEGIN, self._frame.getvalue(), body)
            self._parts += 1
            self._frame = BytesWriter()

    def flush_large(self) -> None:
        """Between two things that belong together or not at all: begin a new frame where this one is large."""
        if self._parts > 0 or len(self._frame) + self._builder.size > LEDGER_FRAME_BYTES:
            self.flush()

    def end_turn(self) -> None:
        """Hand the turn to the journal."""
        self.flush()
        journal = self.journal
        if journal is None:
            self.sync_wanted = False
            return
        sync = self.sync_wanted
        self.sync_wanted = False
        journal.submit(sync)
