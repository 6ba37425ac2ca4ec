"""The machine on which figures were taken: figures without it mean little."""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SYNCS: Final = 200


@dataclass(frozen=True, slots=True)
class Machine:
    processor: str
    cores: int
    memory_gib: float
    kernel: str
    file_system: str
    sync_us: float
    """Median time of appending 4 KiB to a file and calling fdatasync."""

    def __str__(self) -> str:
        return (
            f"{self.cores} x {self.processor}, {self.memory_gib:.0f} GiB, Linux {self.kernel}, "
            f"{self.file_system}, fdatasync of 4 KiB {self.sync_us / 1000:.2f} ms"
        )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(folder: Path) -> str:
    """The type of the mount that holds `folder`: the longest mount point above it."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    above = [(len(fields[1]), fields[2]) for fields in mounts if folder.resolve().is_relative_to(fields[1])]
    return max(above, default=(0, "unknown"))[1]


def _sync_us(folder: Path) -> float:
    durations_ns = []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(_SYNCS):
            begin_ns = time.perf_counter_ns()
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            durations_ns.append(time.perf_counter_ns() - begin_ns)
    return statistics.median(durations_ns) / 1000


def describe(folder: Path) -> Machine:
    """The machine, and the disk under `folder`."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        processor=_processor(),
        cores=os.cpu_count() or 1,
        memory_gib=memory_bytes / 2**30,
        # Without the builder's own suffix, which tells nobody anything.
        kernel=platform.release().partition("-")[0],
        file_system=_file_system(folder),
        sync_us=_sync_us(folder),
    )
