"""Memory that is free and still the process's: given back to the system from time to time.

The C library keeps what was freed for what comes next, in each thread's heap, and gives back by itself only what is at
a heap's end. After a storm that may be hundreds of MiB.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

MIB: Final = 1 << 20
# So much more than it has been at the least is not worth the while: giving back a MiB that is taken again at once costs
# some 0.1 ms.
KEPT_BYTES_MAX: Final = 32 * MIB

_STATM: Final = Path("/proc/self/statm")


class Heap:
    """`resident_bytes` measures the process, 0 where that is not known. `give_back` takes milliseconds for what there
    is to be given back, so that `run` does it on a thread."""

    def __init__(
        self,
        run: Callable[[Callable[[], object], Callable[[object], None]], None],
        resident_bytes: Callable[[], int],
        give_back: Callable[[], object],
    ) -> None:
        self._run: Final = run
        self._resident_bytes: Final = resident_bytes
        self._give_back: Final = give_back
        self._least_bytes = 0
        self._is_giving_back = False

    def look(self) -> None:
        """Give back, if there may be much. To be called every few seconds."""
        resident = self._resident_bytes()
        if self._least_bytes == 0 or resident < self._least_bytes:
            self._least_bytes = resident
        if resident - self._least_bytes >= KEPT_BYTES_MAX and not self._is_giving_back:
            self._is_giving_back = True
            self._run(self._give_back, self._given_back)

    def _given_back(self, result: object) -> None:
        self._is_giving_back = False


def resident_bytes() -> int:
    """What the process has of the machine's memory; 0 where the system does not tell."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def give_back() -> None:
    """Give back all whole pages that are free, of all threads' heaps. Only glibc knows how."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
