"""Time, passed in: the core and the protocols never read a clock of their own.

Two scales are used. `wall_ms` is milliseconds since 1970 in UTC, for what is stored or shown. `monotonic_ms` only
ever grows, for timeouts. Timers are callbacks that run on the event loop's thread.
"""

from __future__ import annotations

import heapq
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


class Timer(ABC):
    """A callback that has been asked for and can be called off."""

    @abstractmethod
    def cancel(self) -> None:
        """Call the callback off. Harmless when it has already run."""


class Clock(ABC):
    """The time, and callbacks at a time."""

    @abstractmethod
    def wall_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC."""

    @abstractmethod
    def monotonic_ms(self) -> int:
        """Milliseconds on a scale that never goes back."""

    @abstractmethod
    def call_later(self, delay_ms: int, callback: Callable[[], None]) -> Timer:
        """Run `callback` once, `delay_ms` from now, on the event loop's thread."""


class _LoopTimer(Timer):
    def __init__(self, handle: asyncio.TimerHandle) -> None:
        self._handle = handle

    def cancel(self) -> None:
        self._handle.cancel()


class LoopClock(Clock):
    """The machine's clock, with timers on an asyncio event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000

    def call_later(self, delay_ms: int, callback: Callable[[], None]) -> Timer:
        return _LoopTimer(self._loop.call_later(delay_ms / 1000, callback))


class _ManualTimer(Timer):
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class ManualClock(Clock):
    """A clock that stands still until `advance` moves it: for tests and simulations."""

    def __init__(self, wall_ms: int = 1_700_000_000_000) -> None:
        self._wall_ms = wall_ms
        self._monotonic_ms = 0
        self._order = itertools.count()
        self._timers: list[tuple[int, int, _ManualTimer]] = []

    def wall_ms(self) -> int:
        return self._wall_ms

    def monotonic_ms(self) -> int:
        return self._monotonic_ms

    def call_later(self, delay_ms: int, callback: Callable[[], None]) -> Timer:
        timer = _ManualTimer(callback)
        heapq.heappush(self._timers, (self._monotonic_ms + max(0, delay_ms), next(self._order), timer))
        return timer

    def advance(self, duration_ms: int) -> None:
        """Move time forward by `duration_ms`, running every timer that falls due, in order."""
        target_ms = self._monotonic_ms + duration_ms
        while self._timers and self._timers[0][0] <= target_ms:
            due_ms, _, timer = heapq.heappop(self._timers)
            self._wall_ms += due_ms - self._monotonic_ms
            self._monotonic_ms = due_ms
            if timer.callback is not None:
                callback, timer.callback = timer.callback, None
                callback()
        self._wall_ms += target_ms - self._monotonic_ms
        self._monotonic_ms = target_ms
