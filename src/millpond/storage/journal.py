"""The write-ahead journal: every durable change of state goes through it, and only its commit waits for the disk.

    loop thread                                   commit thread
    append, append, ... submit(sync) ── queue ──> takes all that is queued: one pwrite, at most one fdatasync
    committed(durable_sequence) <───── post ────┘

What a turn of the event loop appends has one sequence number. `committed` tells up to which number everything is on
the disk; that, and nothing else, is what a publisher's confirm may be sent for. While one fdatasync is in progress the
turns that follow collect, and the next one serves them all.

When the disk is full nothing is lost: the thread writes the same bytes to the same place until there is room
(`blocked`). When a write fails otherwise, or an fdatasync fails at all, it is over (`failed`): the system has forgotten
what it could not write, so a later fdatasync would succeed without having kept the promise. Nothing is ever
reported durable after that.

A file that a checkpoint has made superfluous is kept, one at a time, to become a later one: its blocks are there and
have been written, so that an fdatasync has nothing but the data to write. What it held stays in it until it is written
over; no two files have salts of the same checksum, so nothing of that can ever verify. Files of an earlier process are
not used again, because their salts are not known.

Files are numbered without gaps, and a file is used only after the one before it is durable. `read_journal` in
`journal_recovery.py` reads them back. `frames.py` has the layout.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final, final

from crc32c import crc32c
from librt.strings import BytesWriter
from mypy_extensions import i64, mypyc_attr

from millpond.base import limits
from millpond.base.errors import StorageFailed
from millpond.base.filesystem import File, Filesystem
from millpond.storage.aside import is_disk_full
from millpond.storage.frames import (
    FILE_HEADER_BYTES,
    SALT_BYTES,
    end_of_file,
    file_header,
    write_frame_head,
    write_mark,
)
from millpond.storage.journal_recovery import JournalReport, file_path, journal_files, read_journal
from millpond.storage.pieces import joined

__all__ = ["Journal", "JournalListener", "JournalReport", "read_journal"]

# The file that is kept to be used again; no file of the journal has such a name.
_SPARE_NAME: Final = "spare"
# It is kept while there is room for so many files.
_ROOM_FOR_SPARE: Final[i64] = 4
# A pending buffer that grew beyond this is given back, so that one burst does not hold memory for good.
_BUFFER_KEPT_BYTES: Final[i64] = 1 << 20


@mypyc_attr(allow_interpreted_subclasses=True)
class JournalListener:
    """What a journal tells, always on the loop's thread."""

    def committed(self, durable_sequence: i64) -> None:
        """Everything up to `durable_sequence` is on the disk."""

    def blocked(self, is_blocked: bool) -> None:
        """The disk is full, and nothing becomes durable until it is told that this is over."""

    def failed(self, error: StorageFailed) -> None:
        """Writing failed for good. Nothing more becomes durable; told once."""


class _Command:
    """One thing for the commit thread to do. `sequence` is durable once it is done and synced."""

    def __init__(self, sequence: i64) -> None:
        self.sequence: Final[i64] = sequence


@final
class _Write(_Command):
    def __init__(self, sequence: i64, data: list[bytes]) -> None:
        super().__init__(sequence)
        self.data: Final = data


@final
class _Sync(_Command):
    pass


@final
class _Roll(_Command):
    def __init__(self, sequence: i64, file_number: i64, salt: bytes) -> None:
        super().__init__(sequence)
        self.file_number: Final[i64] = file_number
        self.salt: Final = salt


@final
class _Drop(_Command):
    def __init__(self, sequence: i64, before_file: i64) -> None:
        super().__init__(sequence)
        self.before_file: Final[i64] = before_file


@final
class _Close(_Command):
    pass


@final
class Journal:
    """One journal, used from the loop's thread only.

    `sequence` is the number that will cover what is appended now; it grows with each turn that appended something, and
    with each roll. `written_sequence` has reached the operating system (it survives the end of the process),
    `durable_sequence` the disk. The first file's creation has number 1. `failure` is set once writing failed for good.
    """

    def __init__(
        self,
        filesystem: Filesystem,
        folder: str,
        file_number: int,
        post: Callable[[Callable[[], None]], None],
        listener: JournalListener,
        file_bytes: int = limits.JOURNAL_FILE_BYTES,
        before_sync: Callable[[], None] | None = None,
        retry_ms: int = limits.JOURNAL_RETRY_MS,
    ) -> None:
        """`post` runs a callable on the loop's thread. `before_sync` is called on the commit thread before each
        fdatasync, to make durable what must be so together with the journal; an error there is a failure. The
        file `file_number` must not exist yet."""
        self.sequence: i64 = 1
        self.written_sequence: i64 = 0
        self.durable_sequence: i64 = 0
        self.failure: StorageFailed | None = None
        self.file_number: i64 = file_number
        self._listener: Final = listener
        self._pending = BytesWriter()
        # What precedes that: large bodies as they are, so that nobody copies them, and what is between them.
        self._chunks: list[bytes] = []
        self._chunks_bytes: i64 = 0
        self._salt_crc: i64 = 0
        # Of all files so far: four bytes or so for each 128 MiB.
        self._salt_crcs: Final[set[int]] = set()
        self._synced_request: i64 = 0
        self._file_used_bytes: i64 = FILE_HEADER_BYTES
        self._handed_over_bytes: i64 = 0
        self._closed = False
        self._worker: Final = _CommitThread(filesystem, folder, post, self, file_bytes, before_sync, retry_ms)
        self._hand_over_roll()
        self._worker.start()

    @property
    def has_appended(self) -> bool:
        """Whether this turn has appended anything so far."""
        return self._appended_bytes > 0

    @property
    def _appended_bytes(self) -> i64:
        return self._chunks_bytes + len(self._pending)

    @property
    def pending_bytes(self) -> i64:
        """What is appended and not yet written."""
        return self._handed_over_bytes - self._worker.written_bytes + self._appended_bytes

    @property
    def file_used_bytes(self) -> i64:
        """The content of the active file, with what is pending for it. A checkpoint is due when it fills the file."""
        return self._file_used_bytes + self._appended_bytes

    def append(self, kind: i64, head: bytes, body: bytes = b"") -> None:
        """Add a frame (kind 1 to 255) with the payload `head` + `body` to this turn's. Nothing is written yet."""
        if kind < 1 or kind > 255:
            raise ValueError(f"a journal frame of kind {kind}")
        if self._appended_bytes == 0:
            write_mark(self._pending, self._salt_crc, self._worker.durable_position_in(self.file_number))
        write_frame_head(self._pending, self._salt_crc, kind, head, body)
        if len(body) < limits.WRITE_BYTES_APART:
            self._pending.write(body)
        else:
            self._chunks.append(self._pending.getvalue())
            self._chunks.append(body)
            self._chunks_bytes += len(self._pending) + len(body)
            self._pending.truncate(0)

    def submit(self, sync: bool) -> None:
        """End a turn: hand its frames to the commit thread. With `sync` they, and all before, become durable at once;
        without, they are only written."""
        if self.failure is not None:
            self._pending.truncate(0)
            self._chunks = []
            self._chunks_bytes = 0
            return
        size = self._appended_bytes
        if size > 0:
            data = self._chunks
            data.append(self._pending.getvalue())
            self._chunks = []
            self._chunks_bytes = 0
            if len(self._pending) > _BUFFER_KEPT_BYTES:
                self._pending = BytesWriter()
            else:
                self._pending.truncate(0)
            self._handed_over_bytes += size
            self._file_used_bytes += size
            self._worker.put(_Write(self.sequence, data))
            self.sequence += 1
        if sync and self._synced_request < self.sequence - 1:
            self._synced_request = self.sequence - 1
            self._worker.put(_Sync(self._synced_request))

    def roll(self) -> i64:
        """Have all that is appended from now on go to a new file; returns its number. It takes a sequence number of
        its own: when that is durable, the file exists and all before it is on the disk."""
        self.submit(False)
        if self.failure is None:
            self.file_number += 1
            self._hand_over_roll()
        return self.file_number

    def drop_before(self, file_number: int) -> None:
        """Remove the files before `file_number`: a checkpoint has what they hold."""
        if self.failure is None:
            self._worker.put(_Drop(self.sequence - 1, file_number))

    def close(self) -> None:
        """Write and sync all that is pending, and end the thread. `committed` has been told all that became durable;
        where not everything did, `failure` says why."""
        if self._closed:
            return
        self._closed = True
        self.submit(True)
        self._worker.close(self.sequence)
        self.report_progress()

    def report_progress(self) -> None:
        """On the loop's thread: tell the listener what has become of the commit thread's work since the last time."""
        thread = self._worker
        # Read before the others, which are written first: what is reported here as durable was so.
        durable: i64 = thread.durable_sequence
        self.written_sequence = thread.written_sequence
        if durable > self.durable_sequence:
            self.durable_sequence = durable
            self._listener.committed(durable)
        if thread.failure is not None and self.failure is None:
            self.failure = thread.failure
            self._listener.failed(thread.failure)

    def report_blocked(self) -> None:
        self._listener.blocked(True)

    def report_unblocked(self) -> None:
        self._listener.blocked(False)

    def _hand_over_roll(self) -> None:
        salt = os.urandom(SALT_BYTES)
        while crc32c(salt) in self._salt_crcs:
            salt = os.urandom(SALT_BYTES)
        self._salt_crc = crc32c(salt)
        self._salt_crcs.add(crc32c(salt))
        self._file_used_bytes = FILE_HEADER_BYTES
        self._synced_request = self.sequence
        self._worker.put(_Roll(self.sequence, self.file_number, salt))
        self.sequence += 1


class _DiskFull(Exception):
    """The journal is to be closed, and there is still no room."""


@final
class _CommitThread:
    """The one thread that writes. Its fields are written by it alone, and read by the loop's thread."""

    def __init__(
        self,
        filesystem: Filesystem,
        folder: str,
        post: Callable[[Callable[[], None]], None],
        journal: Journal,
        file_bytes: i64,
        before_sync: Callable[[], None] | None,
        retry_ms: i64,
    ) -> None:
        self.written_bytes: i64 = 0
        self.written_sequence: i64 = 0
        self.durable_sequence: i64 = 0
        self.failure: StorageFailed | None = None
        self._filesystem: Final = filesystem
        self._folder: Final = folder
        self._post: Final = post
        self._journal: Final = journal
        self._file_bytes: Final[i64] = file_bytes
        self._before_sync: Final = before_sync
        self._retry_s: Final = retry_ms / 1000
        self._commands: Final[SimpleQueue[_Command]] = filesystem.threads.queue()
        self._closing: Final = filesystem.threads.event()
        self._wait_for_end: Callable[[], None] | None = None
        # File number and position in it; one object, so that the other thread sees both of the same moment.
        self._durable_at: tuple[int, int] = (-1, 0)
        self._file: File | None = None
        self._file_number: i64 = -1
        self._first_number: i64 = -1
        self._is_reused = False
        self._spare_path: Final = posixpath.join(folder, _SPARE_NAME)
        self._position: i64 = 0
        self._allocated: i64 = 0
        self._salt = b""

    def start(self) -> None:
        self._wait_for_end = self._filesystem.threads.start("millpond-commit", self._run)

    def put(self, command: _Command) -> None:
        self._commands.put(command)

    def close(self, sequence: i64) -> None:
        self._commands.put(_Close(sequence))
        # Not before the command is queued: a full disk is waited for until then, and tried once more after.
        self._closing.set()
        assert self._wait_for_end is not None
        self._wait_for_end()

    def durable_position_in(self, file_number: i64) -> i64:
        """Up to where that file is durable. 0 for one that is yet to be made."""
        number, position = self._durable_at
        return position if number == file_number else 0

    def _run(self) -> None:
        is_open = True
        while is_open:
            batch = self._take()
            is_open = not isinstance(batch[-1], _Close)
            if self.failure is None:
                try:
                    self._carry_out(batch)
                except Exception as error:  # noqa: BLE001
                    # Whatever it was, also in the caller's `before_sync`: the promise cannot be kept.
                    self._fail(error)
                self._post(self._journal.report_progress)
        if self._file is not None:
            self._file.close()

    def _take(self) -> list[_Command]:
        """All that is queued, waiting for the first. A close is always the last."""
        batch = [self._commands.get()]
        try:
            while True:
                batch.append(self._commands.get_nowait())
        except Empty:
            return batch

    def _carry_out(self, batch: list[_Command]) -> None:
        data: list[bytes] = []
        written: i64 = self.written_sequence
        must_sync = False
        for command in batch:
            if isinstance(command, _Write):
                data.extend(command.data)
                written = command.sequence
            elif isinstance(command, _Sync):
                must_sync = True
            else:
                # The others take their turn after all that was handed over before them.
                self._write(data, written)
                data = []
                if isinstance(command, _Roll):
                    if self._file is not None:
                        self._end_file(self._file)
                    self._start_file(command)
                    written = command.sequence
                elif isinstance(command, _Drop):
                    self._drop(command.before_file)
                else:
                    self._sync()
                    self._write_closing_mark()
                    self._filesystem.discard(self._spare_path)
                    must_sync = False
        self._write(data, written)
        if must_sync:
            self._sync()

    def _write(self, data: list[bytes], sequence: i64) -> None:
        if not data:
            return
        file = self._file
        assert file is not None
        content = joined(data)
        end: i64 = self._position
        for piece in content:
            end += len(piece)
        if end > self._allocated:
            self._extend(file, end)
        self._patiently(_WriteAttempt(file, self._position, content))
        self.written_bytes += end - self._position
        self._position = end
        self.written_sequence = sequence

    def _extend(self, file: File, end: i64) -> None:
        """Reserve more where a checkpoint is late. Only to be fast: the write itself finds out whether there is
        room."""
        allocated: i64 = end + self._file_bytes // 4
        try:
            file.allocate(allocated)
        except OSError as error:
            if not is_disk_full(error):
                raise
            allocated = end
        self._allocated = allocated

    def _sync(self) -> None:
        """Make all that is written durable. Any error is final."""
        if self.durable_sequence == self.written_sequence:
            return
        if self._before_sync is not None:
            self._before_sync()
        assert self._file is not None
        self._file.sync()
        self._durable_at = (self._file_number, self._position)
        self.durable_sequence = self.written_sequence

    def _end_file(self, file: File) -> None:
        """Make durable all that is in the file, and that nothing more is."""
        self._sync()
        if self._is_reused:
            end = end_of_file(self._salt)
            self._patiently(_WriteAttempt(file, self._position, [end]))
            self._position += len(end)
            file.sync()

    def _start_file(self, roll: _Roll) -> None:
        path = file_path(self._folder, roll.file_number)
        if self._file is None:
            self._patiently(_FolderAttempt(self._filesystem, self._folder))
            self._first_number = roll.file_number
            self._filesystem.discard(self._spare_path)
        else:
            self._file.close()
            self._file = None
        if self._filesystem.exists(path):
            raise StorageFailed(f"the journal file {path} exists already")
        self._is_reused = self._filesystem.exists(self._spare_path)
        header = file_header(roll.file_number, roll.salt, self._is_reused)
        made_at = self._spare_path if self._is_reused else path
        attempt = _CreateAttempt(self._filesystem, made_at, self._file_bytes, header)
        self._patiently(attempt)
        file = attempt.file
        assert file is not None
        self._file = file
        self._file_number = roll.file_number
        self._salt = roll.salt
        self._position = FILE_HEADER_BYTES
        self._allocated = attempt.allocated
        file.sync()
        if self._is_reused:
            # Not before its header says which one it is.
            self._patiently(_RenameAttempt(self._filesystem, self._spare_path, path))
        self._filesystem.sync_folder(self._folder)
        self._durable_at = (roll.file_number, FILE_HEADER_BYTES)
        self.written_sequence = roll.sequence
        self.durable_sequence = roll.sequence

    def _drop(self, before_file: i64) -> None:
        for number in journal_files(self._filesystem, self._folder):
            if number < before_file:
                path = file_path(self._folder, number)
                if number < self._first_number or not self._keep_spare(path):
                    self._filesystem.discard(path)

    def _keep_spare(self, path: str) -> bool:
        """Have the file at `path` be the spare one. False where it is not wanted: there is one, it has grown very
        large, or room is short."""
        filesystem = self._filesystem
        if (
            filesystem.exists(self._spare_path)
            or filesystem.free_bytes(self._folder) < _ROOM_FOR_SPARE * self._file_bytes
        ):
            return False
        try:
            file = filesystem.open(path, False)
            try:
                if file.size() > 2 * self._file_bytes:
                    return False
            finally:
                file.close()
            filesystem.rename(path, self._spare_path)
            # From here on it may be written to: after a power cut it is never found under the name of what it held.
            filesystem.sync_folder(self._folder)
        except OSError:
            filesystem.discard(self._spare_path)
            return False
        return True

    def _write_closing_mark(self) -> None:
        """Tell recovery that everything in the file was durable, and cut what was preallocated. The mark only makes a
        report of damage more exact, so on a full disk it is left out."""
        writer = BytesWriter()
        write_mark(writer, crc32c(self._salt), self._position)
        file = self._file
        assert file is not None
        try:
            file.pwrite(self._position, writer.getvalue())
            file.truncate(self._position + len(writer))
        except OSError as error:
            if not is_disk_full(error):
                raise
            return
        file.sync()

    def _patiently(self, attempt: _Attempt) -> None:
        """Make an attempt until there is room on the disk for it."""
        is_blocked = False
        while True:
            try:
                attempt.make()
                break
            except OSError as error:
                if not is_disk_full(error):
                    raise
            if not is_blocked:
                is_blocked = True
                self._post(self._journal.report_blocked)
            elif self._closing.is_set():
                raise _DiskFull("the disk is full")
            self._closing.wait(self._retry_s)
        if is_blocked:
            self._post(self._journal.report_unblocked)

    def _fail(self, error: Exception) -> None:
        failure = StorageFailed(f"the journal in {self._folder} cannot be written any more: {error}")
        failure.__cause__ = error
        self.failure = failure


class _Attempt:
    """Something that a full disk can prevent, and that may be repeated."""

    def make(self) -> None:
        raise NotImplementedError


@final
class _WriteAttempt(_Attempt):
    def __init__(self, file: File, position: i64, content: list[bytes]) -> None:
        self._file = file
        self._position: i64 = position
        self._content = content

    def make(self) -> None:
        position = self._position
        for piece in self._content:
            self._file.pwrite(position, piece)
            position += len(piece)


@final
class _FolderAttempt(_Attempt):
    def __init__(self, filesystem: Filesystem, folder: str) -> None:
        self._filesystem = filesystem
        self._folder = folder

    def make(self) -> None:
        self._filesystem.mkdirs(self._folder)


@final
class _RenameAttempt(_Attempt):
    def __init__(self, filesystem: Filesystem, path: str, to: str) -> None:
        self._filesystem = filesystem
        self._path = path
        self._to = to

    def make(self) -> None:
        self._filesystem.rename(self._path, self._to)


@final
class _CreateAttempt(_Attempt):
    """Create a journal file, or open the spare one, reserve its room, and write its header."""

    def __init__(self, filesystem: Filesystem, path: str, size: i64, header: bytes) -> None:
        self.file: File | None = None
        self.allocated: i64 = FILE_HEADER_BYTES
        self._filesystem = filesystem
        self._path = path
        self._size: i64 = size
        self._header = header

    def make(self) -> None:
        file = self.file
        if file is None:
            file = self.file = self._filesystem.open(self._path, True)
        try:
            file.allocate(self._size)
            self.allocated = max(self._size, file.size())
        except OSError as error:
            # Only to be fast: a new file is what lets old ones go, so it must not need more room than it uses.
            if not is_disk_full(error):
                raise
        file.pwrite(0, self._header)
