"""Looks for records of a partition by their time, also within compressed batches: in its log, and in what is hot.

    the log, in steps of some MiB, on the reading thread -> the hot batches behind it, on the reading thread -> done

Batches go from memory to the log meanwhile; where those that are next have, the log is looked at again. Only what is
durable is found.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

from millpond.base.errors import CorruptData
from millpond.base.limits import STREAM_SEARCH_BYTES
from millpond.broker.streams.partition import Batch, Partition
from millpond.storage.batch_rewrite import first_record_at, newest_record

if TYPE_CHECKING:
    from millpond.broker.queues.page_store import PageStore
    from millpond.broker.streams.stream_store import StreamStore

logger = logging.getLogger(__name__)

# Gets an offset and a timestamp, or -1 and -1.
Done = Callable[[int, int], None]


class TimeSearch:
    """Looks for the first record that is not older than a time."""

    def __init__(
        self, streams: StreamStore, store: PageStore, partition: Partition, timestamp_ms: int, done: Done
    ) -> None:
        self._streams = streams
        self._store = store
        self._partition = partition
        self._timestamp_ms = timestamp_ms
        self._done = done
        # Before it there is none.
        self._offset = int(partition.start_offset)
        # Where the hot batches end that are being looked at.
        self._looked_until = 0

    def go_on(self) -> None:
        """Take the next step."""
        partition, timestamp_ms = self._partition, self._timestamp_ms
        self._offset = max(self._offset, int(partition.start_offset))
        if partition.deleted or self._offset >= partition.durable_end:
            self._done(-1, -1)
            return
        hot = partition.durable_from(self._offset)
        if partition.recoverable and (not hot or hot[0].base_offset > self._offset):
            search = partial(self._streams.log(partition).find_record, timestamp_ms, self._offset, STREAM_SEARCH_BYTES)
            self._store.run_on_reader(search, self._looked_in_log)
            return
        self._looked_until = int(hot[-1].end_offset) if hot else int(partition.durable_end)
        looked_at = [batch for batch in hot if batch.newest_ms >= timestamp_ms]
        if not looked_at:
            self._go_on_from(self._looked_until)
            return
        search_hot = partial(_find_in_batches, looked_at, timestamp_ms, self._offset)
        self._store.run_on_reader(search_hot, self._looked_in_hot)

    def _looked_in_log(self, job: Future[tuple[int, int, int]]) -> None:
        error = job.exception()
        if error is not None:
            logger.error("a time could not be looked for in stream %r: %s", self._partition.name, error)
            self._done(-1, -1)
            return
        found, found_ms, following = job.result()
        if found >= 0:
            self._tell(found, found_ms)
        else:
            self._go_on_from(following)

    def _looked_in_hot(self, job: Future[tuple[int, int]]) -> None:
        found, found_ms = job.result()
        if found >= 0:
            self._tell(found, found_ms)
        else:
            self._go_on_from(self._looked_until)

    def _go_on_from(self, offset: int) -> None:
        if offset <= self._offset:
            # The log ends before what is hot: what lies between them is lost.
            hot = self._partition.durable_from(self._offset)
            offset = int(hot[0].base_offset) if hot else int(self._partition.durable_end)
        self._offset = offset
        self.go_on()

    def _tell(self, offset: int, timestamp_ms: int) -> None:
        if offset < self._partition.durable_end:
            self._done(offset, timestamp_ms)
        else:
            self._done(-1, -1)


def find_newest(streams: StreamStore, store: PageStore, partition: Partition, done: Done) -> None:
    """Look for the record with the largest timestamp, the first of several."""
    start = int(partition.start_offset)
    hot = partition.durable_from(start)
    in_log = partition.recoverable and partition.written_end > start and (not hot or hot[0].base_offset > start)

    def look() -> tuple[int, int]:
        best = streams_log.find_newest(start) if streams_log is not None else (-1, -1)
        for batch in hot:
            # Some of what is hot is in the log as well.
            if batch.newest_ms > best[1] or best[0] < 0:
                best = max(best, _sensible(newest_record, batch, start), key=_newer)
        return best

    def looked(job: Future[tuple[int, int]]) -> None:
        error = job.exception()
        if error is not None:
            logger.error("the newest record of stream %r could not be looked for: %s", partition.name, error)
        offset, timestamp_ms = (-1, -1) if error is not None else job.result()
        if partition.start_offset <= offset < partition.durable_end:
            done(offset, timestamp_ms)
        else:
            done(-1, -1)

    if partition.deleted or start >= partition.durable_end:
        done(-1, -1)
        return
    streams_log = streams.log(partition) if in_log else None
    store.run_on_reader(look, looked)


def _newer(found: tuple[int, int]) -> tuple[int, int]:
    """Orders by time, and the first of several before the others."""
    offset, timestamp_ms = found
    return (timestamp_ms, -offset) if offset >= 0 else (-2, 0)


def _find_in_batches(batches: list[Batch], timestamp_ms: int, offset: int) -> tuple[int, int]:
    for batch in batches:
        found = _sensible(first_record_at, batch, timestamp_ms, offset)
        if found[0] >= 0:
            return found
    return -1, -1


def _sensible(search: Callable[..., tuple[int, int]], batch: Batch, *arguments: int) -> tuple[int, int]:
    """What a search in a batch has found: nothing where its records make no sense."""
    try:
        return search(batch.data, *arguments) if batch.data else (-1, -1)
    except CorruptData:
        return -1, -1
