"""Where pages of queues go when they leave memory, and come back from.

Every queue has a log of its own: `queues/<id>` for those that survive a restart, `transient/<id>` for the others, whose
folder is emptied at start. Pages are encoded on the event loop's thread; one thread writes, syncs and deletes, another
one reads, and what they have to say is posted back to the loop. The tables here belong to the loop's thread; a log's
appends and syncs belong to the writing thread.

A log only grows, so the pages of a queue are written in their order, and none is passed over.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from millpond.base.errors import CorruptData, StorageError, StorageFailed
from millpond.base.filesystem import Filesystem
from millpond.base.limits import LOG_UNSYNCED_BYTES_MAX, PAGES_WRITING_MAX, SEGMENT_BYTES
from millpond.base.threads import MACHINE_THREADS
from millpond.broker.queues.backlog import queue_id
from millpond.broker.queues.entry import message_size
from millpond.broker.queues.page import Page
from millpond.broker.queues.page_codec import PageWriter, decode_page
from millpond.storage.log import BatchPlace, Log

if TYPE_CHECKING:
    from millpond.broker.queues.backlog import Backlog

logger = logging.getLogger(__name__)

# Offsets of a batch lie within 2^31 of its base; a log that is further behind begins anew at the page.
_BATCH_SPAN_MAX = 1 << 30
# Errors of a read that say that the data is gone. Others (no descriptors, no memory) may pass.
_UNREADABLE = frozenset({errno.EIO, errno.ENOENT})

Result = TypeVar("Result")
StreamLike = TypeVar("StreamLike", bound="LazyLog")

RECOVERABLE_FOLDER = "queues"
TRANSIENT_FOLDER = "transient"


class LazyLog:
    """A queue's log, opened on the thread that first needs it: opening reads its last segment through."""

    def __init__(
        self,
        filesystem: Filesystem,
        folder: str,
        end_offset: int,
        name: str,
        recoverable: bool,
        segment_bytes: int = 0,
    ) -> None:
        self._segment_bytes = segment_bytes or SEGMENT_BYTES
        self._filesystem = filesystem
        self._recoverable = recoverable
        self._folder = folder
        self.name = name
        self._guard = filesystem.threads.guard()
        self._log: Log | None = None
        self._unsynced_bytes = 0
        # One past the last offset that is in the log, or was passed over because a later page is.
        self.end_offset = end_offset

    def opened(self) -> Log:
        """The log, open."""
        with self._guard:
            if self._log is None:
                log = Log(self._filesystem, self._folder, self._segment_bytes)
                report = log.open(self.end_offset)
                self._log = log
                if report.reasons:
                    logger.warning("the log of queue %r was cut: %s", self.name, "; ".join(report.reasons))
                for start, end in report.lost:
                    logger.critical("offsets %d to %d of queue %r are lost", start, end - 1, self.name)
            return self._log

    def append(self, previous_end: int, batch: bytes, base_offset: int, last_offset: int, newest_ms: int) -> BatchPlace:
        """Add a page. `previous_end` is where the page before it ends: where that one has failed, so does this one,
        for otherwise the failed one could never be written any more."""
        if previous_end != self.end_offset:
            raise StorageError("it follows a page that could not be written")
        place = self.opened().append(batch, base_offset, last_offset, newest_ms)
        self.end_offset = last_offset + 1
        self.grew(len(batch))
        return place

    def grew(self, size: int) -> None:
        """So much has been appended: sync it from time to time."""
        self._unsynced_bytes += size
        if self._recoverable and self._unsynced_bytes >= LOG_UNSYNCED_BYTES_MAX:
            # Should it fail, the checkpoint's own sync will say so.
            with suppress(StorageFailed):
                self.sync()

    def read(self, place: BatchPlace) -> bytes:
        return self.opened().read(place)

    def sync(self) -> None:
        if self._log is not None:
            self._unsynced_bytes = 0
            self._log.sync()

    def trim_before(self, offset: int) -> None:
        self.opened().trim_before(offset)

    def delete(self) -> None:
        self.opened().delete()

    def close(self) -> None:
        if self._log is not None:
            self._log.close()


class SurvivingPage(NamedTuple):
    """A page that was found in a log."""

    start: int
    end: int
    live: int
    live_bytes: int
    due_ms: int
    place: BatchPlace


class PageStore:
    """The logs of all queues of a node. Without a `filesystem` nothing ever leaves memory."""

    def __init__(self, filesystem: Filesystem | None, folder: str, post: Callable[[Callable[[], None]], None]) -> None:
        self._filesystem = filesystem
        self._folder = folder
        self._post = post
        self._codec = PageWriter()
        self._logs: dict[int, LazyLog] = {}
        # Logs of queues that are gone: since the last but one, and since the last call of `delete_logs`.
        self._deletable: list[LazyLog] = []
        self._deleted_lately: list[LazyLog] = []
        self._trimmable: dict[int, Backlog] = {}
        threads = MACHINE_THREADS if filesystem is None else filesystem.threads
        self._writer = threads.executor("millpond-page-writer")
        self._reader = threads.executor("millpond-page-reader")
        # Compaction. It has the lowest priority by pausing often: a thread of low priority in the eyes of the system
        # would be put aside while it holds the interpreter, and the event loop with it.
        self._cleaner = threads.executor("millpond-log-cleaner")
        # Set when the threads are to end.
        self.stopping = threads.event()
        self._unread: dict[Page, Backlog] = {}
        self.writes_under_way = 0
        # What pages that are being written will give back when they are.
        self.leaving_bytes = 0
        # A write has failed: no further one is begun before `resume`.
        self.resting = False
        # Queues that have opened another page since nothing could be had from them: where to look for memory first.
        self.backlogs: dict[Backlog, None] = {}
        # What the logs of recoverable queues hold in vain, until the next checkpoint.
        self.settled_bytes = 0
        # Called after every write that has ended.
        self.on_written: Callable[[Page], None] | None = None
        self.pages_started_total = 0
        self.pages_written_total = 0
        self.pages_read_total = 0

    @property
    def available(self) -> bool:
        """Whether pages can leave memory at all."""
        return self._filesystem is not None

    @property
    def filesystem(self) -> Filesystem | None:
        return self._filesystem

    @property
    def folder(self) -> str:
        """Where everything is kept; empty where nothing is."""
        return "" if self._filesystem is None else self._folder

    def disk_space(self) -> tuple[int, int]:
        """How large the disk is and how much of it is free; -1 and -1 where that is not known."""
        if self._filesystem is None:
            return -1, -1
        try:
            return self._filesystem.total_bytes(self._folder), self._filesystem.free_bytes(self._folder)
        except OSError:
            return -1, -1

    def _log(self, queue: Backlog) -> LazyLog:
        log = self._logs.get(queue.log_id)
        if log is None:
            if self._filesystem is None:
                raise RuntimeError("a broker that keeps nothing on disk has no logs")
            folder = self.log_folder(queue.log_id, queue.recoverable)
            log = LazyLog(self._filesystem, folder, int(queue.log_end), queue.name, queue.recoverable)
            self._logs[queue.log_id] = log
        return log

    def new_log(
        self, log_id: int, end_offset: int, name: str, segment_bytes: int, kind: type[StreamLike]
    ) -> StreamLike:
        """The log of something that is no queue, and is used by its owner alone. It is synced at checkpoints and closed
        at the end like the others."""
        if self._filesystem is None:
            raise RuntimeError("a broker that keeps nothing on disk has no logs")
        log = kind(self._filesystem, self.log_folder(log_id, True), end_offset, name, True, segment_bytes)
        self._logs[log_id] = log
        return log

    def discard_log(self, log_id: int) -> None:
        """The owner of such a log is gone."""
        log = self._logs.pop(log_id, None)
        if log is not None:
            self._deleted_lately.append(log)

    def log_folder(self, log_id: int, recoverable: bool) -> str:
        """Path of a queue's log."""
        return f"{self._folder}/{RECOVERABLE_FOLDER if recoverable else TRANSIENT_FOLDER}/{log_id}"

    # --- Writing --------------------------------------------------------------------------------------------------

    def free_writes(self) -> int:
        """How many pages may be given to the disk now."""
        return 0 if self.resting or self._filesystem is None else PAGES_WRITING_MAX - self.writes_under_way

    def page_out(self, queue: Backlog, bytes_wanted: int, pages_kept: int, pages_max: int) -> int:
        """Move pages to disk, except the next `pages_kept` that consumers will need. How many bytes of memory that has
        freed or will free. At most `pages_max` pages are written."""
        if self._filesystem is None or queue.deleted:
            return 0
        first = min(int(queue.head) + pages_kept, len(queue.pages) - 1)
        freed = queue.drop_kept(first, bytes_wanted)
        if freed >= bytes_wanted:
            return freed
        for index in range(self.first_unwritten(queue), len(queue.pages) - 1):
            if freed >= bytes_wanted or pages_max <= 0:
                break
            page = queue.pages[index]
            if not self.write(queue, page):
                break
            pages_max -= 1
            if index >= first and page.taken == 0:
                page.leaving = True
                self.leaving_bytes += int(page.memory_bytes)
                freed += int(page.memory_bytes)
        return freed

    def first_unwritten(self, queue: Backlog) -> int:
        """Index of the first page that the log does not have, nor is about to; it may be the one being filled."""
        index = int(queue.index_of(queue.log_end))
        return index + 1 if queue.pages[index].start < queue.log_end else index

    def write(self, queue: Backlog, page: Page) -> bool:
        """Write the first unwritten page, which must be closed, to its queue's log. False when it can't be written
        now."""
        if self.resting or page.writing or page.place is not None or page.start < queue.log_end or page.live == 0:
            return False
        log = self._log(queue)
        previous_end = int(queue.log_end)
        # The batches of a log tile the offsets, so this one also covers what was settled since the last.
        base_offset = previous_end if page.end - previous_end < _BATCH_SPAN_MAX else int(page.start)
        batch, newest_ms = self._codec.encode(page, base_offset)
        last_offset = int(page.end) - 1
        page.writing = True
        queue.log_end = page.end
        queue.writes_under_way += 1
        self.writes_under_way += 1
        self.pages_started_total += 1
        job = self._writer.submit(log.append, previous_end, batch, base_offset, last_offset, newest_ms)
        job.add_done_callback(lambda done: self._post(partial(self._written, queue, page, log, done)))
        return True

    def _written(self, queue: Backlog, page: Page, log: LazyLog, job: Future[BatchPlace]) -> None:
        self.writes_under_way -= 1
        queue.writes_under_way -= 1
        page.writing = False
        is_leaving = page.leaving
        if is_leaving:
            page.leaving = False
            self.leaving_bytes = max(0, self.leaving_bytes - int(page.memory_bytes))
        if self.writes_under_way == 0:
            # What was settled meanwhile is no longer in the pages' sizes.
            self.leaving_bytes = 0
        error = job.exception()
        if error is None:
            page.place = job.result()
            self.pages_written_total += 1
            if not queue.deleted:
                if page.live == 0:
                    self.page_settled(queue, page)
                elif (
                    is_leaving
                    and page.taken == 0
                    and (not queue.queue.consumers or page is not queue.pages[queue.head])
                ):
                    queue.drop_resident(page)
                else:
                    queue.kept[page] = None
        else:
            self.resting = True
            logger.error("a page of queue %r could not be written and stays in memory: %s", queue.name, error)
            if queue.writes_under_way == 0 and not queue.deleted:
                # Pages that came after the failed one have failed too.
                queue.log_end = log.end_offset
        if self.on_written is not None:
            self.on_written(page)
        # There may be room for the next page, and where publishers wait there is no other reason for a turn.
        queue.turn.touch()

    def resume(self) -> None:
        """To be called now and then: what failed may be tried again."""
        self.resting = False
        unread, self._unread = self._unread, {}
        for page, queue in unread.items():
            if not queue.deleted:
                self.load(queue, page)

    def run_on_writer(self, task: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        """Run `task` on the writing thread after all that it was given before; `done` is called on the loop."""
        job = self._writer.submit(task)
        job.add_done_callback(lambda ended: self._post(partial(done, ended.exception())))

    def run_on_reader(self, task: Callable[[], Result], done: Callable[[Future[Result]], None]) -> None:
        """Run `task` on the reading thread; `done` is called on the loop."""
        job = self._reader.submit(task)
        job.add_done_callback(lambda ended: self._post(partial(done, ended)))

    def run_on_cleaner(self, task: Callable[[], Result], done: Callable[[Future[Result]], None]) -> None:
        """Run `task`, which may take minutes, on the cleaning thread; `done` is called on the loop. The task ends soon
        after `stopping` is set."""
        job = self._cleaner.submit(task)
        job.add_done_callback(lambda ended: self._post(partial(done, ended)))

    def call_on_writer(self, task: Callable[[], Result]) -> Result:
        """From the cleaning thread: run `task` on the writing thread, and wait for it."""
        return self._writer.submit(task).result()

    def sync_task(self) -> Callable[[], None]:
        """A task for the writing thread that makes all that was written to recoverable logs durable."""
        # Those of transient queues have negative ids.
        logs = [log for log_id, log in self._logs.items() if log_id > 0]

        def sync() -> None:
            for log in logs:
                log.sync()

        return sync

    # --- Reading --------------------------------------------------------------------------------------------------

    def load(self, queue: Backlog, page: Page) -> None:
        """Bring a page back into memory; the queue is told when it is there."""
        if page.loading or page.resident or page.place is None:
            return
        page.loading = True
        job = self._reader.submit(self._log(queue).read, page.place)
        job.add_done_callback(lambda done: self._post(partial(self._loaded, queue, page, done)))

    def load_now(self, queue: Backlog, page: Page) -> None:
        """Bring a page back before returning."""
        job: Future[bytes] = Future()
        try:
            if page.place is None:
                raise CorruptData("a page is neither in memory nor in the log")
            job.set_result(self._log(queue).read(page.place))
        except (StorageError, OSError) as error:
            job.set_exception(error)
        self._loaded(queue, page, job)

    def _loaded(self, queue: Backlog, page: Page, job: Future[bytes]) -> None:
        page.loading = False
        if queue.deleted or page.resident:
            return
        try:
            offsets, messages = decode_page(job.result(), page.end)
        except (StorageError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _UNREADABLE:
                logger.error("a page of queue %r cannot be read now: %s", queue.name, error)
                self._unread[page] = queue
                return
            logger.critical(
                "%d messages of queue %r, offsets %d to %d, cannot be read and are lost: %s",
                page.live, queue.name, page.start, page.end - 1, error,
            )  # fmt: skip
            queue.page_lost(page)
            return
        self.pages_read_total += 1
        queue.page_loaded(page, offsets, messages)

    # --- Deleting -------------------------------------------------------------------------------------------------

    def page_settled(self, queue: Backlog, page: Page) -> None:
        """A written page is of no use any more: its segment may be."""
        self._trimmable[queue.log_id] = queue
        if queue.recoverable and page.place is not None:
            self.settled_bytes += page.place.length

    def trim_transient(self) -> None:
        """Delete segments of transient queues that hold nothing any more."""
        for log_id, queue in list(self._trimmable.items()):
            if not queue.recoverable:
                del self._trimmable[log_id]
                self._trim(queue, self._first_needed(queue))

    def take_trimmable(self) -> dict[int, Backlog]:
        """Recoverable queues whose logs may hold something in vain. `trim_to` is for when a checkpoint that no longer
        speaks of it is durable."""
        self.settled_bytes = 0
        taken = {log_id: queue for log_id, queue in self._trimmable.items() if queue.recoverable}
        for log_id in taken:
            del self._trimmable[log_id]
        return taken

    def give_back_trimmable(self, queues: dict[int, Backlog]) -> None:
        """There was no checkpoint after all."""
        self._trimmable.update((log_id, queue) for log_id, queue in queues.items() if not queue.deleted)

    def trim_to(self, queue: Backlog, first_needed: int) -> None:
        """Delete segments that have nothing from `first_needed` on."""
        self._trim(queue, first_needed)

    def _trim(self, queue: Backlog, first_needed: int) -> None:
        log = self._logs.get(queue.log_id)
        if log is None and first_needed > 0 and not queue.deleted:
            log = self._log(queue)
        if log is not None and not queue.deleted:
            job = self._writer.submit(log.trim_before, first_needed)
            job.add_done_callback(partial(_report_failure, f"the log of queue {queue.name!r} could not be trimmed"))

    def _first_needed(self, queue: Backlog) -> int:
        for page in queue.pages:
            if page.place is not None or page.writing:
                return int(page.start)
        return int(queue.log_end)

    def delete_log(self, queue: Backlog) -> None:
        """The queue is gone: so is its log. Not at once where the catalog may yet forget, with the power, that the
        queue is gone; what a stop leaves behind goes at the next start."""
        self._trimmable.pop(queue.log_id, None)
        self.backlogs.pop(queue, None)
        log = self._logs.pop(queue.log_id, None)
        if log is None and queue.log_end > 0:
            log = self._log(queue)
            del self._logs[queue.log_id]
        if log is not None:
            if queue.recoverable:
                self._deleted_lately.append(log)
            else:
                self._delete(log)

    def delete_logs(self) -> None:
        """Called every second, which is longer than the catalog takes to sync: delete the logs of queues that have been
        gone since the call before."""
        due, self._deletable, self._deleted_lately = self._deletable, self._deleted_lately, []
        for log in due:
            self._delete(log)

    def _delete(self, log: LazyLog) -> None:
        job = self._writer.submit(log.delete)
        job.add_done_callback(partial(_report_failure, f"the log of queue {log.name!r} could not be deleted"))

    def folders(self) -> set[int]:
        """The ids of all recoverable queues that have a log folder."""
        if self._filesystem is None or not self._filesystem.exists(f"{self._folder}/{RECOVERABLE_FOLDER}"):
            return set()
        names = self._filesystem.list(f"{self._folder}/{RECOVERABLE_FOLDER}")
        return {int(name) for name in names if name.isdigit()}

    def surviving_pages(self, queue: Backlog) -> list[SurvivingPage]:
        """Every page in a queue's log that verifies, whatever is known of it."""
        if self._filesystem is None:
            return []
        log = Log(self._filesystem, self.log_folder(queue.log_id, True), SEGMENT_BYTES)
        report = log.open(None, 0)
        for reason in report.reasons:
            logger.critical("the log of queue %r was cut: %s", queue.name, reason)
        pages: list[SurvivingPage] = []
        for _, last_offset, count, place in log.places_from(0):
            if count > 0:
                try:
                    offsets, messages = decode_page(log.read(place), last_offset + 1)
                except CorruptData as error:
                    logger.critical("a page of queue %r is lost: %s", queue.name, error)
                    continue
                size = sum(int(message_size(message)) for message in messages)
                due_ms = min(int(message.due_ms) for message in messages)
                pages.append(SurvivingPage(int(offsets[0]), last_offset + 1, len(offsets), size, due_ms, place))
        log.close()
        return pages

    def delete_leftovers(self, known: set[int]) -> None:
        """At start: delete the logs of queues that are gone, and of all that did not survive the last stop."""
        filesystem = self._filesystem
        if filesystem is None:
            return
        folders = [self.log_folder(log_id, True) for log_id in self.folders() if queue_id(log_id) not in known]
        if filesystem.exists(f"{self._folder}/{TRANSIENT_FOLDER}"):
            transient = f"{self._folder}/{TRANSIENT_FOLDER}"
            folders += [f"{transient}/{name}" for name in filesystem.list(transient)]
        for folder in folders:
            job = self._writer.submit(_delete_folder, filesystem, folder)
            job.add_done_callback(partial(_report_failure, f"what is left in {folder} could not be deleted"))

    def close(self) -> None:
        """Finish what was asked for, then stop the threads."""
        self.stopping.set()
        self._cleaner.shutdown(wait=True, cancel_futures=True)
        self._reader.shutdown(wait=True)
        self._writer.shutdown(wait=True)
        for log_id, log in self._logs.items():
            try:
                if log_id > 0:
                    log.close()
                else:
                    log.delete()
            except (StorageError, OSError) as error:
                # The journal has what the log may have lost.
                logger.error("a queue's log could not be closed: %s", error)


def _report_failure(what: str, job: Future[None]) -> None:
    error = job.exception()
    if error is not None:
        logger.error("%s: %s", what, error)


def _delete_folder(filesystem: Filesystem, folder: str) -> None:
    for name in filesystem.list(folder):
        filesystem.remove(f"{folder}/{name}")
    filesystem.remove(folder)
