"""Starting again: the catalog's queues get their messages back.

    the newest checkpoint that verifies -> the journal from its first file on

What cannot be read is cut, kept aside and told in the log; it is never served and never stops the start.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from millpond.base.errors import CorruptData, UnsupportedFormat
from millpond.base.filesystem import Filesystem
from millpond.broker.checkpoint import FOLDER, SUFFIX
from millpond.broker.queues.backlog import queue_id
from millpond.broker.queues.lanes import Lanes
from millpond.broker.queues.message_queue import MessageQueue
from millpond.broker.records import KIND_TURN, KIND_TURN_BEGIN, KIND_TURN_END, KIND_TURN_MORE
from millpond.broker.replay import replay_turn
from millpond.broker.snapshot import SnapshotReader
from millpond.storage.journal_recovery import Damage, JournalReport, journal_files, read_journal

if TYPE_CHECKING:
    from millpond.broker.keepers import RecordKeeper
    from millpond.broker.queues.page_store import PageStore
    from millpond.broker.streams.partition import Partition

logger = logging.getLogger(__name__)

JOURNAL_FOLDER = "journal"


class Recovery:
    """Brings back what a data directory holds. `queues` are the catalog's durable queues, and `partitions` those of all
    streams, empty; so are the `keepers`."""

    def __init__(
        self,
        filesystem: Filesystem,
        folder: str,
        queues: list[MessageQueue],
        partitions: Iterable[Partition],
        keepers: list[RecordKeeper],
        store: PageStore,
    ) -> None:
        self._filesystem = filesystem
        self._folder = folder
        self._store = store
        self._lanes = Lanes(queues, partitions)
        self._keepers = {keeper.change: keeper for keeper in keepers}
        self._queues = queues
        # The first frames of a turn that has several.
        self._parts: list[bytes] = []
        self._is_clean = False
        self._was_rebuilt = False
        # The highest id of any queue that is spoken of anywhere: a queue that the catalog forgot may have left a log.
        self.log_id_max = max((queue_id(log_id) for log_id in store.folders()), default=0)
        # What was recovered should go to where it is not recovered again.
        self.checkpoint_wanted = False

    def run(self) -> JournalReport:
        """Recover. The number of the next journal file is in the report."""
        first_file = self._restore_checkpoint()
        report = read_journal(self._filesystem, f"{self._folder}/{JOURNAL_FOLDER}", first_file, self._apply)
        if report.damage is not Damage.NONE:
            log = logger.critical if report.damage is Damage.CORRUPTION else logger.warning
            log(
                "the journal ends with a %s in file %d at %d: %s; %d bytes were cut and are kept in %s",
                report.damage.value, report.last_file, report.last_position, report.reason, report.bytes_cut,
                ", ".join(report.kept_aside) or "no file",
            )  # fmt: skip
        self._drop_parts()
        # The file that a clean stop leaves is followed by another as soon as there is a new life, of which nothing else
        # need have been written.
        is_clean = self._is_clean and report.files <= 1 and report.damage is Damage.NONE
        messages = 0
        queues = len(self._queues)
        for queue in self._lanes.backlogs():
            if not is_clean:
                # It is not known what was delivered, so all of it may have been.
                queue.redelivered_before = queue.next_offset
            queue.restored()
            messages += int(queue.ready)
        for partition in self._lanes.partitions():
            partition.restored()
            messages += int(partition.end_offset - partition.start_offset)
        for keeper in self._keepers.values():
            keeper.restored()
        self.checkpoint_wanted = report.frames > 0 or self._was_rebuilt
        logger.info("recovered %d messages in %d durable queues, and in %d partitions of streams and topics",
                    messages, queues, len(self._lanes.partitions()))  # fmt: skip
        return report

    def _restore_checkpoint(self) -> int:
        """Load the newest checkpoint that verifies; the first journal file after it."""
        folder = f"{self._folder}/{FOLDER}"
        for name in sorted(self._filesystem.list(folder), reverse=True):
            if not name.endswith(SUFFIX):
                continue
            path = f"{folder}/{name}"
            try:
                reader = SnapshotReader(self._filesystem.read_bytes(path))
            except CorruptData as error:
                logger.critical("checkpoint %s cannot be used and is kept aside: %s", path, error)
                self._filesystem.rename(path, path + ".corrupt")
                continue
            while reader.restore_next(self._lanes):
                pass
            while reader.restore_next_stream(self._lanes):
                pass
            while reader.next_record():
                keeper = self._keepers.get(reader.record_change)
                if keeper is None:
                    raise UnsupportedFormat(f"a checkpoint with records of the unknown kind {reader.record_change}")
                keeper.restore(reader.record)
            self.log_id_max = max(self.log_id_max, reader.log_id_max)
            self._is_clean = reader.clean
            return reader.first_file
        return self._do_without_checkpoint()

    def _do_without_checkpoint(self) -> int:
        """The first journal file to read. Where files before it have been dropped, there was a checkpoint once, and
        what it knew must come from the queues' logs."""
        numbers = journal_files(self._filesystem, f"{self._folder}/{JOURNAL_FOLDER}")
        if numbers[:1] == [0] or (not numbers and not self._store.folders()):
            return 0
        self._was_rebuilt = True
        self._restore_from_logs()
        if not numbers:
            # Not 0: that would say that the journal has been there from the beginning.
            return 1
        first = numbers[-1]
        while first - 1 in numbers:
            first -= 1
        return first

    def _restore_from_logs(self) -> None:
        """Without a checkpoint the queues' logs still have their messages, but not which of them were settled."""
        logger.critical("no checkpoint is left: messages that were acknowledged may come again")
        for log_id in sorted(self._store.folders()):
            partition = self._lanes.partition(log_id)
            if partition is not None:
                partition.restore_from_log()
            queue = self._lanes.get(log_id)
            if queue is None:
                continue
            for page in self._store.surviving_pages(queue):
                queue.restore(page.end, page.end, 0, True)
                queue.restore_page(page.start, page.end, page.live, page.live_bytes, [], page.place, page.due_ms)

    def _apply(self, kind: int, payload: bytes) -> None:
        if kind == KIND_TURN:
            self._drop_parts()
            self._replay(payload)
        elif kind == KIND_TURN_BEGIN:
            self._drop_parts()
            self._parts = [payload]
        elif kind == KIND_TURN_MORE:
            self._parts.append(payload)
        elif kind == KIND_TURN_END:
            parts, self._parts = self._parts, []
            self._replay(b"".join([*parts, payload]))
        else:
            logger.error("a journal frame of the unknown kind %d was passed over", kind)

    def _drop_parts(self) -> None:
        if self._parts:
            logger.warning("a turn that had not been written to its end was passed over")
            self._parts = []

    def _replay(self, payload: bytes) -> None:
        try:
            highest, is_new = replay_turn(payload, self._lanes, self._keepers)
        except CorruptData as error:
            logger.critical("a journal frame whose checksum is right makes no sense and was passed over: %s", error)
            return
        self.log_id_max = max(self.log_id_max, highest)
        if is_new:
            self._is_clean = False
