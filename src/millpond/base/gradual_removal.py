"""Giving back the room of large files that are gone, little by little.

To unlink a file of 128 MiB keeps ext4 busy for 20 ms and more, and who syncs another file meanwhile waits for all of
it: publishers, for their confirms. So a large file loses its name at once, and its content from the end in steps, with
time between them for others. Should the process end before, the file system frees the rest: nothing has its name.
"""

# The file system below gets its files from here; pathlib would only wrap `os` once more.
# ruff: noqa: PTH108, PTH116

from __future__ import annotations

import contextlib
import os
import threading
import time
from queue import SimpleQueue
from typing import Final

from millpond.base.limits import REMOVED_AT_ONCE_BYTES, REMOVED_FILES_MAX

_PAUSE_S: Final = 0.005


class GradualRemoval:
    """A thread that shrinks files that have lost their names. It begins with the first of them."""

    def __init__(self) -> None:
        self._descriptors: Final[SimpleQueue[int]] = SimpleQueue()
        self._guard: Final = threading.Lock()
        self._is_running = False

    def remove(self, path: str) -> None:
        """Remove a file, which nobody may be reading. FileNotFoundError and the like are the system's own."""
        if os.stat(path).st_size <= REMOVED_AT_ONCE_BYTES or self._descriptors.qsize() >= REMOVED_FILES_MAX:
            os.unlink(path)
            return
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.unlink(path)
        except OSError:
            os.close(descriptor)
            raise
        with self._guard:
            if not self._is_running:
                self._is_running = True
                threading.Thread(target=self._run, name="millpond-remover", daemon=True).start()
        self._descriptors.put(descriptor)

    def _run(self) -> None:
        while True:
            _shrink(self._descriptors.get())


def _shrink(descriptor: int) -> None:
    # Where the system refuses, closing it frees all the same.
    with contextlib.suppress(OSError):
        size = os.fstat(descriptor).st_size
        while size > REMOVED_AT_ONCE_BYTES:
            size -= REMOVED_AT_ONCE_BYTES
            os.ftruncate(descriptor, size)
            time.sleep(_PAUSE_S)
    os.close(descriptor)
