"""A disk of which every call is a step: others may go on before it, and the power may fail."""

from __future__ import annotations

from faults.power.scheduler import SimulatedThreads
from millpond.base.faulty_filesystem import FaultyFilesystem
from millpond.base.threads import MACHINE_THREADS, Threads


class PowerCut(BaseException):
    """The power fails in the middle of a start. No error that anybody could handle."""


class SimulatedDisk(FaultyFilesystem):
    """What is on it outlives brokers; `threads` are those of the broker that uses it now."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.simulated: SimulatedThreads | None = None
        # So many calls of the event loop until the power fails; -1 for never.
        self.calls_left = -1
        self.injected = 0

    @property
    def threads(self) -> Threads:
        return MACHINE_THREADS if self.simulated is None else self.simulated

    def enter(self, operation: str, path: str) -> None:
        simulated = self.simulated
        if simulated is not None:
            scheduler = simulated.scheduler
            if not scheduler.is_loop:
                scheduler.pause(f"{operation} {path}")
            elif self.calls_left >= 0:
                self.calls_left -= 1
                if self.calls_left < 0:
                    raise PowerCut
        try:
            super().enter(operation, path)
        except OSError:
            self.injected += 1
            raise

    def files(self) -> list[str]:
        return sorted(self._names)

    def size_of(self, path: str) -> int:
        return len(self._names[path].content)
