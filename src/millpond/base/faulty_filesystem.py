"""A disk for tests that does all that real disks do on bad days.

    crash()           the power fails: what was not synced is gone, or is there in part and in any order
    capacity_bytes    the disk is full beyond it
    fail(...)         the n-th write, sync, ... from now on raises an error
    hold_syncs()      a sync takes until it is let go

Content is durable after `sync` of the file, a name after `sync_folder`, as POSIX promises and no more. A failed sync
loses what it should have made durable, for good, while reads still see it; so does Linux.

Everything random comes from the seed.
"""

from __future__ import annotations

import errno
import os
import posixpath
import random
import threading
from collections import Counter
from typing import Final, Self

from millpond.base.errors import DataDirectoryInUse
from millpond.base.filesystem import File, Filesystem, Lock

# What a disk writes in one piece.
SECTOR_BYTES: Final = 512


class _Inode:
    """A file's content: what reads see, what a power cut leaves, and the writes in between."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.durable = b""
        # (position, data) of each write; data None is a truncation to that position.
        self.unsynced: list[tuple[int, bytes | None]] = []

    def copy(self) -> _Inode:
        other = _Inode()
        other.content = bytearray(self.content)
        other.durable = self.durable
        other.unsynced = list(self.unsynced)
        return other

    def apply(self, content: bytearray, position: int, data: bytes | None) -> None:
        if data is None:
            del content[position:]
            content.extend(bytes(position - len(content)))
            return
        content.extend(bytes(max(0, position - len(content))))
        content[position : position + len(data)] = data


# Paths and what they name from then on; None is nothing.
_NameChange = list[tuple[str, _Inode | None]]


class _Fault:
    def __init__(self, operation: str, path: str, countdown: int, code: int, times: int) -> None:
        self.operation = operation
        self.path = path
        self.countdown = countdown
        self.code = code
        self.times = times


class _FaultyFile(File):
    def __init__(self, disk: FaultyFilesystem, path: str, inode: _Inode) -> None:
        self._disk = disk
        self._path = path
        self._inode = inode
        self._is_open = True

    def pread(self, position: int, size: int) -> bytes:
        assert self._is_open
        with self._disk.guard:
            self._disk.enter("read", self._path)
            return bytes(self._inode.content[position : position + size])

    def pwrite(self, position: int, data: bytes) -> None:
        assert self._is_open
        disk, inode = self._disk, self._inode
        with disk.guard:
            try:
                disk.enter("write", self._path)
            except OSError:
                # A failed write may have written a part.
                self._write(position, data[: disk.random.randrange(len(data) + 1)])
                raise
            room = disk.room() + len(inode.content) - position
            self._write(position, data[: max(0, room)])
            if len(data) > room:
                raise _error(errno.ENOSPC, self._path)

    def sync(self) -> None:
        assert self._is_open
        disk, inode = self._disk, self._inode
        with disk.guard:
            covered = len(inode.unsynced)
            snapshot = bytes(inode.content)
            disk.syncs_started += 1
        disk.wait_for_syncs()
        with disk.guard:
            try:
                disk.enter("sync", self._path)
            except OSError:
                # The system marks what it could not write as clean, and forgets about it.
                del inode.unsynced[:covered]
                raise
            if disk.has_lost(inode):
                return
            inode.durable = snapshot
            del inode.unsynced[:covered]

    def truncate(self, size: int) -> None:
        with self._disk.guard:
            self._disk.enter("truncate", self._path)
            self._inode.apply(self._inode.content, size, None)
            self._inode.unsynced.append((size, None))

    def allocate(self, size: int) -> None:
        disk, inode = self._disk, self._inode
        with disk.guard:
            disk.enter("allocate", self._path)
            if size - len(inode.content) > disk.room():
                raise _error(errno.ENOSPC, self._path)
            if size > len(inode.content):
                inode.apply(inode.content, size, None)
                inode.unsynced.append((size, None))

    def size(self) -> int:
        return len(self._inode.content)

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._disk.open_files -= 1

    def _write(self, position: int, data: bytes) -> None:
        if data:
            self._inode.apply(self._inode.content, position, data)
            self._inode.unsynced.append((position, data))


class _FaultyLock(Lock):
    def __init__(self, locks: set[str], path: str) -> None:
        self._locks = locks
        self._path = path

    def close(self) -> None:
        self._locks.discard(self._path)


class FaultyFilesystem(Filesystem):
    """An in-memory disk with faults. `counts` has the number of each operation, for tests that count syncs."""

    def __init__(self, seed: int = 0) -> None:
        self.random: Final = random.Random(seed)
        self.guard: Final = threading.RLock()
        self.counts: Counter[str] = Counter()
        self.capacity_bytes: int | None = None
        self.open_files = 0
        self.syncs_started = 0
        self._names: dict[str, _Inode] = {}
        self._durable_names: dict[str, _Inode] = {}
        # Per folder, the changes to its names since it was synced; each is done as a whole or not at all.
        self._unsynced_names: dict[str, list[_NameChange]] = {}
        self._folders: set[str] = set()
        self._locks: set[str] = set()
        self._faults: list[_Fault] = []
        self._lost: set[_Inode] = set()
        self._syncs_may_go: Final = threading.Event()
        self._syncs_may_go.set()

    # --- What a test asks for --------------------------------------------------------------------------------------

    def fail(self, operation: str, code: int, nth: int = 1, times: int = 1, path: str = "") -> None:
        """Have the `nth` operation from now on ("write", "sync", "allocate", "open", "sync_folder", ...) of a path that
        contains `path`, and the following, `times` in all, raise the error `code`."""
        self._faults.append(_Fault(operation, path, nth, code, times))

    def heal(self) -> None:
        """No more faults are to come. What was lost stays lost."""
        self._faults.clear()

    def hold_syncs(self) -> None:
        """Have syncs wait until `release_syncs`."""
        self._syncs_may_go.clear()

    def release_syncs(self) -> None:
        self._syncs_may_go.set()

    def crash(self, keeps_some: bool = False) -> None:
        """The power fails. Only what is durable is left; with `keeps_some`, also a random choice of the sectors
        and names that were on their way. Nothing may use the files that are open."""
        with self.guard:
            for changes in self._unsynced_names.values():
                # A file system's own journal keeps the order of the changes to one folder.
                kept = self.random.randint(0, len(changes)) if keeps_some else 0
                for change in changes[:kept]:
                    self._apply_names(self._durable_names, change)
                changes.clear()
            self._names = dict(self._durable_names)
            for inode in dict.fromkeys(self._names.values()):
                content = bytearray(inode.durable)
                if keeps_some and inode not in self._lost:
                    self._keep_some(inode, content)
                inode.content = content
                inode.durable = bytes(content)
                inode.unsynced = []
            self._lost.clear()
            self._locks.clear()
            self._faults.clear()
            self.capacity_bytes = None
            self.open_files = 0

    def flip_bit(self, path: str, bit: int) -> None:
        """Damage a file: durably, and without anybody's knowledge."""
        inode = self._names[path]
        inode.content[bit // 8] ^= 1 << (bit % 8)
        inode.durable = bytes(inode.content)

    def copy(self) -> Self:
        """A disk with the same files, all of them durable."""
        other = type(self)(self.random.randrange(1 << 30))
        for path, inode in self._names.items():
            other.put(path, bytes(inode.content))
        other._folders = set(self._folders)
        return other

    def copy_for_crash(self) -> Self:
        """A disk in the same state, with all that is on its way; whoever uses this one goes on with this one."""
        with self.guard:
            other = type(self)(self.random.randrange(1 << 30))
            twins: dict[_Inode, _Inode] = {}
            for names, other_names in ((self._names, other._names), (self._durable_names, other._durable_names)):
                for path, inode in names.items():
                    other_names[path] = twins.setdefault(inode, inode.copy())
            for folder, changes in self._unsynced_names.items():
                other._unsynced_names[folder] = [
                    [(path, None if inode is None else twins.setdefault(inode, inode.copy())) for path, inode in change]
                    for change in changes
                ]
            other._lost = {twins[inode] for inode in self._lost if inode in twins}
            other._folders = set(self._folders)
            return other

    def put(self, path: str, data: bytes) -> None:
        """Have a durable file."""
        inode = _Inode()
        inode.content = bytearray(data)
        inode.durable = data
        self._names[path] = self._durable_names[path] = inode

    # --- Filesystem ------------------------------------------------------------------------------------------------

    def open(self, path: str, create: bool) -> File:
        with self.guard:
            self.enter("open", path)
            inode = self._names.get(path)
            if inode is None:
                if not create:
                    raise _error(errno.ENOENT, path)
                if self.room() <= 0:
                    raise _error(errno.ENOSPC, path)
                inode = _Inode()
                self._change([(path, inode)])
            self.open_files += 1
            return _FaultyFile(self, path, inode)

    def list(self, folder: str) -> list[str]:
        prefix = folder.rstrip("/") + "/"
        with self.guard:
            paths = [*self._names, *self._folders]
        return sorted({path[len(prefix) :].partition("/")[0] for path in paths if path.startswith(prefix)})

    def exists(self, path: str) -> bool:
        return path in self._names or path in self._folders or bool(self.list(path))

    def mkdirs(self, folder: str) -> None:
        with self.guard:
            self.enter("mkdirs", folder)
            self._folders.add(folder.rstrip("/"))

    def remove(self, path: str) -> None:
        with self.guard:
            self.enter("remove", path)
            if path in self._names:
                self._change([(path, None)])
            self._folders.discard(path.rstrip("/"))

    def rename(self, path: str, to: str) -> None:
        with self.guard:
            self.enter("rename", path)
            if path not in self._names:
                raise _error(errno.ENOENT, path)
            self._change([(to, self._names[path]), (path, None)])

    def sync_folder(self, folder: str) -> None:
        with self.guard:
            self.enter("sync_folder", folder)
            for change in self._unsynced_names.pop(folder, []):
                self._apply_names(self._durable_names, change)

    def free_bytes(self, path: str) -> int:
        return max(0, self.room())

    def total_bytes(self, path: str) -> int:
        return 1 << 62

    def lock(self, path: str) -> Lock:
        with self.guard:
            if path in self._locks:
                raise DataDirectoryInUse(f"the data directory {posixpath.dirname(path)} is in use")
            self._locks.add(path)
        return _FaultyLock(self._locks, path)

    # --- For the files ---------------------------------------------------------------------------------------------

    def enter(self, operation: str, path: str) -> None:
        """Count an operation, and raise the error that is due."""
        self.counts[operation] += 1
        for fault in self._faults:
            if fault.operation != operation or fault.path not in path:
                continue
            fault.countdown -= 1
            if fault.countdown <= 0 and fault.times > 0:
                fault.times -= 1
                if operation == "sync":
                    self._lost.add(self._names[path])
                raise _error(fault.code, path)

    def has_lost(self, inode: _Inode) -> bool:
        """Whether a sync of the file failed once: what later ones say means nothing."""
        return inode in self._lost

    def room(self) -> int:
        if self.capacity_bytes is None:
            return 1 << 40
        return self.capacity_bytes - sum(len(inode.content) for inode in set(self._names.values()))

    def wait_for_syncs(self) -> None:
        if not self._syncs_may_go.wait(30):
            raise AssertionError("nobody let the sync go")

    def _change(self, change: _NameChange) -> None:
        self._apply_names(self._names, change)
        self._unsynced_names.setdefault(posixpath.dirname(change[0][0]), []).append(change)

    def _apply_names(self, names: dict[str, _Inode], change: _NameChange) -> None:
        for path, inode in change:
            if inode is None:
                names.pop(path, None)
            else:
                names[path] = inode

    def _keep_some(self, inode: _Inode, content: bytearray) -> None:
        """Apply a random choice of the sectors that were written. Sizes change in their order."""
        chance = self.random.choice((0.1, 0.5, 0.9, 1.0))
        for position, data in inode.unsynced:
            if data is None:
                if self.random.random() < chance:
                    inode.apply(content, position, None)
                continue
            end = position + len(data)
            start = position
            while start < end:
                stop = min(end, (start // SECTOR_BYTES + 1) * SECTOR_BYTES)
                if self.random.random() < chance:
                    inode.apply(content, start, data[start - position : stop - position])
                start = stop


def _error(code: int, path: str) -> OSError:
    return OSError(code, os.strerror(code), path)
