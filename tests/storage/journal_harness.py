"""A journal with a test in place of its event loop."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable

from millpond.base.errors import StorageFailed
from millpond.base.filesystem import Filesystem
from millpond.storage.journal import Journal, JournalListener, JournalReport, read_journal

FOLDER = "/data/journal"
DEADLINE_S = 20.0


class Recorder(JournalListener):
    """Remembers what the journal told."""

    def __init__(self) -> None:
        self.durable_sequence = 0
        self.blocks: list[bool] = []
        self.failures: list[StorageFailed] = []

    def committed(self, durable_sequence: int) -> None:
        assert durable_sequence > self.durable_sequence, "what is durable only grows"
        assert not self.failures, "nothing is durable after a failure"
        self.durable_sequence = durable_sequence

    def blocked(self, is_blocked: bool) -> None:
        self.blocks.append(is_blocked)

    def failed(self, error: StorageFailed) -> None:
        self.failures.append(error)


class JournalHarness:
    """A journal whose posts wait in a queue until the test, being the loop, runs them."""

    def __init__(
        self,
        filesystem: Filesystem,
        file_number: int = 0,
        file_bytes: int = 64 * 1024,
        before_sync: Callable[[], None] | None = None,
        folder: str = FOLDER,
    ) -> None:
        self.posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.recorder = Recorder()
        self.journal = Journal(
            filesystem, folder, file_number, self.posted.put, self.recorder, file_bytes, before_sync, retry_ms=1
        )

    def pump_until(self, condition: Callable[[], bool]) -> None:
        """Run the loop until the condition holds."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            self.posted.get(timeout=max(0.001, deadline - time.monotonic()))()

    def pump(self) -> None:
        """Run what is posted by now."""
        while not self.posted.empty():
            self.posted.get()()

    def commit(self, *payloads: bytes) -> None:
        """One turn with these frames, and wait until it is durable."""
        sequence = self.submit(*payloads, sync=True)
        self.pump_until(lambda: self.recorder.durable_sequence >= sequence)

    def submit(self, *payloads: bytes, sync: bool) -> int:
        """One turn with these frames; returns the sequence number that covers them."""
        for payload in payloads:
            self.journal.append(1, payload)
        sequence = self.journal.sequence
        self.journal.submit(sync)
        return sequence

    def started(self) -> JournalHarness:
        """Once the first file exists."""
        self.pump_until(lambda: self.recorder.durable_sequence >= 1)
        return self

    def close(self) -> None:
        self.journal.close()
        self.pump()


def recover(filesystem: Filesystem, first_file: int = 0, folder: str = FOLDER) -> tuple[list[bytes], JournalReport]:
    """The payloads that recovery applies, and its report."""
    payloads: list[bytes] = []
    report = read_journal(filesystem, folder, first_file, lambda _, payload: payloads.append(payload))
    return payloads, report


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait for another thread."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.0005)
