"""The broker's disk, seen from outside: `disk.c` stands before the C library, and this steers it."""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final

JOURNAL, LOGS, CATALOG = 1, 2, 4
ALL: Final = JOURNAL | LOGS | CATALOG
# In the order of `struct control`.
SET: Final = ("full", "broken_writes", "broken_syncs", "sync_delay_us", "write_ns_per_byte", "free_bytes")
COUNTED: Final = ("refused_for_room", "halved", "broken_writes", "broken_syncs", "delayed_syncs", "written_bytes")
_NUMBER: Final = struct.Struct("=q")


class Disk:
    """A disk that is as good as the machine's until it is told otherwise."""

    def __init__(self, folder: Path, data: Path) -> None:
        """Compile the shim into `folder`. `data` is the data directory that it stands before."""
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            raise RuntimeError("no C compiler found for disk.c; install gcc")
        folder.mkdir(parents=True, exist_ok=True)
        library = folder / "disk.so"
        source = Path(__file__).with_name("disk.c")
        command = [compiler, "-std=gnu11", "-shared", "-fPIC", "-O2", "-Wall", "-o", library, source, "-ldl"]
        subprocess.run(command, check=True, capture_output=True, text=True)
        path = folder / "disk.control"
        path.write_bytes(bytes(_NUMBER.size * (len(SET) + len(COUNTED))))
        with path.open("r+b") as file:
            self._map: Final = mmap.mmap(file.fileno(), 0)
        self.environment: Final = {
            "LD_PRELOAD": str(library),
            "FAULTY_DISK_FOLDER": str(data.resolve()),
            "FAULTY_DISK_CONTROL": str(path),
        }
        self.heal()

    def become(self, **faults: int) -> None:
        """Set what is named, from the next system call on."""
        for name, value in faults.items():
            _NUMBER.pack_into(self._map, SET.index(name) * _NUMBER.size, value)

    def fill(self) -> None:
        """Nothing can be written, and whoever asks is told that there is no room."""
        self.become(full=ALL, free_bytes=0)

    def heal(self) -> None:
        """Have room again, be whole and quick; only how fast it takes bytes stays."""
        self.become(full=0, broken_writes=0, broken_syncs=0, sync_delay_us=0, free_bytes=-1)

    def count(self, name: str) -> int:
        """How often a fault happened so far."""
        (count,) = _NUMBER.unpack_from(self._map, (len(SET) + COUNTED.index(name)) * _NUMBER.size)
        return int(count)
