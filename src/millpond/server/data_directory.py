"""What stands where in a data directory, for those who look at it from outside its owners.

lock              held by the process that uses the directory
catalog.sqlite    see docs/formats/catalog.md
admin.sock        the management API of the running broker, for the user who started it
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

LOCK: Final = "lock"
CATALOG: Final = "catalog.sqlite"
ADMIN_SOCKET: Final = "admin.sock"


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """`path` as a name short enough for a UNIX socket, for as long as the context lasts.

    The kernel takes 107 bytes. Where the data directory's name is longer, the socket is reached through the
    descriptor of its folder.
    """
    whole = os.fsencode(path.absolute())
    if len(whole) <= 107:
        yield os.fsdecode(whole)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def bind_admin_socket(data: Path) -> socket.socket:
    """A socket that listens at `data/admin.sock`, which only this user may connect to: that is its authentication.

    The caller holds the directory's lock, so what stands there is left over from a broker that was killed.
    """
    path = data / ADMIN_SOCKET
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(path) as name:
            # The mode is part of the creation: a chmod afterwards would leave a moment in which others could connect.
            mask = os.umask(0o177)
            try:
                sock.bind(name)
            finally:
                os.umask(mask)
        sock.listen(64)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
