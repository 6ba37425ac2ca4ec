"""Threads, and what they wait for. They come with the file system that they work on (`Filesystem.threads`): a simulated
disk brings threads of its own, which take turns in an order that can be had again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from queue import SimpleQueue
from typing import Any, Final


class Threads:
    """The machine's threads."""

    def start(self, name: str, run: Callable[[], None]) -> Callable[[], None]:
        """Have `run` run beside all others; returns what waits for its end."""
        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread.join

    def executor(self, name: str) -> Executor:
        """One thread that does what it is given, in that order."""
        return ThreadPoolExecutor(1, name)

    def queue(self) -> SimpleQueue[Any]:
        """What one thread gives to another."""
        return SimpleQueue()

    def event(self) -> threading.Event:
        """What threads wait for."""
        return threading.Event()

    def guard(self) -> AbstractContextManager[Any]:
        """What one thread at a time can hold."""
        return threading.Lock()


MACHINE_THREADS: Final = Threads()
