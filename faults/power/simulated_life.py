"""A broker's life with threads that take turns: nothing happens but by the scheduler, and time does not pass."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

from faults.power.disk import SimulatedDisk
from faults.power.scheduler import Scheduler
from millpond.base.clock import ManualClock
from tests.broker.life import MIB, Life

# So many steps of threads go by at most where the event loop only looks whether something has come.
STEPS_AT_ONCE: Final = 40
# When all threads wait, the broker's house is kept so often before it is clear that what is waited for never comes.
IDLE_MAX: Final = 50


class SimulatedLife(Life):
    """See the module. The scheduler's threads are those of the disk by then."""

    def __init__(
        self,
        disk: SimulatedDisk,
        catalog: Path,
        scheduler: Scheduler,
        choose: random.Random,
        *,
        budget: int = 64 * MIB,
        file_bytes: int = MIB,
        clock: ManualClock,
    ) -> None:
        self._scheduler = scheduler
        self._choose = choose
        super().__init__(disk, catalog, budget=budget, file_bytes=file_bytes, clock=clock)

    def pump(self) -> None:
        for _ in range(self._choose.randrange(STEPS_AT_ONCE)):
            if not self._go_on():
                return

    def pump_until(self, condition: Callable[[], bool], what: str = "it") -> None:
        self.end_turn()
        idle = 0
        while not condition():
            if not self._go_on():
                idle += 1
                assert idle < IDLE_MAX, f"{what} never happens"
                self.broker.keep_house()
                self.end_turn()

    def _go_on(self) -> bool:
        """Let a thread do a step, or the event loop what was posted; False where there is neither."""
        if not self.posted.empty() and (self._choose.random() < 0.5 or not self._scheduler.step()):
            self.posted.get()()
            self.end_turn()
            return True
        return self._scheduler.step() or not self.posted.empty()

    def vanish(self) -> None:
        self._scheduler.end()
        self.catalog.close()
