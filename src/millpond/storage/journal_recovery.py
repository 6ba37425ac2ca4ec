"""Reading the journal back at start: apply what verifies, cut what does not, and say so.

Frames are applied in order up to the first that does not verify. What follows it is kept aside in files named
`*.corrupt`, and cut from the journal, so that the next recovery finds the same. There are two reasons for a bad frame:

    torn tail   the process or the machine stopped while it was written. It was never reported durable.
    corruption  it had been durable: a later mark, or a later file, says so. What had been promised is lost.

A file that was used before (`frames.py`) has old content after its last frame. Nothing of that verifies, so it is cut
without a word, unless a mark of the file's own follows.

The files of a journal are numbered without gaps, so a missing file is corruption as well. What was read is synced
before it is used: after a `kill -9` it may be in the system's memory only, and would be gone with the next power cut
although it had been served.
"""

from __future__ import annotations

import enum
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from millpond.base.errors import CorruptData
from millpond.base.filesystem import File, Filesystem
from millpond.storage.aside import copy_aside, is_disk_full, move_aside
from millpond.storage.frames import FILE_HEADER_BYTES, FrameReader, read_file_header

_FILE_NAME = re.compile(r"(\d{20})\.journal")
_READ_BYTES = 1 << 20


class Damage(enum.Enum):
    """What was found after the last good frame."""

    NONE = "none"
    TORN_TAIL = "torn tail"
    CORRUPTION = "corruption"


@dataclass
class JournalReport:
    """What recovery read, and what it cut. `next_file` is the number for the next Journal."""

    next_file: int
    files: int = 0
    frames: int = 0
    # The last good frame's file (-1 where there is no file), and where it ends.
    last_file: int = -1
    last_position: int = 0
    damage: Damage = Damage.NONE
    # Why reading stopped; empty where there is no damage.
    reason: str = ""
    bytes_cut: int = 0
    # Where what was cut can be looked at.
    kept_aside: list[str] = field(default_factory=list)


def file_path(folder: str, file_number: int) -> str:
    """The path of a journal file."""
    return posixpath.join(folder, f"{file_number:020d}.journal")


def journal_files(filesystem: Filesystem, folder: str) -> list[int]:
    """The numbers of the journal files in `folder`, in order."""
    names = [_FILE_NAME.fullmatch(name) for name in filesystem.list(folder)]
    return sorted(int(name[1]) for name in names if name is not None)


def read_journal(
    filesystem: Filesystem, folder: str, first_file: int, apply: Callable[[int, bytes], None]
) -> JournalReport:
    """Call `apply(kind, payload)` for each frame from the file `first_file` on, up to the first bad one. Earlier files
    are left alone. Raises UnsupportedFormat, having changed nothing on the disk, for a file of a newer version."""
    numbers = [number for number in journal_files(filesystem, folder) if number >= first_file]
    report = JournalReport(next_file=first_file)
    for index, number in enumerate(numbers):
        later = numbers[index + 1 :]
        if number != report.next_file:
            report.damage = Damage.CORRUPTION
            report.reason = f"journal file {report.next_file} is missing"
            _set_aside(filesystem, folder, numbers[index:], report)
            break
        if not _read_file(filesystem, folder, number, later, apply, report):
            break
    return report


def _read_file(
    filesystem: Filesystem,
    folder: str,
    number: int,
    later: list[int],
    apply: Callable[[int, bytes], None],
    report: JournalReport,
) -> bool:
    """Apply one file; False where reading ends with it."""
    path = file_path(folder, number)
    file = filesystem.open(path, False)
    try:
        header = file.pread(0, FILE_HEADER_BYTES)
        try:
            salt, is_reused = read_file_header(header, number)
        except CorruptData as error:
            _give_up_file(filesystem, folder, file, number, later, str(error), report)
            return False
        reader = FrameReader(file, salt)
        while reader.next():
            apply(reader.kind, reader.payload)
            report.frames += 1
        report.files += 1
        report.last_file = number
        report.last_position = reader.position
        report.next_file = number + 1
        content_end = reader.position if reader.is_ended else reader.content_end()
        if content_end > reader.position:
            durable = reader.durable_position()
            if is_reused and not later and durable < 0:
                # So that nobody wonders when another file follows.
                file.truncate(reader.position)
            else:
                _judge(reader.position, durable, number, later, report)
                _cut(filesystem, path, file, content_end, report)
                _set_aside(filesystem, folder, later, report)
                return False
        file.sync()
        return True
    finally:
        file.close()


def _judge(position: int, durable: int, number: int, later: list[int], report: JournalReport) -> None:
    report.reason = f"the frame at {position} of journal file {number} does not verify"
    if later or durable > position:
        report.damage = Damage.CORRUPTION
    else:
        report.damage = Damage.TORN_TAIL


def _cut(filesystem: Filesystem, path: str, file: File, content_end: int, report: JournalReport) -> None:
    """Keep a copy of what follows the last good frame, and cut it off."""
    start = report.last_position
    report.bytes_cut += content_end - start
    try:
        report.kept_aside.append(copy_aside(filesystem, path, file, start, content_end))
    except OSError as error:
        # A torn tail was never promised to anyone: on a full disk it is not worth a copy.
        if report.damage is Damage.CORRUPTION or not is_disk_full(error):
            raise
    file.truncate(start)
    file.sync()


def _give_up_file(
    filesystem: Filesystem, folder: str, file: File, number: int, later: list[int], reason: str, report: JournalReport
) -> None:
    """A file without a good header: nothing in it can be trusted. The header is synced before the first frame is
    written, so where nothing follows it the file was only just being made."""
    file_bytes = file.size()
    has_frames = any(
        file.pread(start, _READ_BYTES).strip(b"\x00") for start in range(FILE_HEADER_BYTES, file_bytes, _READ_BYTES)
    )
    if not has_frames and not later and not file.pread(0, FILE_HEADER_BYTES).strip(b"\x00"):
        filesystem.remove(file_path(folder, number))
        filesystem.sync_folder(folder)
        return
    report.damage = Damage.CORRUPTION if has_frames or later else Damage.TORN_TAIL
    report.reason = f"journal file {number}: {reason}"
    _set_aside(filesystem, folder, [number, *later], report)


def _set_aside(filesystem: Filesystem, folder: str, numbers: list[int], report: JournalReport) -> None:
    """Take whole files out of the journal, the last first: should this be interrupted, there is no gap."""
    for number in reversed(numbers):
        path = file_path(folder, number)
        file = filesystem.open(path, False)
        try:
            report.bytes_cut += file.size()
        finally:
            file.close()
        report.kept_aside.append(move_aside(filesystem, path))
    if numbers:
        filesystem.sync_folder(folder)
