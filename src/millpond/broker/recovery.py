"""Starting again: the catalog's queues get their messages back.

    the newest checkpoint that verifies -> the journal from its first file on

What cannot be read is cut, kept aside and told in the log; it is never served and never stops the start.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from millpond.base.errors import CorruptData
from millpond.base.filesystem import Filesystem
from millpond.broker.checkpoint import FOLDER
from millpond.broker.queues.queue import Queue
from millpond.broker.records import KIND_TURN
from millpond.broker.replay import replay_turn
from millpond.broker.snapshot import SnapshotReader
from millpond.storage.journal_recovery import Damage, JournalReport, read_journal

if TYPE_CHECKING:
    from millpond.broker.queues.page_store import PageStore

logger = logging.getLogger(__name__)

JOURNAL_FOLDER = "journal"


class Recovery:
    """Brings back what a data directory holds. `queues` are the catalog's durable queues, empty."""

    def __init__(self, filesystem: Filesystem, folder: str, queues: list[Queue], store: PageStore) -> None:
        self._filesystem = filesystem
        self._folder = folder
        self._store = store
        self._queues = {int(queue.log_id): queue for queue in queues}
        # The highest id of any queue that the journal speaks of.
        self.log_id_max = 0

    def run(self) -> JournalReport:
        """Recover. The number of the next journal file is in the report."""
        first_file, is_clean = self._restore_checkpoint()
        report = read_journal(self._filesystem, f"{self._folder}/{JOURNAL_FOLDER}", first_file, self._apply)
        if report.damage is not Damage.NONE:
            log = logger.critical if report.damage is Damage.CORRUPTION else logger.warning
            log(
                "the journal ends with a %s in file %d at %d: %s; %d bytes were cut and are kept in %s",
                report.damage.value, report.last_file, report.last_position, report.reason, report.bytes_cut,
                ", ".join(report.kept_aside) or "no file",
            )  # fmt: skip
        messages = 0
        for queue in self._queues.values():
            if not is_clean or report.frames > 0:
                # It is not known what was delivered, so all of it may have been.
                queue.redelivered_before = queue.next_offset
            queue.restored()
            messages += int(queue.ready)
        logger.info("recovered %d messages in %d durable queues", messages, len(self._queues))
        return report

    def _restore_checkpoint(self) -> tuple[int, bool]:
        """Load the newest checkpoint that verifies; the first journal file after it, and whether it was a clean stop."""
        folder = f"{self._folder}/{FOLDER}"
        names = self._filesystem.list(folder) if self._filesystem.exists(folder) else []
        damaged = False
        for name in sorted((name for name in names if name.endswith(".checkpoint")), reverse=True):
            path = f"{folder}/{name}"
            try:
                reader = SnapshotReader(self._filesystem.read_bytes(path))
            except CorruptData as error:
                damaged = True
                logger.critical("checkpoint %s cannot be used and is kept aside: %s", path, error)
                self._filesystem.rename(path, path + ".corrupt")
                continue
            while reader.restore_next(self._queues):
                pass
            return reader.first_file, reader.clean
        if damaged:
            self._restore_from_logs()
        return 0, False

    def _restore_from_logs(self) -> None:
        """Without a checkpoint the queues' logs still have their messages, but not which of them were settled."""
        logger.critical("no checkpoint is left: messages that were acknowledged may come again")
        for log_id in self._store.folders():
            queue = self._queues.get(log_id)
            if queue is None:
                continue
            for base_offset, last_offset, count, place in self._store.all_places(queue):
                if count > 0:
                    queue.restore_page(base_offset, last_offset + 1, count, place.length, [], place)
                queue.restore(last_offset + 1, last_offset + 1, 0, True)

    def _apply(self, kind: int, payload: bytes) -> None:
        if kind != KIND_TURN:
            logger.error("a journal frame of the unknown kind %d was passed over", kind)
            return
        try:
            self.log_id_max = max(self.log_id_max, replay_turn(payload, self._queues))
        except CorruptData as error:
            logger.critical("a journal frame whose checksum is right makes no sense and was passed over: %s", error)
