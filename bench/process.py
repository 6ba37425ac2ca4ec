"""What a broker costs, seen from outside: CPU seconds and resident memory of a whole process tree, from /proc.

CPU is user plus system time of every thread of every process, and of the children that have already been waited for,
so that the difference between two readings misses nothing. The kernel counts it in ticks of 10 ms: runs should last
long enough for a tick not to matter.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")

# Places in /proc/PID/stat, counted from the field behind the command's name, which may itself contain spaces.
_PARENT: Final = 1
_USER_TIME: Final = 11
_CHILDREN_SYSTEM_TIME: Final = 14

# Places in the first line of /proc/stat.
_IDLE: Final = 3
_WAITING_FOR_DISK: Final = 4


def _stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on, or none when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text[text.rindex(")") + 2 :].split()


def process_tree(root: int) -> list[int]:
    """`root` and all its descendants that are alive."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat_fields(int(entry.name))):
            children.setdefault(int(fields[_PARENT]), []).append(int(entry.name))
    tree = [root]
    for pid in tree:
        tree.extend(children.get(pid, []))
    return tree


def cpu_seconds(root: int) -> float:
    """CPU seconds used so far by `root` and its descendants, dead ones included."""
    ticks = 0
    for pid in process_tree(root):
        ticks += sum(int(field) for field in _stat_fields(pid)[_USER_TIME : _CHILDREN_SYSTEM_TIME + 1])
    return ticks / _TICKS_PER_SECOND


def own_cpu_seconds(pid: int) -> float:
    """CPU seconds used so far by one process, without its children: to the nanosecond, where /proc counts ticks."""
    # The clock id that clock_getcpuclockid(3) gives: the process's number, inverted, and "what the scheduler counts".
    return time.clock_gettime((~pid << 3) | 2)


def machine_cpu_seconds() -> float:
    """CPU seconds that the whole machine has spent on anything but idling, time stolen by its host included."""
    fields = [int(field) for field in Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]]
    return (sum(fields) - fields[_IDLE] - fields[_WAITING_FOR_DISK]) / _TICKS_PER_SECOND


def resident_bytes(root: int) -> int:
    """The resident memory of `root` and its descendants."""
    total_kib = 0
    for pid in process_tree(root):
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total_kib += sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    return total_kib * 1024


def reset_peak_memory(root: int) -> None:
    """Let the kernel's record of peak memory begin anew, so that each run has its own peak."""
    for pid in process_tree(root):
        try:
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        except (FileNotFoundError, ProcessLookupError):
            continue


def peak_memory_bytes(root: int) -> int:
    """The sum of the peaks of resident memory of `root` and its descendants since `reset_peak_memory`."""
    total_kib = 0
    for pid in process_tree(root):
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total_kib += sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return total_kib * 1024
