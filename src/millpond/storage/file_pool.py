"""The open files of all logs: ten thousand idle logs must not hold ten thousand descriptors.

A file is opened when it is first read or written, and the one not used for the longest time is closed when there are
too many. One that has unsynced writes is synced before it is closed: an error that the system would report to the
descriptor that wrote must not get lost with it.

Any thread may read, write and sync. What one file holds where two threads write to it is theirs to order.
"""

from __future__ import annotations

import contextlib
import weakref
from typing import Final, final

from mypy_extensions import mypyc_attr

from millpond.base import limits
from millpond.base.errors import StorageFailed
from millpond.base.filesystem import File, Filesystem


@final
class _Entry:
    def __init__(self, file: File, syncing: contextlib.AbstractContextManager[object]) -> None:
        self.file: Final = file
        self.users = 0
        # No longer in the pool: whoever uses it last closes it.
        self.is_forgotten = False
        self.is_dirty = False
        # Held for as long as a sync takes, so that a second one waits for the first instead of finding nothing to do.
        self.syncing: Final = syncing


@final
@mypyc_attr(native_class=False)
class FilePool:
    """Files by path, at most `files_max` open while not in use."""

    def __init__(self, filesystem: Filesystem, files_max: int = limits.FILES_OPEN_MAX) -> None:
        self.filesystem: Final = filesystem
        self._files_max: Final = files_max
        self._guard: Final = filesystem.threads.guard()
        # The most recently used last.
        self._entries: Final[dict[str, _Entry]] = {}
        self._failed: Final[set[str]] = set()

    @property
    def open_count(self) -> int:
        return len(self._entries)

    def read(self, path: str, position: int, size: int) -> bytes:
        """Up to `size` bytes; fewer only where the file ends."""
        entry = self._take(path, False)
        try:
            return entry.file.pread(position, size)
        finally:
            self._give_back(entry)

    def write(self, path: str, position: int, data: bytes) -> None:
        """Write all of `data`, creating the file where there is none."""
        entry = self._take(path, True)
        try:
            # Before the write: a sync meanwhile may not cover it.
            entry.is_dirty = True
            entry.file.pwrite(position, data)
            entry.is_dirty = True
        finally:
            self._give_back(entry)

    def size(self, path: str) -> int:
        entry = self._take(path, False)
        try:
            return entry.file.size()
        finally:
            self._give_back(entry)

    def truncate(self, path: str, size: int) -> None:
        entry = self._take(path, False)
        try:
            entry.file.truncate(size)
            entry.is_dirty = True
        finally:
            self._give_back(entry)

    def mark_dirty(self, path: str) -> None:
        """Have the next sync cover what was written to the file before it was opened here."""
        entry = self._take(path, False)
        entry.is_dirty = True
        self._give_back(entry)

    def sync(self, path: str) -> None:
        """Make all that was written to the file through this pool durable. Raises StorageFailed where that failed,
        now or ever before."""
        with self._guard:
            self._check_failed(path)
            entry = self._entries.get(path)
            if entry is None:
                # It was synced when it was closed.
                return
            entry.users += 1
        try:
            with entry.syncing:
                self._sync_entry(path, entry)
        finally:
            self._give_back(entry)

    def forget(self, path: str) -> bool:
        """Close a file that is about to be removed. False where somebody is reading it, who closes it then."""
        with self._guard:
            entry = self._entries.pop(path, None)
            self._failed.discard(path)
            if entry is not None:
                entry.is_forgotten = True
                if entry.users > 0:
                    return False
                entry.file.close()
        return True

    def remove(self, path: str) -> None:
        """Close a file, and remove it. Whoever is reading it at this moment reads on."""
        if self.forget(path):
            self.filesystem.discard(path)
        else:
            self.filesystem.remove(path)

    def release(self, path: str) -> None:
        """Sync and close a file that is not in use."""
        with self._guard:
            if path in self._entries:
                self._close_entry(path)

    def _take(self, path: str, create: bool) -> _Entry:
        with self._guard:
            entry = self._entries.pop(path, None)
            if entry is None:
                entry = _Entry(self.filesystem.open(path, create), self.filesystem.threads.guard())
            self._entries[path] = entry
            entry.users += 1
            if len(self._entries) > self._files_max:
                self._close_idle()
            return entry

    def _give_back(self, entry: _Entry) -> None:
        with self._guard:
            entry.users -= 1
            if entry.users == 0 and entry.is_forgotten:
                entry.file.close()

    def _close_idle(self) -> None:
        for path in list(self._entries):
            if len(self._entries) <= self._files_max:
                return
            if self._entries[path].users == 0:
                self._close_entry(path)

    def _close_entry(self, path: str) -> None:
        """Under the guard: nobody may find the file gone from the pool before its writes are durable."""
        entry = self._entries[path]
        if entry.users > 0:
            return
        # A failure is told to whoever syncs the file next.
        with contextlib.suppress(StorageFailed):
            self._sync_entry(path, entry)
        del self._entries[path]
        entry.file.close()

    def _sync_entry(self, path: str, entry: _Entry) -> None:
        self._check_failed(path)
        if not entry.is_dirty:
            return
        # Before the sync: a write meanwhile needs another one.
        entry.is_dirty = False
        try:
            entry.file.sync()
        except OSError as error:
            self._failed.add(path)
            raise StorageFailed(f"{path} could not be made durable: {error}") from error

    def _check_failed(self, path: str) -> None:
        if path in self._failed:
            raise StorageFailed(f"{path} could not be made durable, and its content is unknown since")


# By the file system's id, which is unique for as long as the pool keeps it alive.
_shared: Final[weakref.WeakValueDictionary[int, FilePool]] = weakref.WeakValueDictionary()


def shared_pool(filesystem: Filesystem) -> FilePool:
    """The pool of all logs on `filesystem` that are not given one of their own."""
    pool = _shared.get(id(filesystem))
    if pool is None:
        pool = _shared[id(filesystem)] = FilePool(filesystem)
    return pool
