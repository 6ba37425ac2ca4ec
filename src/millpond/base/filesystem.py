"""The file system, passed in: storage reaches disks through here only, so that tests can put a bad one underneath.

    Filesystem ── OsFilesystem       the machine's
               ── MemoryFilesystem   a dict; for `--memory`, where nothing outlives the process
               ── FaultyFilesystem   in `faulty_filesystem.py`: forgets what was not synced, fills up, breaks

Paths are strings with `/`. Errors are the operating system's own `OSError`, with the errno that storage decides by;
only `lock` speaks for itself. All methods may be called from any thread.

What the rest of storage relies on: data is durable after `File.sync`, a file's existence after `sync_folder` of the
folder it is in, and `write_bytes_atomically` leaves either the old content or the new one, never a mixture.
"""

# The rest of the code gets its file system from here; pathlib would only wrap `os` once more.
# ruff: noqa: PTH102, PTH105, PTH108, PTH106, PTH110, PTH112, PTH120, PTH208

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import threading
from abc import ABC, abstractmethod
from typing import Final

from mypy_extensions import mypyc_attr

from millpond.base.errors import DataDirectoryInUse
from millpond.base.gradual_removal import GradualRemoval
from millpond.base.threads import MACHINE_THREADS, Threads


@mypyc_attr(allow_interpreted_subclasses=True)
class File(ABC):
    """One open file. Reads and writes name their position, so that threads can share it."""

    @abstractmethod
    def pread(self, position: int, size: int) -> bytes:
        """Up to `size` bytes from `position`; fewer only where the file ends."""

    @abstractmethod
    def pwrite(self, position: int, data: bytes) -> None:
        """Write all of `data` at `position`. After an error any part of it may have been written."""

    @abstractmethod
    def sync(self) -> None:
        """Make the content durable (fdatasync). After an error it is unknown what is on the disk, for good: the
        system forgets what it could not write, so a second attempt succeeds without having written anything."""

    @abstractmethod
    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes, or extend it with zeros."""

    @abstractmethod
    def allocate(self, size: int) -> None:
        """Reserve room for `size` bytes in all; new ones read as zeros. Does nothing where the system cannot;
        raises ENOSPC where there is no room."""

    @abstractmethod
    def size(self) -> int:
        """The file's length in bytes."""

    @abstractmethod
    def close(self) -> None:
        """Give the file back. Harmless when repeated."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Lock(ABC):
    """A lock that other processes respect, held until `close`."""

    @abstractmethod
    def close(self) -> None:
        """Release the lock. Harmless when repeated."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Filesystem(ABC):
    """Folders and files by path."""

    @property
    def threads(self) -> Threads:
        """Where those who use the file system get their threads from."""
        return MACHINE_THREADS

    @abstractmethod
    def open(self, path: str, create: bool) -> File:
        """Open for reading and writing. With `create` the file is made where it does not exist."""

    @abstractmethod
    def list(self, folder: str) -> list[str]:
        """The names in `folder`, sorted. Empty where there is no such folder."""

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether there is a file or folder at `path`."""

    @abstractmethod
    def mkdirs(self, folder: str) -> None:
        """Make `folder` and what is missing above it, durably."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove a file, or an empty folder. Harmless where there is none."""

    def discard(self, path: str) -> None:
        """Remove a file that nobody has open. Where that would keep the disk busy, its room comes back later."""
        self.remove(path)

    @abstractmethod
    def rename(self, path: str, to: str) -> None:
        """Move a file, replacing what is at `to`."""

    @abstractmethod
    def sync_folder(self, folder: str) -> None:
        """Make the creations, removals and renames in `folder` durable."""

    @abstractmethod
    def free_bytes(self, path: str) -> int:
        """Room left for us on the disk that holds `path`."""

    @abstractmethod
    def total_bytes(self, path: str) -> int:
        """How large the disk is that holds `path`."""

    @abstractmethod
    def lock(self, path: str) -> Lock:
        """Take the exclusive lock at `path`. Raises DataDirectoryInUse, naming the holder's pid where it is known."""

    def read_bytes(self, path: str) -> bytes:
        """A whole file."""
        file = self.open(path, False)
        try:
            return file.pread(0, file.size())
        finally:
            file.close()

    def write_bytes_atomically(self, path: str, data: bytes) -> None:
        """Put `data` at `path`, durably: whoever looks, at whatever time, finds the old content or the new."""
        temporary = path + ".tmp"
        file = self.open(temporary, True)
        try:
            file.truncate(0)
            file.pwrite(0, data)
            file.sync()
        finally:
            file.close()
        self.rename(temporary, path)
        self.sync_folder(posixpath.dirname(path) or ".")


class _OsFile(File):
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def pread(self, position: int, size: int) -> bytes:
        data = os.pread(self._descriptor, size, position)
        if len(data) == size or not data:
            return data
        # A signal or a network file system may cut a read short before the file's end.
        parts = [data]
        done = len(data)
        while done < size:
            data = os.pread(self._descriptor, size - done, position + done)
            if not data:
                break
            parts.append(data)
            done += len(data)
        return b"".join(parts)

    def pwrite(self, position: int, data: bytes) -> None:
        done = os.pwrite(self._descriptor, data, position)
        while done < len(data):
            done += os.pwrite(self._descriptor, memoryview(data)[done:], position + done)

    def sync(self) -> None:
        # macOS has no fdatasync.
        getattr(os, "fdatasync", os.fsync)(self._descriptor)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def allocate(self, size: int) -> None:
        if size <= 0 or not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(self._descriptor, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV):
                raise

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class _OsLock(Lock):
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def close(self) -> None:
        # The file stays: removing it would let two processes lock two files of the same name.
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


# One for the process: there is one disk to be kept from being busy.
_removal: Final = GradualRemoval()


class OsFilesystem(Filesystem):
    """The machine's file system."""

    def open(self, path: str, create: bool) -> File:
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        return _OsFile(os.open(path, flags, 0o640))

    def list(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(folder))
        except FileNotFoundError:
            return []

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def mkdirs(self, folder: str) -> None:
        if not folder or os.path.isdir(folder):
            return
        above = os.path.dirname(folder.rstrip("/"))
        self.mkdirs(above)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o750)
        self.sync_folder(above or ".")

    def remove(self, path: str) -> None:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except (IsADirectoryError, PermissionError):
            # Linux and macOS answer differently for a folder.
            os.rmdir(path)

    def discard(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            _removal.remove(path)

    def rename(self, path: str, to: str) -> None:
        os.replace(path, to)

    def sync_folder(self, folder: str) -> None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def free_bytes(self, path: str) -> int:
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize

    def total_bytes(self, path: str) -> int:
        status = os.statvfs(path)
        return status.f_blocks * status.f_frsize

    def lock(self, path: str) -> Lock:
        import fcntl

        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise _in_use(path, holder) from None
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        except OSError:
            # The pid is for people; a full disk must not keep the broker from starting.
            pass
        return _OsLock(descriptor)


def _in_use(path: str, holder: str) -> DataDirectoryInUse:
    by = f"by process {holder}" if holder.isdigit() else "by another process"
    return DataDirectoryInUse(f"the data directory {posixpath.dirname(path) or '.'} is in use {by}")


class _MemoryFile(File):
    """An open file of `MemoryFilesystem`; all that are open at one path share the content."""

    def __init__(self, content: bytearray, guard: threading.Lock) -> None:
        self._content = content
        self._guard = guard

    def pread(self, position: int, size: int) -> bytes:
        with self._guard:
            return bytes(self._content[position : position + size])

    def pwrite(self, position: int, data: bytes) -> None:
        with self._guard:
            content = self._content
            if position > len(content):
                content.extend(bytes(position - len(content)))
            content[position : position + len(data)] = data

    def sync(self) -> None:
        pass

    def truncate(self, size: int) -> None:
        with self._guard:
            del self._content[size:]
            self._content.extend(bytes(size - len(self._content)))

    def allocate(self, size: int) -> None:
        # Memory that is only reserved would still be taken.
        pass

    def size(self) -> int:
        return len(self._content)

    def close(self) -> None:
        pass


class _MemoryLock(Lock):
    def __init__(self, locks: set[str], path: str) -> None:
        self._locks = locks
        self._path = path

    def close(self) -> None:
        self._locks.discard(self._path)


class MemoryFilesystem(Filesystem):
    """Files in a dict. Nothing outlives the process, nothing is slow, nothing fails."""

    def __init__(self) -> None:
        self._files: dict[str, bytearray] = {}
        self._folders: set[str] = set()
        self._locks: set[str] = set()
        self._guard = threading.Lock()

    def open(self, path: str, create: bool) -> File:
        with self._guard:
            content = self._files.get(path)
            if content is None:
                if not create:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
                content = self._files[path] = bytearray()
            return _MemoryFile(content, self._guard)

    def list(self, folder: str) -> list[str]:
        prefix = folder.rstrip("/") + "/"
        with self._guard:
            paths = [*self._files, *self._folders]
        return sorted({path[len(prefix) :].partition("/")[0] for path in paths if path.startswith(prefix)})

    def exists(self, path: str) -> bool:
        return path in self._files or path in self._folders or bool(self.list(path))

    def mkdirs(self, folder: str) -> None:
        self._folders.add(folder.rstrip("/"))

    def remove(self, path: str) -> None:
        with self._guard:
            self._files.pop(path, None)
            self._folders.discard(path.rstrip("/"))

    def rename(self, path: str, to: str) -> None:
        with self._guard:
            if path not in self._files:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            self._files[to] = self._files.pop(path)

    def sync_folder(self, folder: str) -> None:
        pass

    def free_bytes(self, path: str) -> int:
        # Memory has its own limit, the memory budget: as a disk it never runs out.
        return 1 << 62

    def total_bytes(self, path: str) -> int:
        return 1 << 62

    def lock(self, path: str) -> Lock:
        with self._guard:
            if path in self._locks:
                raise _in_use(path, str(os.getpid()))
            self._locks.add(path)
        return _MemoryLock(self._locks, path)
