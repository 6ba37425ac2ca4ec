"""Damaged bytes are kept aside in `*.corrupt` files: cut from what is served, but not destroyed."""

from __future__ import annotations

import errno
import posixpath

from millpond.base.filesystem import File, Filesystem

_COPY_BYTES = 1 << 20


def is_disk_full(error: OSError) -> bool:
    """Whether room on the disk, or in the quota, would have helped."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def copy_aside(filesystem: Filesystem, path: str, file: File, start: int, end: int) -> str:
    """Keep a durable copy of the bytes from `start` to `end` of `file`, which is the one at `path`; returns the copy's
    path. Leaves nothing behind when it fails."""
    aside = _unused_path(filesystem, path)
    copy = filesystem.open(aside, True)
    try:
        position = start
        while position < end:
            piece = file.pread(position, min(_COPY_BYTES, end - position))
            if not piece:
                break
            copy.pwrite(position - start, piece)
            position += len(piece)
        copy.sync()
    except OSError:
        filesystem.remove(aside)
        raise
    finally:
        copy.close()
    filesystem.sync_folder(posixpath.dirname(path))
    return aside


def move_aside(filesystem: Filesystem, path: str) -> str:
    """Rename a whole file; returns its new path. The caller syncs the folder."""
    aside = _unused_path(filesystem, path)
    filesystem.rename(path, aside)
    return aside


def _unused_path(filesystem: Filesystem, path: str) -> str:
    candidate = path + ".corrupt"
    count = 1
    while filesystem.exists(candidate):
        count += 1
        candidate = f"{path}.{count}.corrupt"
    return candidate
