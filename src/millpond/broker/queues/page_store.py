"""Where pages of queues go when they leave memory, and come back from.

Every queue has a log of its own: `queues/<id>` for those that survive a restart, `transient/<id>` for the others, whose
folder is emptied at start. Pages are encoded on the event loop's thread; one thread writes, syncs and deletes, another
one reads, and what they have to say is posted back to the loop. The tables here belong to the loop's thread; a log's
appends and syncs belong to the writing thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from millpond.base.errors import CorruptData, StorageError
from millpond.base.filesystem import Filesystem
from millpond.base.limits import PAGES_AHEAD, PAGES_WRITING_MAX, SEGMENT_BYTES
from millpond.broker.queues.page import Page
from millpond.broker.queues.page_codec import PageWriter, decode_page
from millpond.storage.log import BatchEntry, BatchPlace, Log

if TYPE_CHECKING:
    from millpond.broker.queues.queue import Queue

logger = logging.getLogger(__name__)

RECOVERABLE_FOLDER = "queues"
TRANSIENT_FOLDER = "transient"


class LazyLog:
    """A queue's log, opened on the thread that first needs it: opening reads its last segment through."""

    def __init__(self, filesystem: Filesystem, folder: str, end_offset: int, name: str) -> None:
        self._log = Log(filesystem, folder, SEGMENT_BYTES)
        self._end_offset = end_offset
        self._name = name
        self._guard = threading.Lock()
        self._is_open = False

    def opened(self) -> Log:
        """The log, open."""
        with self._guard:
            if not self._is_open:
                report = self._log.open(self._end_offset)
                self._is_open = True
                if report.reasons:
                    logger.warning("the log of queue %r was cut: %s", self._name, "; ".join(report.reasons))
                for start, end in report.lost:
                    logger.critical("offsets %d to %d of queue %r are lost", start, end - 1, self._name)
            return self._log

    def append(self, batch: bytes, base_offset: int, last_offset: int, newest_ms: int) -> BatchPlace:
        return self.opened().append(batch, base_offset, last_offset, newest_ms)

    def read(self, place: BatchPlace) -> bytes:
        return self.opened().read(place)

    def sync(self) -> None:
        if self._is_open:
            self._log.sync()

    def trim_before(self, offset: int) -> None:
        self.opened().trim_before(offset)

    def delete(self) -> None:
        self.opened().delete()

    def close(self) -> None:
        if self._is_open:
            self._log.close()


class PageStore:
    """The logs of all queues of a node. Without a `filesystem` nothing ever leaves memory."""

    def __init__(
        self, filesystem: Filesystem | None, folder: str, post: Callable[[Callable[[], None]], None]
    ) -> None:
        self._filesystem = filesystem
        self._folder = folder
        self._post = post
        self._codec = PageWriter()
        self._logs: dict[int, LazyLog] = {}
        self._trimmable: dict[int, Queue] = {}
        self._writer = ThreadPoolExecutor(1, "millpond-page-writer")
        self._reader = ThreadPoolExecutor(1, "millpond-page-reader")
        self.writes_under_way = 0
        # Called after every write that has ended.
        self.on_written: Callable[[], None] | None = None
        self.pages_written_total = 0
        self.pages_read_total = 0

    @property
    def available(self) -> bool:
        """Whether pages can leave memory at all."""
        return self._filesystem is not None

    def _log(self, queue: Queue) -> LazyLog:
        log = self._logs.get(queue.log_id)
        if log is None:
            if self._filesystem is None:
                raise RuntimeError("a broker that keeps nothing on disk has no logs")
            folder = self.log_folder(queue.log_id, queue.recoverable)
            log = LazyLog(self._filesystem, folder, int(queue.log_end), queue.name)
            self._logs[queue.log_id] = log
        return log

    def log_folder(self, log_id: int, recoverable: bool) -> str:
        """Path of a queue's log."""
        return f"{self._folder}/{RECOVERABLE_FOLDER if recoverable else TRANSIENT_FOLDER}/{log_id}"

    # --- Writing --------------------------------------------------------------------------------------------------

    def page_out(self, queue: Queue, bytes_wanted: int) -> int:
        """Move pages that consumers will not need soon to disk. How many bytes of memory that will free or has freed.

        Everything beyond the pages that are read ahead may go; the page that is being filled is closed first.
        """
        if self._filesystem is None or queue.deleted:
            return 0
        first = int(queue.head) + PAGES_AHEAD
        if len(queue.pages) <= first:
            return 0
        queue.seal_tail()
        freed = 0
        for page in queue.pages[first:-1]:
            if freed >= bytes_wanted or self.writes_under_way >= PAGES_WRITING_MAX:
                break
            if not page.resident or page.taken > 0:
                continue
            if page.place is not None:
                freed += int(page.live_bytes)
                queue.drop_resident(page)
            elif page.writing:
                freed += int(page.live_bytes)
            elif self.write(queue, page):
                freed += int(page.live_bytes)
        return freed

    def write(self, queue: Queue, page: Page) -> bool:
        """Write a closed page to its queue's log. False when it can't be written now.

        A log only grows: a page older than what the log holds already is left to the journal.
        """
        if page.writing or page.place is not None or page.start < queue.log_end or page.live == 0:
            return False
        log = self._log(queue)
        base_offset = int(queue.log_end)
        batch, newest_ms = self._codec.encode(page, base_offset)
        last_offset = int(page.end) - 1
        page.writing = True
        queue.log_end = page.end
        queue.writes_under_way += 1
        self.writes_under_way += 1
        job = self._writer.submit(log.append, batch, base_offset, last_offset, newest_ms)
        job.add_done_callback(lambda done: self._post(partial(self._written, queue, page, done)))
        return True

    def _written(self, queue: Queue, page: Page, job: Future[BatchPlace]) -> None:
        self.writes_under_way -= 1
        queue.writes_under_way -= 1
        page.writing = False
        error = job.exception()
        if error is None:
            page.place = job.result()
            self.pages_written_total += 1
        else:
            logger.error("a page of queue %r could not be written and stays in memory: %s", queue.name, error)
        if queue.writes_under_way == 0 and error is not None and not queue.deleted:
            # Pages that came after the failed one do not continue the log, and have failed too.
            queue.log_end = self._log(queue).opened().end_offset
        if self.on_written is not None:
            self.on_written()

    def run_on_writer(self, task: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        """Run `task` on the writing thread after all that it was given before; `done` is called on the loop."""
        job = self._writer.submit(task)
        job.add_done_callback(lambda ended: self._post(partial(done, ended.exception())))

    def sync_task(self) -> Callable[[], None]:
        """A task for the writing thread that makes all that was written to recoverable logs durable."""
        logs = list(self._logs.values())

        def sync() -> None:
            for log in logs:
                log.sync()

        return sync

    # --- Reading --------------------------------------------------------------------------------------------------

    def load(self, queue: Queue, page: Page) -> None:
        """Bring a page back into memory; the queue is told when it is there."""
        if page.loading or page.resident or page.place is None:
            return
        page.loading = True
        job = self._reader.submit(self._log(queue).read, page.place)
        job.add_done_callback(lambda done: self._post(partial(self._loaded, queue, page, done)))

    def load_now(self, queue: Queue, page: Page) -> None:
        """Bring a page back before returning."""
        job: Future[bytes] = Future()
        try:
            if page.place is None:
                raise CorruptData("a page is neither in memory nor in the log")
            job.set_result(self._log(queue).read(page.place))
        except (StorageError, OSError) as error:
            job.set_exception(error)
        self._loaded(queue, page, job)

    def _loaded(self, queue: Queue, page: Page, job: Future[bytes]) -> None:
        page.loading = False
        if queue.deleted or page.resident:
            return
        try:
            offsets, messages = decode_page(job.result())
        except (StorageError, OSError) as error:
            logger.critical(
                "%d messages of queue %r, offsets %d to %d, cannot be read and are lost: %s",
                page.live, queue.name, page.start, page.end - 1, error,
            )  # fmt: skip
            queue.page_lost(page)
            return
        self.pages_read_total += 1
        queue.page_loaded(page, offsets, messages)

    # --- Deleting -------------------------------------------------------------------------------------------------

    def page_settled(self, queue: Queue) -> None:
        """A written page is of no use any more: its segment may be."""
        self._trimmable[queue.log_id] = queue

    def trim(self, recoverable: bool) -> None:
        """Delete segments that hold nothing any more. Those of recoverable queues only after a checkpoint, because
        the one before still speaks of them."""
        for log_id, queue in list(self._trimmable.items()):
            if queue.recoverable != recoverable:
                continue
            del self._trimmable[log_id]
            log = self._logs.get(log_id)
            if log is not None and not queue.deleted and not queue.writes_under_way:
                self._writer.submit(log.trim_before, self.first_needed(queue))

    def first_needed(self, queue: Queue) -> int:
        """The lowest offset that the queue still needs from its log."""
        for page in queue.pages:
            if page.place is not None or page.writing:
                return int(page.start)
        return int(queue.log_end)

    def delete_log(self, queue: Queue) -> None:
        """The queue is gone: so is its log."""
        self._trimmable.pop(queue.log_id, None)
        log = self._logs.pop(queue.log_id, None)
        if log is None and queue.log_end > 0:
            log = self._log(queue)
            del self._logs[queue.log_id]
        if log is not None:
            self._writer.submit(log.delete)

    def folders(self) -> set[int]:
        """The ids of all recoverable queues that have a log folder."""
        if self._filesystem is None or not self._filesystem.exists(f"{self._folder}/{RECOVERABLE_FOLDER}"):
            return set()
        names = self._filesystem.list(f"{self._folder}/{RECOVERABLE_FOLDER}")
        return {int(name) for name in names if name.isdigit()}

    def all_places(self, queue: Queue) -> list[BatchEntry]:
        """Everything in a queue's log that verifies, whatever is known of it."""
        if self._filesystem is None:
            return []
        log = Log(self._filesystem, self.log_folder(queue.log_id, True), SEGMENT_BYTES)
        log.open(None, 0)
        places = list(log.places_from(0))
        log.close()
        return places

    def delete_leftovers(self, known: set[int]) -> None:
        """At start: delete the logs of queues that are gone, and of all that did not survive the last stop."""
        filesystem = self._filesystem
        if filesystem is None:
            return
        folders = [self.log_folder(log_id, True) for log_id in self.folders() - known]
        if filesystem.exists(f"{self._folder}/{TRANSIENT_FOLDER}"):
            folders += [f"{self._folder}/{TRANSIENT_FOLDER}/{name}" for name in filesystem.list(f"{self._folder}/{TRANSIENT_FOLDER}")]
        for folder in folders:
            self._writer.submit(_delete_folder, filesystem, folder)

    def close(self) -> None:
        """Finish what was asked for, then stop the threads."""
        self._reader.shutdown(wait=True)
        self._writer.shutdown(wait=True)
        for log in self._logs.values():
            log.close()


def _delete_folder(filesystem: Filesystem, folder: str) -> None:
    for name in filesystem.list(folder):
        filesystem.remove(f"{folder}/{name}")
    filesystem.remove(folder)
